"""A registry's files in a folder, safe against a power cut.

Written by our own `bundle.durable` and not through obstore, whose local store renames
without a sync: after a power cut its files may be there and empty.
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Final

from bundle.durable import replacing, sync_folder, write_file
from bundle.source import NotThere, Piece
from bundle.tree import Leaf, check_path, read_whole

COPY_BYTES: Final = 1024 * 1024
# A sync waits for the disk, and disks take several at once.
WRITERS: Final = 8


class FolderTree:
    """A `Tree` in a folder; made by the first write, and may be missing for a reader.

    Args:
        root: the folder. Names in it that start with a dot are unfinished or of others.
    """

    def __init__(self, root: Path) -> None:
        self.root = root
        self.place = str(root)

    def piece(self, path: str, offset: int, length: int) -> Piece:
        """At most `length` bytes of a file from `offset` on; fewer only at its end.

        Raises:
            NotThere: no such file, or no path.
            OSError: it cannot be read now.
        """
        try:
            # No link is followed at the end, and no fifo is waited for.
            flags = os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC
            descriptor = os.open(self.root / check_path(path), flags)
        except ValueError as error:
            raise NotThere(str(error)) from error
        except (FileNotFoundError, NotADirectoryError) as error:
            raise NotThere(f"{path} is not in the registry") from error
        try:
            # Of one and the same file, even if it is replaced in between.
            total = os.fstat(descriptor).st_size
            data = os.pread(descriptor, min(length, max(0, total - offset)), offset)
        except IsADirectoryError as error:
            raise NotThere(f"{path} is a folder of the registry") from error
        finally:
            os.close(descriptor)
        return Piece(data, total)

    def read(self, path: str, *, max_bytes: int) -> bytes:
        """A whole file."""
        return read_whole(self, path, max_bytes)

    def size(self, path: str) -> int | None:
        """How many bytes a file has; None when there is none."""
        try:
            return self.piece(path, 0, 0).total_bytes
        except NotThere:
            return None

    def write(self, path: str, data: bytes, *, durable: bool = True) -> None:
        """Replace a file; readers see the old bytes or the new.

        Raises:
            ValueError: no path.
            OSError: the disk is full, or the folder cannot be written.
        """
        write_file(self._room_for(path, durable=durable), data, durable=durable)

    def write_copy(self, path: str, source: Path) -> None:
        """As `write`, in bounded memory."""
        there = self._room_for(path, durable=True)
        with source.open("rb") as reading, replacing(there) as writing:
            shutil.copyfileobj(reading, writing, COPY_BYTES)

    def write_all(self, files: Mapping[str, bytes], *, durable: bool = True) -> None:
        """As `write` of each, several at a time when each waits for the disk."""
        if not durable:
            for path, data in files.items():
                self.write(path, data, durable=False)
            return
        with ThreadPoolExecutor(WRITERS) as writers:
            # Consumed, so that the first error is raised.
            list(writers.map(lambda each: self.write(*each), files.items()))

    def list(self, folder: str = "") -> Iterator[Leaf]:
        """Every file below a folder, in no order; none when there is no such folder."""
        above = self.root / check_path(folder) if folder else self.root
        try:
            entries = list(os.scandir(above))
        except (FileNotFoundError, NotADirectoryError):
            return
        for entry in entries:
            path = f"{folder}/{entry.name}" if folder else entry.name
            if entry.name.startswith("."):
                continue
            if entry.is_dir():
                yield from self.list(path)
                continue
            try:
                stat = entry.stat()
            except FileNotFoundError:
                continue  # Removed since the folder was read.
            yield Leaf(path, stat.st_size, stat.st_mtime_ns // 1_000_000)

    def names(self, folder: str) -> Sequence[str]:
        """The names of the files in a folder, sorted."""
        try:
            return sorted(
                each.name
                for each in os.scandir(self.root / check_path(folder))
                if not each.name.startswith(".") and each.is_file()
            )
        except (FileNotFoundError, NotADirectoryError):
            return []

    def delete(self, path: str) -> None:
        """Remove a file; none is there afterwards, also when none was before."""
        there = self.root / check_path(path)
        there.unlink(missing_ok=True)
        if there.parent.is_dir():
            sync_folder(there.parent)

    def _room_for(self, path: str, *, durable: bool) -> Path:
        """Where the file will be; its folders are made, and survive a power cut."""
        there = self.root / check_path(path)
        if there.parent.is_dir():
            return there
        made = [each for each in there.parents if not each.exists()]
        there.parent.mkdir(parents=True, exist_ok=True)
        if durable:
            for each in reversed(made):
                sync_folder(each.parent)
        return there
