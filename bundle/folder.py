"""A registry in a folder, as a source of its files."""

from __future__ import annotations

import asyncio
import os
import re
from concurrent.futures import Executor
from pathlib import Path
from typing import Final

from bundle.source import NotThere, Piece, SourceUnavailable

# As on the wire (`broker.messages.RegistryPath`): no part of a path begins with a dot.
_PATH: Final = re.compile(
    r"[A-Za-z0-9_-][A-Za-z0-9._-]*(/[A-Za-z0-9_-][A-Za-z0-9._-]*){0,5}\Z"
)


class FolderSource:
    """Reads ranges of the files below a folder.

    Args:
        root: the registry's folder.
        threads: where it is read, so that a disk that hangs holds these alone; None:
            the event loop's own.
    """

    name = "folder"

    def __init__(self, root: Path, threads: Executor | None = None) -> None:
        self._root = root
        self._threads = threads

    async def read(self, path: str, offset: int, length: int) -> Piece:
        """At most `length` bytes of the file from `offset` on.

        Raises:
            NotThere: no such file, or a path that leads out of the folder.
            SourceUnavailable: the folder cannot be read.
        """
        return await asyncio.get_running_loop().run_in_executor(
            self._threads, self.read_now, path, offset, length
        )

    def read_now(self, path: str, offset: int, length: int) -> Piece:
        """As `read`, in the caller's own thread."""
        if _PATH.match(path) is None:
            raise NotThere(f"{path[:80]!r} is not a path of a registry")
        try:
            # No link is followed at the end, and no fifo is waited for.
            flags = os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC
            descriptor = os.open(self._root / path, flags)
        except (FileNotFoundError, NotADirectoryError):
            raise NotThere(f"{path} is not in the registry") from None
        except OSError as error:
            raise SourceUnavailable(f"cannot read {path}: {error.strerror}") from error
        try:
            total = os.fstat(descriptor).st_size
            data = os.pread(descriptor, min(length, max(0, total - offset)), offset)
        except IsADirectoryError:
            raise NotThere(f"{path} is a folder of the registry") from None
        except OSError as error:
            raise SourceUnavailable(f"cannot read {path}: {error.strerror}") from error
        finally:
            os.close(descriptor)
        return Piece(data, total)
