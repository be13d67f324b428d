"""The files of a registry, by path (`bundle.layout`): one port, over a folder or a bucket.

A file appears whole or not at all. Every call blocks.
"""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Final, Protocol

from bundle.durable import replacing, sync_folder, write_file
from bundle.source import NotThere, Piece

COPY_BYTES: Final = 1024 * 1024


class Tree(Protocol):
    """Files by path, as an operator writes and reads them."""

    def read(self, path: str, *, max_bytes: int) -> bytes:
        """A whole file.

        Raises:
            NotThere: no such file.
            OSError: it cannot be read, or is longer than `max_bytes`.
        """
        ...

    def write(self, path: str, data: bytes) -> None:
        """Put a small file in its place, or replace it.

        Raises:
            OSError: it cannot be written.
        """
        ...

    def write_copy(self, path: str, source: Path) -> None:
        """Put a copy of a local file in its place.

        Raises:
            OSError: it cannot be read or written.
        """
        ...

    def names(self, folder: str) -> list[str]:
        """The names of the files in a folder; none when there is no such folder."""
        ...


class FolderTree:
    """A registry in a folder; made by the first write."""

    def __init__(self, root: Path) -> None:
        self._root = root

    def read(self, path: str, *, max_bytes: int) -> bytes:
        """A whole file."""
        try:
            with self._path(path).open("rb") as file:
                data = file.read(max_bytes + 1)
        except (FileNotFoundError, NotADirectoryError, IsADirectoryError) as error:
            raise NotThere(f"there is no {path} in {self._root}") from error
        if len(data) > max_bytes:
            raise OSError(f"{path} in {self._root} is over {max_bytes} bytes")
        return data

    def write(self, path: str, data: bytes) -> None:
        """Put a small file in its place, or replace it."""
        write_file(self._made(path), data)

    def write_copy(self, path: str, source: Path) -> None:
        """Put a copy of a local file in its place."""
        with source.open("rb") as reading, replacing(self._made(path)) as writing:
            shutil.copyfileobj(reading, writing, COPY_BYTES)

    def names(self, folder: str) -> list[str]:
        """The names of the files in a folder."""
        try:
            return sorted(
                each.name
                for each in self._path(folder).iterdir()
                # A dot marks what is being written.
                if each.is_file() and not each.name.startswith(".")
            )
        except (FileNotFoundError, NotADirectoryError):
            return []

    def piece(self, path: str, offset: int, length: int) -> Piece:
        """A range of a file, as `bundle.source.Source.read` gives it.

        Raises:
            NotThere: no such file.
            OSError: it cannot be read.
        """
        try:
            with self._path(path).open("rb") as file:
                total = file.seek(0, 2)
                file.seek(min(offset, total))
                return Piece(file.read(length), total)
        except (FileNotFoundError, NotADirectoryError, IsADirectoryError) as error:
            raise NotThere(f"there is no {path} in {self._root}") from error

    def _path(self, path: str) -> Path:
        parts = path.split("/")
        if any(part in {"", ".", ".."} or "\0" in part for part in parts):
            raise NotThere(f"{path[:80]!r} is no path of a registry")
        return self._root.joinpath(*parts)

    def _made(self, path: str) -> Path:
        made = self._path(path)
        missing = []
        folder = made.parent
        while not folder.exists():
            missing.append(folder)
            folder = folder.parent
        for each in reversed(missing):
            each.mkdir(exist_ok=True)
            sync_folder(each.parent)
        return made
