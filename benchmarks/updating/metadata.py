"""How many bytes of trust metadata a refresh costs an agent, and what verifying costs.

A fleet of 20 models with 8 versions each, signed by two of three keys, with the ways
back. After a publish an agent that was up to date fetches the timestamp, the snapshot
and the model's role; the seal of a 14 MB bundle comes on top and is told beside.
"""

from __future__ import annotations

import asyncio
import hashlib
import resource
import sys
import tempfile
import time
from pathlib import Path

from benchmarks.limits import Limit, progress, report
from bundle import layout
from bundle.folder_tree import FolderTree
from bundle.seal import CHUNK_BYTES, Seal
from bundle.source import Piece
from bundle.trust.epochs import next_epochs
from bundle.trust.keys import KeyRing, make_key
from bundle.trust.repository import Repository
from edge_agent.adapters.trusted_seals import TrustedSeals

MODELS = 20
VERSIONS = 8
BUNDLE_BYTES = 14_000_000
LIMIT_BYTES = 4096


class Counting:
    """A registry in a folder that counts what is read of it."""

    name = "folder"

    def __init__(self, tree: FolderTree) -> None:
        self._tree = tree
        self.read_bytes: dict[str, int] = {}

    async def read(self, path: str, offset: int, length: int) -> Piece:
        """A range of a file, counted by the file's path."""
        piece = self._tree.piece(path, offset, length)
        self.read_bytes[path] = self.read_bytes.get(path, 0) + len(piece.data)
        return piece

    def take(self) -> tuple[int, int]:
        """Bytes of metadata and of seals since the last time."""
        read, self.read_bytes = self.read_bytes, {}
        metadata = sum(
            count for path, count in read.items() if path.startswith(layout.METADATA)
        )
        return metadata, sum(read.values()) - metadata


class Operator:
    """Publishes into a folder, with all keys at hand."""

    def __init__(self, folder: Path) -> None:
        keys = folder / "keys"
        keys.mkdir()
        self.tree = FolderTree(folder / "registry")
        self.repository = Repository(self.tree, folder / "trust", time.time)  # noqa: TID251 - a benchmark
        self.ring = KeyRing([keys], lambda _: None)

        self.repository.begin(
            [make_key(keys / f"root-{n}.key", None) for n in range(3)],
            [make_key(keys / f"targets-{n}.key", None) for n in range(3)],
            make_key(keys / "snapshot.key", None),
            make_key(keys / "timestamp.key", None),
        )
        self.show()

    def draft(self, model: str, version: str, before: Seal | None) -> Seal:
        """Draft a version and the way back from it."""
        digests = tuple(
            hashlib.sha256(f"{model} {version} {index}".encode()).hexdigest()
            for index in range(-(-BUNDLE_BYTES // CHUNK_BYTES))
        )
        epochs = next_epochs(
            self.repository.last_epoch(model), way_back=before is not None
        )
        seal = Seal(
            name=model,
            version=version,
            epoch=epochs.own,
            size_bytes=BUNDLE_BYTES,
            sha256=digests[0],
            chunks=digests,
        )
        seals = [(seal, False)]
        if before is not None and epochs.way_back is not None:
            seals.append((before.model_copy(update={"epoch": epochs.way_back}), True))
        self.repository.draft_seals(model, seals)
        return seal

    def show(self) -> None:
        """Sign what waits and show it."""
        self.repository.signing.sign(self.ring)
        waiting = self.repository.signing.settle(self.ring).waiting
        if waiting:
            raise RuntimeError(f"not signed: {waiting}")


def measure() -> tuple[dict[str, object], list[Limit]]:
    """Bytes of a first refresh, of one after a publish, and of one with nothing new."""
    with tempfile.TemporaryDirectory() as folder:
        return asyncio.run(_measure(Path(folder)))


async def _measure(folder: Path) -> tuple[dict[str, object], list[Limit]]:
    progress(f"signing {MODELS} models × {VERSIONS} versions")
    operator = Operator(folder)
    last: dict[str, Seal] = {}
    for version in range(1, VERSIONS):
        for number in range(MODELS):
            model = f"camera-model-{number}"
            last[model] = operator.draft(model, f"1.{version}.0", last.get(model))
        operator.show()
    source = Counting(operator.tree)
    root = folder / "root.json"
    root.write_bytes(operator.repository.published.root_json())
    seals = TrustedSeals(root, folder / "agent", [source], fresh_s=0.0)
    model, before = next(iter(last.items()))

    progress("refreshing")
    resident_before_mb = _resident_mb()
    await seals.seal_for(model, before.version, before.epoch)
    first_bytes, _ = source.take()
    newest = operator.draft(model, f"1.{VERSIONS}.0", before)
    operator.show()
    started_s = time.perf_counter()
    await seals.seal_for(model, newest.version, newest.epoch)
    took_s = time.perf_counter() - started_s
    refresh_bytes, seal_bytes = source.take()
    await seals.refresh()
    idle_bytes, _ = source.take()
    figures: dict[str, object] = {
        "metadata_first_bytes": first_bytes,
        "metadata_refresh_bytes": refresh_bytes,
        "metadata_nothing_new_bytes": idle_bytes,
        "seal_bytes": seal_bytes,
        "refresh_s": round(took_s, 2),
        "agent_grew_mb": round(_resident_mb() - resident_before_mb, 1),
    }
    return figures, [
        Limit("bytes of metadata a refresh", refresh_bytes, LIMIT_BYTES),
    ]


def _resident_mb() -> float:
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    return pages * resource.getpagesize() / 2**20


def main() -> int:
    """Measure, print, and fail when a limit does not hold."""
    figures, limits = measure()
    return report(figures, limits, as_json="--json" in sys.argv)


if __name__ == "__main__":
    sys.exit(main())
