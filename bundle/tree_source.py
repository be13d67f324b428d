"""A registry's tree as a source of its files, for who is at the place where it lies."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Final

from bundle.source import Piece, SourceUnavailable

if TYPE_CHECKING:
    from bundle.tree import Tree

DEADLINE_S: Final = 60.0


class TreeSource:
    """Reads ranges of the files of a tree.

    Args:
        tree: in a folder or in a bucket.
        timeout_s: the deadline of one read.
    """

    def __init__(self, tree: Tree, *, timeout_s: float = DEADLINE_S) -> None:
        self.name = tree.place
        self._tree = tree
        self._timeout_s = timeout_s

    async def read(self, path: str, offset: int, length: int) -> Piece:
        """At most `length` bytes of the file from `offset` on.

        Raises:
            NotThere: no such file, or no path of a registry.
            SourceUnavailable: the tree cannot be read now.
        """
        try:
            async with asyncio.timeout(self._timeout_s):
                return await asyncio.to_thread(self._tree.piece, path, offset, length)
        except TimeoutError as error:
            raise SourceUnavailable(
                f"{self.name}: {path}: no answer in {self._timeout_s:.0f} s"
            ) from error
        except OSError as error:
            raise SourceUnavailable(
                f"cannot read {path}: {error.strerror or error}"
            ) from error
