"""Trays: memory that the consumer and a model's process both have open.

A batch's inputs are laid on a tray and its outputs come back behind them, so neither
passes through a socket. The consumer only writes into and reads out of the file and
never maps it: whatever the other side does to a tray, the worst that the consumer
sees is too few bytes.
"""

from __future__ import annotations

import mmap
import os
import tempfile
from collections.abc import Sequence
from itertools import islice
from typing import Final

KEPT_BYTES: Final = 16 * 1024 * 1024
ALIGNMENT: Final = 64
_MOST_PARTS: Final = 1024  # IOV_MAX of Linux


class Short(ValueError):
    """The tray does not hold what it is said to hold."""


class Tray:
    """The consumer's side of one tray.

    Attributes:
        fd: the open file; the model's process inherits it.
    """

    def __init__(self) -> None:
        self.fd = _anonymous_file()

    def put(self, parts: Sequence[bytes]) -> int:
        """Lay these behind each other from the start; gives their length in bytes.

        Raises:
            OSError: there is no memory for them.
        """
        written = 0
        rest = iter(parts)
        while several := list(islice(rest, _MOST_PARTS)):
            written += self._put_all(several, written)
        return written

    def take(self, start: int, size: int) -> bytes:
        """A copy of `size` bytes from `start`.

        Raises:
            Short: the tray is smaller than that.
        """
        data = os.pread(self.fd, size, start)
        while len(data) < size:
            more = os.pread(self.fd, size - len(data), start + len(data))
            if not more:
                raise Short(f"{len(data)} of {size} bytes are on the tray")
            data += more
        return data

    def clear(self) -> None:
        """Give back what only an uncommonly large batch needed."""
        if os.fstat(self.fd).st_size > KEPT_BYTES:
            os.ftruncate(self.fd, KEPT_BYTES)

    def close(self) -> None:
        """Give all of it back, once the other process has ended too."""
        os.close(self.fd)

    def _put_all(self, parts: list[bytes], start: int) -> int:
        size = sum(map(len, parts))
        written = os.pwritev(self.fd, parts, start)
        if written < size:
            # One call moves 2 GiB at most.
            left = memoryview(b"".join(parts))[written:]
            while left:
                moved = os.pwrite(self.fd, left, start + size - len(left))
                left = left[moved:]
        return size


class MappedTray:
    """The model process's side: its memory, mapped.

    Args:
        fd: the inherited file.
    """

    def __init__(self, fd: int) -> None:
        self._fd = fd
        self._view = memoryview(b"")

    def inputs(self, size: int) -> memoryview:
        """The first `size` bytes, read-only."""
        return self._mapped(size)[:size].toreadonly()

    def put_behind(self, size: int, blocks: Sequence[memoryview]) -> int:
        """Lay outputs behind inputs of `size` bytes; gives where they begin."""
        start = -(-size // ALIGNMENT) * ALIGNMENT
        end = start + sum(map(len, blocks))
        if os.fstat(self._fd).st_size < end:
            os.ftruncate(self._fd, end)
        view = self._mapped(end)
        at = start
        for block in blocks:
            view[at : at + len(block)] = block
            at += len(block)
        return start

    def _mapped(self, size: int) -> memoryview:
        if len(self._view) < size:
            room = 1 << (max(size, mmap.PAGESIZE) - 1).bit_length()
            if os.fstat(self._fd).st_size < room:
                os.ftruncate(self._fd, room)
            # The old mapping goes when the last array on it does.
            self._view = memoryview(mmap.mmap(self._fd, room))
        return self._view


def _anonymous_file() -> int:
    if hasattr(os, "memfd_create"):
        return os.memfd_create("overspill-tray", os.MFD_CLOEXEC)
    with tempfile.TemporaryFile() as file:
        return os.dup(file.fileno())
