"""Where a registry's files lie: one port, in a folder or in a bucket.

A file appears whole or not at all. Paths are those of `bundle.layout`; nothing else
may become one, because they come from the wire. Every call blocks, and ends.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final, Protocol

from bundle.source import Piece

MAX_PATH: Final = 300
MAX_DEPTH: Final = 6
_PART: Final = re.compile(r"[A-Za-z0-9_-][A-Za-z0-9._-]*\Z")


class BadPlace(ValueError):
    """Where a registry is to be cannot be read, or not with what is installed."""


class TreeUnavailable(OSError):
    """A store that is not a folder cannot be used now; says which and what to do.

    An `OSError`, so that who handles a full disk handles this as well.
    """


@dataclass(frozen=True, slots=True)
class Leaf:
    """A file of a tree. `changed_ms` is Unix time by the store's own clock."""

    path: str
    size_bytes: int
    changed_ms: int


class Tree(Protocol):
    """Files by path."""

    place: str
    """Where it is, for people; without secrets."""

    def piece(self, path: str, offset: int, length: int) -> Piece:
        """At most `length` bytes of a file from `offset` on; fewer only at its end.

        Raises:
            NotThere: no such file, or no path.
            OSError: it cannot be read now.
        """
        ...

    def read(self, path: str, *, max_bytes: int) -> bytes:
        """A whole file.

        Raises:
            NotThere: no such file, or no path.
            OSError: it cannot be read now, or is longer than `max_bytes`.
        """
        ...

    def size(self, path: str) -> int | None:
        """How many bytes a file has; None when there is none.

        Raises:
            OSError: it cannot be read now.
        """
        ...

    def write(self, path: str, data: bytes, *, durable: bool = True) -> None:
        """Replace a file; readers see the old bytes or the new.

        Args:
            path: where.
            data: all of it.
            durable: whether it must survive a power cut of the machine that keeps a
                folder; without, it is for what is made again from elsewhere.

        Raises:
            ValueError: no path.
            OSError: the disk is full, or it cannot be written now.
        """
        ...

    def write_copy(self, path: str, source: Path) -> None:
        """As `write` of a local file's contents, in bounded memory."""
        ...

    def write_all(self, files: Mapping[str, bytes], *, durable: bool = True) -> None:
        """As `write` of each, several at a time, in no order."""
        ...

    def list(self, folder: str = "") -> Iterator[Leaf]:
        """Every file below a folder, in no order; none when there is no such folder.

        Raises:
            OSError: it cannot be read now.
        """
        ...

    def names(self, folder: str) -> Sequence[str]:
        """The names of the files in a folder, sorted; not those of deeper ones.

        Raises:
            OSError: it cannot be read now.
        """
        ...

    def delete(self, path: str) -> None:
        """Remove a file; none is there afterwards, also when none was before.

        Raises:
            OSError: it cannot be removed now.
        """
        ...


def read_whole(tree: Tree, path: str, max_bytes: int) -> bytes:
    """What `Tree.read` gives, by `Tree.piece`."""
    piece = tree.piece(path, 0, max_bytes)
    if piece.total_bytes > max_bytes:
        raise OSError(
            f"{tree.place}: {path} has {piece.total_bytes} bytes, over {max_bytes}"
        )
    return piece.data


def check_path(path: str) -> str:
    """The path, if it is one of a tree's files.

    Raises:
        ValueError: it is not; it could lead elsewhere.
    """
    parts = path.split("/")
    if len(path) > MAX_PATH or len(parts) > MAX_DEPTH:
        raise ValueError(f"{path[:80]!r}… is too long for a path of a registry")
    if not all(_PART.match(each) for each in parts):
        raise ValueError(f"{path[:80]!r} is no path of a registry")
    return path
