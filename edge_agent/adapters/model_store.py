"""The agent's models on disk: unpacked bundles, and which of them is active.

`models/{name}/slots.json` is replaced atomically and synced, so a crash at any point
leaves a verified version named there. Blocking: callers use a thread.
"""

from __future__ import annotations

import hashlib
import os
import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import structlog

from bundle.durable import write_file
from bundle.manifest import MANIFEST_FILE, Manifest, ManifestError, parse_manifest
from bundle.pack import BundleRejected, pack, read_manifest, unpack
from bundle.seal import Seal, SealRejected, open_seal, verify_packed
from bundle.trust import TrustedKeys
from edge_agent.core.slots import BadSlots, Slots, State

log = structlog.get_logger(__name__)

SLOTS_FILE: Final = "slots.json"
SEAL_SUFFIX: Final = ".seal"


@dataclass(frozen=True, slots=True)
class StoredBundle:
    """A verified bundle in its folder."""

    folder: Path
    manifest: Manifest

    @property
    def model_path(self) -> Path:
        """The model file."""
        return self.folder / self.manifest.model_file


class ModelStore:
    """Bundles under one folder."""

    def __init__(self, root: Path) -> None:
        self._root = root

    def prepare(self) -> None:
        """Make the folder and clear what a crash left half done."""
        self._root.mkdir(parents=True, exist_ok=True)
        self.parts.mkdir(exist_ok=True)
        for left in (*self._root.glob("*/.*"), *self.parts.glob("provision-*")):
            if left.is_dir():
                shutil.rmtree(left, ignore_errors=True)
            else:
                left.unlink(missing_ok=True)

    @property
    def parts(self) -> Path:
        """Where unfinished pulls wait."""
        return self._root / ".parts"

    def part(self, seal: Seal) -> Path:
        """Where the unfinished pull of one bundle waits."""
        # No name or version holds a plus sign, so none looks like two of another's.
        return self.parts / f"{seal.name}+{seal.version}+{seal.sha256[:16]}"

    def drop_parts(self, model: str, version: str) -> None:
        """Delete what was pulled of a version that was refused."""
        for left in self.parts.glob(f"{model}+{version}+*"):
            left.unlink(missing_ok=True)

    def slots(self) -> dict[str, Slots]:
        """The slots of every model; a damaged file is reported and counts as empty."""
        found: dict[str, Slots] = {}
        for path in sorted(self._root.glob(f"*/{SLOTS_FILE}")):
            try:
                slots = Slots.from_json(path.read_bytes()).interrupted()
            except (OSError, BadSlots) as error:
                log.error("slots_unreadable", path=str(path), error=str(error))
                continue
            found[slots.model] = slots
        return found

    def save(self, slots: Slots) -> None:
        """Write the slots of one model, durably."""
        folder = self._root / slots.model
        folder.mkdir(parents=True, exist_ok=True)
        write_file(folder / SLOTS_FILE, slots.to_json().encode())

    def bundle(self, model: str, version: str) -> StoredBundle:
        """A stored bundle, checked against its own manifest.

        Raises:
            BundleRejected: it is not there, or something of it is damaged.
        """
        folder = self._root / model / version
        try:
            manifest = parse_manifest((folder / MANIFEST_FILE).read_bytes())
            damaged = [
                name
                for name, entry in manifest.files.items()
                if _sha256(folder / name) != entry.sha256
            ]
        except (OSError, ManifestError) as error:
            raise BundleRejected(
                f"model {model} {version} cannot be read from {folder}: {error}"
            ) from error
        if damaged:
            # A damaged model could take the whole process with it.
            raise BundleRejected(f"{damaged[0]} in {folder} is damaged")
        return StoredBundle(folder, manifest)

    def install(self, packed: Path, seal: Seal) -> StoredBundle:
        """Verify a pulled bundle against its seal and unpack it.

        Raises:
            SealRejected, BundleRejected: it is not what was sealed.
            OSError: the disk is full.
        """
        verify_packed(packed, seal)
        return self._unpack(packed, seal.name, seal.version, seal)

    def peek(self, path: Path) -> Manifest:
        """The manifest of a folder or packed file, before anything is taken in.

        Raises:
            BundleRejected: there is none, or it is bad.
        """
        if not path.is_dir():
            try:
                return read_manifest(path)
            except OSError as error:
                raise BundleRejected(
                    f"no bundle at {path}: {error.strerror}"
                ) from error
        try:
            return parse_manifest((path / MANIFEST_FILE).read_bytes())
        except (OSError, ManifestError) as error:
            raise BundleRejected(f"no bundle in {path}: {error}") from error

    def provision(self, path: Path, trusted: TrustedKeys) -> StoredBundle:
        """Take in a bundle that came with the agent: a folder, or a packed file.

        A packed file needs its seal beside it (`NAME.seal`) once there are trusted
        keys; a folder is as trusted as the agent's own configuration.

        Raises:
            SealRejected, BundleRejected: it cannot be used; says why.
        """
        if path.is_dir():
            packed = self.parts / f"provision-{os.getpid()}"
            try:
                manifest = pack(path, packed)
                return self._unpack(packed, manifest.name, manifest.version, None)
            finally:
                packed.unlink(missing_ok=True)
        seal_path = path.with_name(path.name + SEAL_SUFFIX)
        try:
            seal = open_seal(seal_path.read_bytes(), trusted)
        except OSError as error:
            raise SealRejected(
                f"bundle {path} has no readable seal {seal_path.name} beside it"
            ) from error
        return self.install(path, seal)

    def _unpack(
        self, packed: Path, name: str, version: str, seal: Seal | None
    ) -> StoredBundle:
        dest = self._root / name / version
        if version == SLOTS_FILE:
            raise BundleRejected(f"a version cannot be named {version}")
        dest.parent.mkdir(parents=True, exist_ok=True)
        if dest.exists():
            shutil.rmtree(dest)
        return StoredBundle(dest, unpack(packed, dest, seal=seal))

    def collect(self, slots: Slots) -> None:
        """Delete the versions of a model that no slot names."""
        keep = {slots.active, slots.previous}
        if slots.state is not State.REFUSED:
            keep.add(slots.staged)
        folder = self._root / slots.model
        for each in folder.iterdir():
            if each.is_dir() and each.name not in keep:
                shutil.rmtree(each, ignore_errors=True)

    def free_bytes(self) -> int:
        """Free space on the disk."""
        return shutil.disk_usage(self._root).free


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
