"""The disk of a pretended device: real files while they are pulled, then only a name.

What was pulled is read back from the disk and verified to the byte, as an agent does
it. Unpacked bundles are the same on every device, so a process keeps one of each.
"""

from __future__ import annotations

from pathlib import Path
from typing import Final

from typing_extensions import override

from bundle.seal import Seal, verify_packed
from edge_agent.adapters.model_store import ModelStore, StoredBundle
from edge_agent.core.slots import Slots

PLENTY_BYTES: Final = 8 * 1024**3


class Unpacked:
    """One unpacked bundle of each digest, for all devices of a process."""

    def __init__(self, folder: Path) -> None:
        self._store = ModelStore(folder)
        self._store.prepare()
        self._kept: dict[str, StoredBundle] = {}

    def take(self, packed: Path, seal: Seal) -> StoredBundle:
        """The unpacked bundle of a file that was verified."""
        if seal.sha256 not in self._kept:
            self._kept[seal.sha256] = self._store.install(packed, seal)
        return self._kept[seal.sha256]

    def find(self, model: str, version: str) -> StoredBundle:
        """One that some device unpacked, or was provisioned with.

        Raises:
            BundleRejected: none did.
        """
        return self._store.bundle(model, version)

    def provision(self, source_dir: Path) -> StoredBundle:
        """Take in the bundle that all devices come with."""
        return self._store.provision(source_dir, {})


class Flash(ModelStore):
    """What one device keeps.

    Attributes:
        free: what the disk has left, as the device sees it.
        damages: how many more chunks are damaged as they are written; below 0: each.
    """

    def __init__(self, folder: Path, unpacked: Unpacked) -> None:
        super().__init__(folder)
        self.free = PLENTY_BYTES
        self.damages = 0
        self._unpacked = unpacked
        self._saved: dict[str, str] = {}

    @override
    def prepare(self) -> None:
        self.parts.mkdir(parents=True, exist_ok=True)

    @override
    def slots(self) -> dict[str, Slots]:
        return {
            model: Slots.from_json(text).interrupted()
            for model, text in self._saved.items()
        }

    @override
    def save(self, slots: Slots) -> None:
        self._saved[slots.model] = slots.to_json()

    @override
    def bundle(self, model: str, version: str) -> StoredBundle:
        return self._unpacked.find(model, version)

    @override
    def install(self, packed: Path, seal: Seal) -> StoredBundle:
        if self.damages:
            self.damages -= 1
            _damage(packed)
        verify_packed(packed, seal)
        return self._unpacked.take(packed, seal)

    @override
    def collect(self, slots: Slots) -> None:
        """Nothing: what is unpacked belongs to all."""

    @override
    def free_bytes(self) -> int:
        return self.free


def _damage(file: Path) -> None:
    with file.open("r+b") as opened:
        opened.seek(file.stat().st_size // 2)
        opened.write(b"\0flash")
