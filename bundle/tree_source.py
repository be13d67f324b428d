"""A registry's tree as a source: its blocking reads in threads of their own."""

from __future__ import annotations

import asyncio
from concurrent.futures import Executor

from bundle.source import Piece, SourceUnavailable
from bundle.tree import Tree


class TreeSource:
    """Reads ranges of a tree's files.

    Args:
        tree: a folder or a bucket.
        threads: where it is read, so that a store that hangs holds these alone; None:
            the event loop's own.
    """

    name = "tree"

    def __init__(self, tree: Tree, threads: Executor | None = None) -> None:
        self._tree = tree
        self._threads = threads

    async def read(self, path: str, offset: int, length: int) -> Piece:
        """At most `length` bytes of the file from `offset` on; fewer only at its end.

        Raises:
            NotThere: no such file, or no path of a tree.
            SourceUnavailable: it cannot be read now.
        """
        loop = asyncio.get_running_loop()
        try:
            return await loop.run_in_executor(
                self._threads, self._tree.piece, path, offset, length
            )
        except OSError as error:
            why = error.strerror or str(error)
            raise SourceUnavailable(f"cannot read {path}: {why}") from error
