"""Put a delta beside the blobs of a registry, once, for every agent that has its base."""

from __future__ import annotations

import hashlib
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Final

from bundle import layout
from bundle.delta.build import BuildLimits, Delta, build_delta
from bundle.delta.offer import MAX_OFFER_BYTES, DeltaRejected, Offer, read_offer
from bundle.seal import CHUNK_BYTES
from bundle.source import NotThere
from bundle.tree import Tree

COPY_BYTES: Final = 1024 * 1024


def offer_delta(
    tree: Tree,
    base_sha256: str,
    wanted_sha256: str,
    *,
    limits: BuildLimits | None = None,
    work: Path | None = None,
) -> Offer:
    """See that the registry offers a delta from one packed bundle to another.

    What it offers already is left as it is. Blocking, for up to `limits.max_s`: call it
    in a thread, or better in a process, when a version is published or rolled out.

    Args:
        tree: the registry, which holds both as blobs.
        base_sha256: the digest of the packed bundle that agents have.
        wanted_sha256: of the one they should have.
        limits: what it may cost.
        work: a folder for copies of the two; None: the system's own.

    Returns:
        The offer; of kind `full` where no delta is worth it.

    Raises:
        NotThere: the registry lacks one of the two.
        DeltaRejected: a blob of the registry is not what its name says.
        OSError: it cannot be read or written now.
    """
    path = layout.delta_offer(base_sha256, wanted_sha256)
    offered = _offered(tree, path)
    if offered is not None:
        return offered
    with tempfile.TemporaryDirectory(dir=work, prefix="delta-") as folder:
        base, wanted = Path(folder) / "base", Path(folder) / "wanted"
        _fetch(tree, base_sha256, base)
        _fetch(tree, wanted_sha256, wanted)
        delta = build_delta(base, base_sha256, wanted, limits=limits)
    offer = _offer_of(delta)
    if delta is not None:
        # The blob first: whoever reads the offer finds it.
        tree.write(layout.blob(offer.sha256), delta.data)
    tree.write(path, offer.to_json())
    return offer


def _offered(tree: Tree, path: str) -> Offer | None:
    try:
        offer = read_offer(tree.read(path, max_bytes=MAX_OFFER_BYTES))
    except (NotThere, DeltaRejected):
        return None
    if offer.kind != "full":
        size = tree.size(layout.blob(offer.sha256))
        if size != offer.size_bytes:
            return None  # Somebody has cleared the blobs.
    return offer


def _offer_of(delta: Delta | None) -> Offer:
    if delta is None:
        return Offer(kind="full")
    data = delta.data
    chunks = tuple(
        hashlib.sha256(data[at : at + CHUNK_BYTES]).hexdigest()
        for at in range(0, len(data), CHUNK_BYTES)
    )
    return Offer(
        kind=delta.kind,
        sha256=hashlib.sha256(data).hexdigest(),
        size_bytes=len(data),
        chunks=chunks,
    )


def _fetch(tree: Tree, sha256: str, dest: Path) -> None:
    digest = hashlib.sha256()
    with dest.open("wb") as file:
        for data in _pieces(tree, layout.blob(sha256)):
            digest.update(data)
            file.write(data)
    if digest.hexdigest() != sha256:
        raise DeltaRejected(
            f"{tree.place}: blob {sha256[:16]}… is damaged: publish that version again"
        )


def _pieces(tree: Tree, path: str) -> Iterator[bytes]:
    at = 0
    while True:
        piece = tree.piece(path, at, COPY_BYTES)
        at += len(piece.data)
        yield piece.data
        if at >= piece.total_bytes or not piece.data:
            return
