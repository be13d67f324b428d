"""Where published bundles lie: a folder that one process writes and many read.

    bundles/{name}/{version}/bundle.tar, seal.json
    desired/{agent}

A version is a folder renamed into its place, so a reader sees all of it or none.
It never changes: publishing the same again is nothing new, publishing other bytes
under its name is refused. Names that start with a dot are unfinished or internal.
"""

from __future__ import annotations

import fcntl
import os
import re
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Final

import structlog

from bundle.durable import (
    PART_SUFFIX,
    part_beside,
    replacing,
    sync_folder,
    write_file,
)
from bundle.seal import (
    MAX_SEAL_BYTES,
    Seal,
    SealRejected,
    read_unverified,
    verify_packed,
)

PACKED_FILE: Final = "bundle.tar"
SEAL_FILE: Final = "seal.json"
MAX_DESIRED_BYTES: Final = 4 * 1024 * 1024
MAX_REMEMBERED: Final = 256
COPY_BYTES: Final = 1024 * 1024
_NAME: Final = re.compile(r"[a-z0-9][a-z0-9_-]{0,63}\Z")
_VERSION: Final = re.compile(r"[a-z0-9][a-z0-9._-]{0,63}\Z")

log = structlog.get_logger(__name__)


class NotFound(LookupError):
    """The store does not hold what was asked for."""


class AlreadyPublished(ValueError):
    """This name and version is taken by other bytes."""


