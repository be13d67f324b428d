"""Bytes as a general compressor leaves them, read back a few at a time.

Memory is bounded on both sides: windows are at most `WINDOW_LOG` (a prefix: as long as
it is), and a reader gives no more than is asked for, whatever the bytes would expand to.
"""

from __future__ import annotations

import lzma
import sys
from collections.abc import Callable
from enum import IntEnum
from typing import Final

from bundle.delta.offer import DeltaRejected

if sys.version_info >= (3, 14):
    from compression import zstd
else:
    from backports import zstd

WINDOW_LOG: Final = 22
PREFIX_WINDOW_LOG: Final = 25
# A prefix is held in memory, and so is a window as long as it and the file.
MAX_PREFIX_BYTES: Final = 16 * 1024 * 1024
LZMA_MEMORY: Final = 16 * 1024 * 1024
READ_BYTES: Final = 64 * 1024
STEP_BYTES: Final = 512 * 1024
LEVEL: Final = 19
QUICK_LEVEL: Final = 5
# It is slow, and of use only where zstd finds little: in short, clustered bytes.
LZMA_MOST_BYTES: Final = 2 * 1024 * 1024

Read = Callable[[int], bytes]
Proceed = Callable[[], None]


class Coding(IntEnum):
    """What was done to the bytes."""

    RAW = 0
    ZSTD = 1
    LZMA = 2


def _filters(size: int) -> list[dict[str, int]]:
    """LZMA without context of the byte before: of what it codes, that says nothing."""
    window = 1 << min(WINDOW_LOG, max(12, size.bit_length()))
    return [{"id": lzma.FILTER_LZMA1, "dict_size": window, "lc": 0, "lp": 0, "pb": 0}]


def encode(
    data: bytes, proceed: Proceed, *, prefix: bytes = b"", level: int = LEVEL
) -> tuple[Coding, bytes]:
    """The smallest coding of `data`.

    Args:
        data: all of it.
        proceed: called now and then; raises when it has taken too long.
        prefix: what the reader has as well, to be referred to.
        level: of zstd; under `LEVEL` nothing else is tried.
    """
    found = (Coding.RAW, data)
    tries_lzma = level == LEVEL and not prefix and len(data) <= LZMA_MOST_BYTES
    for coding, coder in (
        (Coding.ZSTD, _zstd(len(data), prefix, level)),
        (Coding.LZMA, _lzma(len(data)) if tries_lzma else None),
    ):
        if coder is None:
            continue
        coded = []
        for at in range(0, len(data), STEP_BYTES):
            proceed()
            coded.append(coder.compress(data[at : at + STEP_BYTES]))
        coded.append(coder.flush())
        if sum(map(len, coded)) < len(found[1]):
            found = (coding, b"".join(coded))
    return found


def _zstd(size: int, prefix: bytes, level: int) -> zstd.ZstdCompressor:
    most = PREFIX_WINDOW_LOG if prefix else WINDOW_LOG
    settings = zstd.CompressionParameter
    options: dict[int, int] = {
        settings.compression_level: level,
        settings.window_log: min(most, max(10, (size + len(prefix)).bit_length())),
        settings.content_size_flag: 0,
    }
    if len(prefix) > READ_BYTES:
        options[settings.enable_long_distance_matching] = 1
    held = zstd.ZstdDict(prefix, is_raw=True).as_prefix if len(prefix) >= 8 else None
    coder = zstd.ZstdCompressor(options=options, zstd_dict=held)
    # Not written; without it zstd takes tables of 80 MB for the shortest input.
    coder.set_pledged_input_size(size)
    return coder


def _lzma(size: int) -> lzma.LZMACompressor:
    return lzma.LZMACompressor(lzma.FORMAT_RAW, filters=_filters(size))


class Decoded:
    """The bytes behind a coding.

    Args:
        coding: what was done to them.
        packed: gives at most so many further packed bytes; none at their end.
        size: how many bytes there are behind it, as stated.
        prefix: what it refers to.
    """

    def __init__(
        self, coding: Coding, packed: Read, size: int, *, prefix: bytes = b""
    ) -> None:
        self._packed = packed
        self._left = size
        self._decoder: zstd.ZstdDecompressor | lzma.LZMADecompressor | None = None
        if coding is Coding.ZSTD:
            most = PREFIX_WINDOW_LOG if prefix else WINDOW_LOG
            held = zstd.ZstdDict(prefix, is_raw=True).as_prefix if prefix else None
            limit: dict[int, int] = {zstd.DecompressionParameter.window_log_max: most}
            self._decoder = zstd.ZstdDecompressor(zstd_dict=held, options=limit)
        elif coding is Coding.LZMA:
            self._decoder = lzma.LZMADecompressor(
                lzma.FORMAT_RAW, filters=_filters(size)
            )

    def some(self, count: int) -> bytes:
        """At most `count` further bytes; none at the end.

        Raises:
            DeltaRejected: it is damaged, or ends before it should.
        """
        count = min(count, self._left)
        if count == 0:
            return b""
        data = self._packed(count) if self._decoder is None else self._decode(count)
        if not data:
            raise DeltaRejected(f"{self._left} bytes are missing at the end")
        self._left -= len(data)
        return data

    def exactly(self, count: int) -> bytes:
        """The next `count` bytes.

        Raises:
            DeltaRejected: there are not so many.
        """
        got = bytearray()
        while len(got) < count:
            some = self.some(count - len(got))
            if not some:
                raise DeltaRejected(f"{count - len(got)} bytes are missing at the end")
            got += some
        return bytes(got)

    def _decode(self, count: int) -> bytes:
        decoder = self._decoder
        assert decoder is not None  # noqa: S101 - `some` has looked
        try:
            while not decoder.eof:
                hungry = decoder.needs_input
                fed = self._packed(READ_BYTES) if hungry else b""
                if data := decoder.decompress(fed, max_length=count):
                    return data
                if hungry and not fed:
                    break
        except (zstd.ZstdError, lzma.LZMAError, EOFError) as error:
            raise DeltaRejected(f"its bytes are damaged: {error}") from error
        return b""
