"""The disk of a pretended device: real files while they are pulled, then only names.

What was pulled is read back from the disk and verified to the byte, as an agent does
it. Unpacked bundles are the same on every device, so a process keeps one of each.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping
from pathlib import Path
from threading import Lock
from typing import Any, Final

from typing_extensions import override

from broker.messages import UpdatePolicy
from bundle.pack import BundleRejected, pack
from bundle.seal import CHUNK_BYTES, Seal, make_seal, verify_packed
from edge_agent.adapters.model_store import REPACKED, ModelStore, StoredBundle
from edge_agent.adapters.part_file import PART_SUFFIX
from edge_agent.core.slots import Slots
from edge_agent.loops.fetching import FetchSettings
from edge_agent.loops.pulling import Puller

PLENTY_BYTES: Final = 8 * 1024**3
# Asked once more than a window holds, whether to leave off: something is written then.
ASKS_BEFORE_DAMAGE: Final = FetchSettings().window + 1
DAMAGED: Final = b"bad flash"


class Unpacked:
    """One unpacked bundle of each version, and one packed, for a process's devices."""

    def __init__(self, folder: Path) -> None:
        self._alone = Lock()
        self._folder = folder
        self._store = ModelStore(folder)
        self._store.prepare()
        self._kept: dict[str, StoredBundle] = {}
        self._packed: dict[tuple[str, str], Path] = {}

    def take(self, packed: Path, seal: Seal) -> StoredBundle:
        """The unpacked bundle of a file that was verified."""
        with self._alone:  # devices install in threads
            if seal.sha256 not in self._kept:
                self._kept[seal.sha256] = self._store.install(packed, seal)
                self._keep(packed, seal.name, seal.version)
            return self._kept[seal.sha256]

    def bundle(self, sha256: str) -> StoredBundle:
        """One that some device unpacked."""
        return self._kept[sha256]

    def packed(self, model: str, version: str) -> Path:
        """The packed file of one."""
        return self._packed[model, version]

    def provision(self, source_dir: Path) -> Seal:
        """Take in the bundle that all devices come with; gives what it would be sealed."""
        packed = self._folder / "provisioned.tar"
        manifest = pack(source_dir, packed)
        seal = make_seal(packed, manifest.name, manifest.version)
        self.take(packed, seal)
        return seal

    def _keep(self, packed: Path, model: str, version: str) -> None:
        kept = self._folder / f"{model}+{version}.tar"
        kept.unlink(missing_ok=True)
        os.link(packed, kept)
        self._packed[model, version] = kept


class Flash(ModelStore):
    """What one device keeps.

    Attributes:
        free: what the disk has left, as the device sees it.
        damages: how many more pulls lose a chunk; below 0: each.
    """

    def __init__(
        self, folder: Path, unpacked: Unpacked, provisioned: Seal | None
    ) -> None:
        super().__init__(folder)
        self.free = PLENTY_BYTES
        self.damages = 0
        self._unpacked = unpacked
        self._held: dict[str, str] = {}
        if provisioned is not None:
            self._held[provisioned.version] = provisioned.sha256
        self._slots: dict[str, str] = {}
        self._accounts: dict[str, dict[str, Any]] = {}

    @override
    def prepare(self) -> None:
        self.parts.mkdir(parents=True, exist_ok=True)

    @override
    def slots(self) -> dict[str, Slots]:
        return {
            model: Slots.from_json(text).interrupted()
            for model, text in self._slots.items()
        }

    @override
    def save(self, slots: Slots) -> None:
        self._slots[slots.model] = slots.to_json()

    @override
    def account(self, model: str) -> dict[str, Any]:
        return self._accounts.get(model, {})

    @override
    def save_account(self, model: str, state: Mapping[str, Any]) -> None:
        self._accounts[model] = dict(state)

    @override
    def forget_account(self, model: str) -> None:
        self._accounts.pop(model, None)

    @override
    def holds(self, seal: Seal) -> StoredBundle | None:
        if self._held.get(seal.version) != seal.sha256:
            return None
        return self._unpacked.bundle(seal.sha256)

    @override
    def repacked(self, model: str, version: str | None) -> Path | None:
        if version is None or version not in self._held:
            return None
        link = self.parts / f"{REPACKED}{model}+{version}"
        link.unlink(missing_ok=True)
        os.link(self._unpacked.packed(model, version), link)
        return link

    @override
    def bundle(self, model: str, version: str) -> StoredBundle:
        sha256 = self._held.get(version)
        if sha256 is None:
            raise BundleRejected(f"model {model} {version} is not on this device")
        return self._unpacked.bundle(sha256)

    @override
    def install(self, packed: Path, seal: Seal) -> StoredBundle:
        verify_packed(packed, seal)
        stored = self._unpacked.take(packed, seal)
        self._held[seal.version] = seal.sha256
        return stored

    @override
    def collect(self, slots: Slots) -> None:
        keep = {slots.active, slots.previous, slots.staged}
        self._held = {name: sha for name, sha in self._held.items() if name in keep}

    @override
    def free_bytes(self) -> int:
        return self.free


class FlashPulls:
    """The agent's real puller, onto a flash that may lose what was written."""

    def __init__(self, puller: Puller, flash: Flash) -> None:
        self._puller = puller
        self._flash = flash

    async def pull(
        self,
        seal: Seal,
        base: Path | None,
        *,
        policy: UpdatePolicy,
        superseded: Callable[[], bool],
        progress: Callable[[int, int], None] = lambda _done, _total: None,
    ) -> Path:
        """As `Puller.pull`."""
        asks = ASKS_BEFORE_DAMAGE

        def spoil() -> bool:
            nonlocal asks
            asks -= 1
            if asks == 0 and self._flash.damages:
                self._flash.damages -= 1
                _damage(self._flash.parts)
            return superseded()

        return await self._puller.pull(
            seal, base, policy=policy, superseded=spoil, progress=progress
        )


def _damage(folder: Path) -> None:
    """Change a few bytes of what is unfinished; chunks still to come are not hurt."""
    for part in folder.glob(f"*{PART_SUFFIX}"):
        with part.open("r+b") as file:
            for offset in range(0, part.stat().st_size, CHUNK_BYTES):
                file.seek(offset)
                file.write(DAMAGED)
