"""A fleet's trust for tests: real keys, in a folder, that sign what a test publishes."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Sequence
from pathlib import Path

from bundle import layout
from bundle.folder_tree import FolderTree
from bundle.seal import Seal
from bundle.source import Piece
from bundle.trust import roles
from bundle.trust.client import look
from bundle.trust.epochs import next_epochs
from bundle.trust.keys import KeyRing, PublicKey, make_key
from bundle.trust.looks import Look
from bundle.trust.repository import Repository
from bundle.trust.signing import Settled

START_S = 1_800_000_000.0
DAY_S = roles.DAY_S


def a_seal(model: str, version: str, epoch: int, content: bytes = b"") -> Seal:
    """The seal of a bundle that holds `content`."""
    data = content or f"{model} {version}".encode()
    digest = hashlib.sha256(data).hexdigest()
    return Seal(
        name=model,
        version=version,
        epoch=epoch,
        size_bytes=len(data),
        sha256=digest,
        chunks=(digest,),
    )


class FleetTrust:
    """The operators' side, and their clock."""

    def __init__(self, folder: Path, now_s: float = START_S) -> None:
        self.now_s = now_s
        self.keys = folder / "keys"
        self.keys.mkdir(parents=True)
        self.registry = folder / "registry"
        self.tree = FolderTree(self.registry)
        self.repository = Repository(self.tree, folder / "trust", lambda: self.now_s)
        self.ring = self.ring_of(self.keys)
        self.repository.begin(
            [self.key(f"root-{n}") for n in (1, 2, 3)],
            [self.key(f"targets-{n}") for n in (1, 2, 3)],
            self.key("snapshot"),
            self.key("timestamp"),
        )
        self.sign()

    def key(self, name: str) -> PublicKey:
        return make_key(self.keys / f"{name}.key", None)

    @staticmethod
    def ring_of(*places: Path) -> KeyRing:
        return KeyRing(places, lambda _: None)

    def sign(self, *names: str) -> Settled:
        """Sign with these keys, or all; then show what is complete."""
        ring = (
            self.ring_of(*(self.keys / f"{name}.key" for name in names))
            if names
            else self.ring
        )
        self.repository.signing.sign(ring)
        return self.repository.signing.settle(self.ring)

    def draft(self, model: str, version: str, content: bytes = b"") -> Seal:
        """Draft a version in its next epoch, and the way back from it."""
        named = self.repository.names(model)
        own = [each for each in named if not each.back]
        epochs = next_epochs(
            self.repository.last_epoch(model),
            way_back=bool(own),
        )
        seal = a_seal(model, version, epochs.own, content)
        seals = [(seal, False)]
        if epochs.way_back is not None:
            before = self.repository.seal(own[-1])
            signed = {"epoch": epochs.way_back, "way_back": True}
            seals.append((before.model_copy(update=signed), True))
        self.repository.draft_seals(model, seals)
        return seal

    def publish(self, model: str, version: str, content: bytes = b"") -> Seal:
        seal = self.draft(model, version, content)
        assert not self.sign().waiting
        return seal

    def root(self) -> bytes:
        return self.repository.published.root_json()


class Device:
    """An agent's trust: what it was given, what it has seen, and its clock."""

    def __init__(
        self, folder: Path, root_json: bytes, clock_s: Callable[[], float]
    ) -> None:
        self.folder = folder
        self.root_json = root_json
        self.clock_s = clock_s

    def look(
        self,
        *trees: FolderTree,
        target: str | None = None,
        elapsed_s: float = 0.0,
    ) -> Look:
        return look(
            self.root_json,
            self.folder,
            [(f"source{n}", tree.piece) for n, tree in enumerate(trees)],
            clock_s=self.clock_s(),
            elapsed_s=elapsed_s,
            target=target,
        )

    def believes(self, tree: FolderTree, elapsed_s: float = 0.0) -> None:
        """Refresh from this tree, or raise why not."""
        self.look(tree, elapsed_s=elapsed_s).check()

    def seal(self, trees: Sequence[FolderTree], seal: Seal) -> bytes | None:
        found = self.look(
            *trees, target=layout.seal_target(seal.name, seal.version, seal.epoch)
        )
        found.check()
        return found.target


def short(data: bytes) -> Callable[[str, int, int], Piece]:
    """A source that gives the same to every question."""
    return lambda _path, offset, length: Piece(
        data[offset : offset + length], len(data)
    )
