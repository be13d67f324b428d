"""A registry's files in a folder, safe against a power cut.

Written by our own `bundle.durable` and not through obstore, whose local store renames
without a sync: after a power cut its files may be there and empty.
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Final

from bundle.durable import replacing, sync_folder, write_file
from bundle.source import NotThere, Piece
from bundle.tree import Leaf, check_path

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

    def read(self, path: str, offset: int, length: int) -> Piece:
        """At most `length` bytes of a file from `offset` on; fewer only at its end.

        Raises:
            NotThere: no such file, or no path.
            OSError: it cannot be read now.
        """
        try:
            with (self.root / check_path(path)).open("rb") as file:
                # Of one and the same file, even if it is replaced in between.
                total = os.fstat(file.fileno()).st_size
                data = os.pread(
                    file.fileno(), min(length, max(0, total - offset)), offset
                )
        except (FileNotFoundError, NotADirectoryError, IsADirectoryError) as error:
            raise NotThere(f"{path} is not in the registry") from error
        except ValueError as error:
            raise NotThere(str(error)) from error
        return Piece(data, total)

    def put(self, path: str, data: bytes, *, durable: bool = True) -> None:
        """Replace a file; readers see the old bytes or the new.

        Raises:
            ValueError: no path.
            OSError: the disk is full, or the folder cannot be written.
        """
        write_file(self._room_for(path, durable=durable), data, durable=durable)

    def put_file(self, path: str, source: Path) -> None:
        """As `put`, in bounded memory."""
        there = self._room_for(path, durable=True)
        with source.open("rb") as reading, replacing(there) as writing:
            shutil.copyfileobj(reading, writing, COPY_BYTES)

    def put_all(self, files: Mapping[str, bytes], *, durable: bool = True) -> None:
        """As `put` of each, several at a time when each waits for the disk."""
        if not durable:
            for path, data in files.items():
                self.put(path, data, durable=False)
            return
        with ThreadPoolExecutor(WRITERS) as writers:
            # Consumed, so that the first error is raised.
            list(writers.map(lambda each: self.put(*each), files.items()))

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
