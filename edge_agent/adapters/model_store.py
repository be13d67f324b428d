"""The agent's models on disk: unpacked bundles, and which of them is active.

`models/{name}/slots.json` is replaced atomically and synced, so a crash at any point
leaves a verified version named there. Blocking: callers use a thread.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import shutil
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import structlog

from bundle.durable import part_beside, write_file
from bundle.manifest import MANIFEST_FILE, Manifest, ManifestError, parse_manifest
from bundle.pack import BundleRejected, pack, read_manifest, unpack
from bundle.seal import Seal, SealRejected, verify_packed
from edge_agent.core.slots import BadSlots, Slots, State

log = structlog.get_logger(__name__)

SLOTS_FILE: Final = "slots.json"
ACCOUNT_FILE: Final = "probation.json"
MAX_ACCOUNT_BYTES: Final = 1024 * 1024
PROVISIONED: Final = "provision-"
REPACKED: Final = "repacked-"
# A refusal or a return leaves the name of what will not serve, and none of its files.
_GONE: Final = (State.REFUSED, State.RETURNED)


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
        for left in (
            *self._root.glob("*/.*"),
            *self.parts.glob(f"{PROVISIONED}*"),
            *self.parts.glob(f"{REPACKED}*"),
        ):
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

    def keep_parts(self, seal: Seal) -> None:
        """Delete what was pulled of a model, but for this bundle of it."""
        kept = self.part(seal).name
        for left in self.parts.glob(f"{seal.name}+*"):
            if not left.name.startswith(kept):
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

    def account(self, model: str) -> dict[str, Any]:
        """What was counted of a probation; nothing when it cannot be read."""
        try:
            with (self._root / model / ACCOUNT_FILE).open("rb") as file:
                found = json.loads(file.read(MAX_ACCOUNT_BYTES))
        except FileNotFoundError:
            return {}
        except (OSError, ValueError, RecursionError) as error:
            log.warning("probation_counts_unreadable", model=model, error=str(error))
            return {}
        return found if isinstance(found, dict) else {}

    def save_account(self, model: str, state: Mapping[str, Any]) -> None:
        """Note what is counted of a probation.

        Raises:
            OSError: the disk is full, or the folder cannot be written.
        """
        data = json.dumps(state, allow_nan=False).encode()
        write_file(self._root / model / ACCOUNT_FILE, data)

    def forget_account(self, model: str) -> None:
        """The probation is over."""
        with contextlib.suppress(OSError):
            (self._root / model / ACCOUNT_FILE).unlink(missing_ok=True)

    def holds(self, seal: Seal) -> StoredBundle | None:
        """The sealed bundle, if it is on the disk already: to the byte, as sealed.

        Raises:
            OSError: there is no room to find out.
        """
        packed = self.repacked(seal.name, seal.version)
        if packed is None:
            return None
        try:
            verify_packed(packed, seal)
            return self.bundle(seal.name, seal.version)
        except (SealRejected, BundleRejected):
            return None
        finally:
            packed.unlink(missing_ok=True)

    def repacked(self, model: str, version: str | None) -> Path | None:
        """A stored version as it was when it came: packing is the same every time.

        Returns:
            A file that the caller deletes; None when the version is not there, or is
            damaged.

        Raises:
            OSError: there is no room for it.
        """
        if version is None or not (self._root / model / version).is_dir():
            return None
        packed = self.parts / f"{REPACKED}{model}+{version}+{os.getpid()}"
        try:
            self.bundle(model, version)
            pack(self._root / model / version, packed)
        except BundleRejected as error:
            log.warning("stored_bundle_damaged", model=model, reason=str(error))
            return None
        return packed

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

    def provision(self, path: Path, seal: Seal | None = None) -> StoredBundle:
        """Take in a bundle that came with the agent: a folder, or a packed file.

        Args:
            path: of it.
            seal: what was signed of it; None: it is as trusted as the agent's own
                configuration, which names it.

        Raises:
            BundleRejected: it cannot be used; says why.
        """
        packed = self.parts / f"{PROVISIONED}{os.getpid()}"
        try:
            if path.is_dir():
                manifest = pack(path, packed)
            else:
                manifest = self.peek(path)
                # What is verified is what is unpacked, whoever may write there.
                shutil.copyfile(path, packed)
            if seal is not None:
                verify_packed(packed, seal)
            return self._unpack(packed, manifest.name, manifest.version, seal)
        except SealRejected as error:
            raise BundleRejected(f"{path} is not what was signed: {error}") from error
        finally:
            packed.unlink(missing_ok=True)

    def _unpack(
        self, packed: Path, name: str, version: str, seal: Seal | None
    ) -> StoredBundle:
        dest = self._root / name / version
        if version in (SLOTS_FILE, ACCOUNT_FILE):
            raise BundleRejected(f"a version cannot be named {version}")
        dest.parent.mkdir(parents=True, exist_ok=True)
        if dest.exists():
            _discard(dest)
        return StoredBundle(dest, unpack(packed, dest, seal=seal))

    def collect(self, slots: Slots) -> None:
        """Delete the versions of a model that no slot names."""
        keep = {slots.active, slots.previous}
        if slots.state not in _GONE:
            keep.add(slots.staged)
        folder = self._root / slots.model
        if not folder.is_dir():
            return
        for each in list(folder.iterdir()):
            if each.is_dir() and each.name not in keep:
                with contextlib.suppress(OSError):  # The next one finds it again.
                    _discard(each)

    def free_bytes(self) -> int:
        """Free space on the disk."""
        return shutil.disk_usage(self._root).free


def _discard(folder: Path) -> None:
    """Delete a version's folder, so that no crash leaves half of it under its name."""
    gone = part_beside(folder)
    folder.rename(gone)
    shutil.rmtree(gone, ignore_errors=True)


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