class BundleStore:
    """A folder of published bundles and desired documents. Every call blocks.

    Args:
        root: the folder; made by the first write, and may be missing for a reader.
    """

    def __init__(self, root: Path) -> None:
        self._root = root
        self._bundles = root / "bundles"
        self._desired = root / "desired"
        self._remembered: dict[Path, tuple[tuple[int, int], Seal]] = {}

    def publish(self, packed: Path, seal: bytes) -> bool:
        """Take a packed bundle and its signed seal.

        Publishing the same bytes again is no error; a seal signed anew (by another
        key, say) then takes the old one's place, and what the disk damaged is mended.

        Returns:
            True if this version is new, False if the same was published before.

        Raises:
            AlreadyPublished: other bytes have this name and version.
            SealRejected: the seal is malformed or does not fit the file.
            OSError: the disk is full, or the folder cannot be written.
        """
        claimed = read_unverified(seal)
        verify_packed(packed, claimed)
        folder = self._bundles / claimed.name / claimed.version
        folder.parent.mkdir(parents=True, exist_ok=True)
        with self._writing():
            _sweep(folder.parent)
            if folder.exists():
                self._publish_again(folder, packed, claimed, seal)
                return False
            part = part_beside(folder)
            part.mkdir()
            _copy(packed, part / PACKED_FILE)
            # What lies in the store was checked there: the source may have changed.
            verify_packed(part / PACKED_FILE, claimed)
            write_file(part / SEAL_FILE, seal)
            part.rename(folder)
            sync_folder(folder.parent)
            sync_folder(folder.parent.parent)
        return True

    def list(self) -> list[Seal]:
        """What is published, by name and version; signatures are **not verified**.

        A version whose seal is damaged is left out, and said in the log.
        """
        found: list[Seal] = []
        for name in _entries(self._bundles, _NAME):
            for version in _entries(self._bundles / name, _VERSION):
                try:
                    found.append(self._seal(name, version))
                except NotFound:
                    log.error(
                        "a published version cannot be read: publish it again",
                        name=name,
                        version=version,
                    )
        return found

    def read_seal(self, name: str, version: str) -> bytes:
        """The signed seal of a version.

        Raises:
            NotFound: no such version.
        """
        path = self._folder(name, version) / SEAL_FILE
        try:
            return _read_bounded(path, MAX_SEAL_BYTES)
        except OSError as error:
            raise NotFound(f"{name} {version} is not in the registry") from error

    def read_chunk(self, name: str, version: str, index: int) -> bytes:
        """Chunk `index` of a version's packed file.

        Raises:
            NotFound: no such version, or it has no such chunk.
        """
        folder = self._folder(name, version)
        try:
            offset, length = self._seal(name, version).chunk_span(index)
        except SealRejected as error:
            raise NotFound(str(error)) from error
        try:
            with (folder / PACKED_FILE).open("rb") as file:
                data = os.pread(file.fileno(), length, offset)
        except OSError as error:
            raise NotFound(f"{name} {version} is not in the registry") from error
        if len(data) != length:
            raise NotFound(f"chunk {index} of {name} {version} is cut short on disk")
        return data

    def write_desired(self, agent: str, data: bytes) -> None:
        """Replace what `agent` should serve.

        Raises:
            ValueError: the agent's name is not valid, or `data` too long.
            OSError: the disk is full, or the folder cannot be written.
        """
        if _NAME.match(agent) is None:
            raise ValueError(f"agent {agent[:80]!r} is not a valid id")
        if len(data) > MAX_DESIRED_BYTES:
            raise ValueError(f"{len(data)} bytes is over {MAX_DESIRED_BYTES}")
        self._desired.mkdir(parents=True, exist_ok=True)
        write_file(self._desired / agent, data)

    def read_desired(self, agent: str) -> bytes | None:
        """What `agent` should serve; None when nothing was ever desired of it.

        Raises:
            NotFound: the agent's name is not valid.
        """
        if _NAME.match(agent) is None:
            raise NotFound(f"agent {agent[:80]!r} is not a valid id")
        try:
            return _read_bounded(self._desired / agent, MAX_DESIRED_BYTES)
        except FileNotFoundError:
            return None

    def _publish_again(
        self, folder: Path, packed: Path, claimed: Seal, seal: bytes
    ) -> None:
        if not self._holds(folder, claimed):
            # The same version, damaged on the disk: this makes it whole.
            _copy(packed, folder / PACKED_FILE)
            verify_packed(folder / PACKED_FILE, claimed)
        try:
            same = _read_bounded(folder / SEAL_FILE, MAX_SEAL_BYTES) == seal
        except OSError:
            same = False
        if not same:
            write_file(folder / SEAL_FILE, seal)

    def _holds(self, folder: Path, claimed: Seal) -> bool:
        """Whether the packed file of a published version is what is claimed.

        Raises:
            AlreadyPublished: the version is another.
        """
        try:
            taken = self._seal(claimed.name, claimed.version).sha256
        except NotFound:
            taken = None
        if taken is not None and taken != claimed.sha256:
            raise AlreadyPublished(
                f"{claimed.name} {claimed.version} is published with other contents "
                f"(digest {taken[:16]}…, this is {claimed.sha256[:16]}…): "
                "give this one a new version"
            )
        try:
            verify_packed(folder / PACKED_FILE, claimed)
        except (SealRejected, OSError):
            if taken is None:
                raise AlreadyPublished(
                    f"{folder} is damaged and was not this: give this one a new version"
                ) from None
            return False
        return True

    def _seal(self, name: str, version: str) -> Seal:
        """The parsed seal, remembered until its file changes."""
        path = self._folder(name, version) / SEAL_FILE
        try:
            stat = path.stat()
            state = (stat.st_ino, stat.st_mtime_ns)
            remembered = self._remembered.get(path)
            if remembered is not None and remembered[0] == state:
                return remembered[1]
            seal = read_unverified(_read_bounded(path, MAX_SEAL_BYTES))
        except (OSError, SealRejected) as error:
            raise NotFound(f"{name} {version} is not in the registry") from error
        if len(self._remembered) >= MAX_REMEMBERED:
            self._remembered.clear()
        self._remembered[path] = (state, seal)
        return seal

    def _folder(self, name: str, version: str) -> Path:
        # Names come from the wire: nothing but these may become a path.
        if _NAME.match(name) is None or _VERSION.match(version) is None:
            raise NotFound(f"{name[:80]!r} {version[:80]!r} is not a valid name")
        return self._bundles / name / version

    @contextmanager
    def _writing(self) -> Iterator[None]:
        with (self._root / ".lock").open("a") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)
            yield


def _entries(folder: Path, pattern: re.Pattern[str]) -> list[str]:
    try:
        names = [each.name for each in folder.iterdir()]
    except (FileNotFoundError, NotADirectoryError):
        return []
    return sorted((name for name in names if pattern.match(name)), key=_natural)


def _natural(name: str) -> list[tuple[bool, int, str]]:
    """`10` comes after `9`, `1.10` after `1.9`."""
    return [
        (not part.isdigit(), int(part) if part.isdigit() else 0, part)
        for part in re.findall(r"[0-9]+|[^0-9]+", name)
    ]


def _sweep(folder: Path) -> None:
    """Remove what a publisher that died left behind; the lock is held."""
    for each in folder.glob(f".*{PART_SUFFIX}"):
        shutil.rmtree(each, ignore_errors=True)


def _copy(source: Path, dest: Path) -> None:
    with source.open("rb") as reading, replacing(dest) as writing:
        shutil.copyfileobj(reading, writing, COPY_BYTES)


def _read_bounded(path: Path, max_bytes: int) -> bytes:
    with path.open("rb") as file:
        data = file.read(max_bytes + 1)
    if len(data) > max_bytes:
        raise OSError(f"{path} is over {max_bytes} bytes")
    return data
