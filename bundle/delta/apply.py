"""Make the wanted file of a base and a delta, a block at a time."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Final

import numpy as np
from numpy.typing import NDArray

from bundle.delta.coded import Decoded, Read
from bundle.delta.container import (
    AFRESH,
    BASE_BYTES,
    MAX_HEADER_BYTES,
    Header,
    Packed,
    Stream,
    read_header,
)
from bundle.delta.gaps import FromTokens
from bundle.delta.lanes import together
from bundle.delta.offer import DeltaRejected

BLOCK_BYTES: Final = 256 * 1024

Bytes = NDArray[np.uint8]


def apply_delta(
    base: Path, base_sha256: str, delta: Path, *, size_bytes: int
) -> Iterator[bytes]:
    """The wanted file, in blocks. Whoever takes them checks what they are.

    Memory: some blocks, a window of 4 MiB for each of at most seven streams that is
    compressed, and the base once and a window as long for a delta with a prefix.

    Args:
        base: the packed bundle that is here.
        base_sha256: its digest, which the caller knows to be right.
        delta: the blob that was offered.
        size_bytes: of the wanted file, as its seal says.

    Raises:
        DeltaRejected: made for another base or another file, or damaged.
        OSError: a file cannot be read.
    """
    with ExitStack() as stack:
        base_file = stack.enter_context(base.open("rb")).fileno()
        delta_file = stack.enter_context(delta.open("rb")).fileno()
        header, at = read_header(os.pread(delta_file, MAX_HEADER_BYTES, 0))
        if header.base.hex() != base_sha256[: 2 * BASE_BYTES]:
            raise DeltaRejected(
                f"it was made for base {header.base.hex()}…, here is {base_sha256[:16]}…"
            )
        if header.size_bytes != size_bytes:
            raise DeltaRejected(
                f"it makes {header.size_bytes} bytes, sealed were {size_bytes}"
            )
        planes = _Planes(header, base_file, delta_file, at)
        for segment in header.segments:
            for offset in range(0, segment.length, BLOCK_BYTES):
                length = min(BLOCK_BYTES, segment.length - offset)
                if segment.lane == AFRESH:
                    yield planes.read(AFRESH, 0, length).tobytes()
                    continue
                old = os.pread(base_file, length, segment.base_offset + offset)
                if len(old) != length:
                    raise DeltaRejected("it refers to more than the base has")
                words = length // segment.lane
                apart = [
                    planes.read(segment.lane, plane, words)
                    for plane in range(segment.lane)
                ]
                yield together(np.frombuffer(old, np.uint8), apart).tobytes()


class _Planes:
    """The streams of a delta, each read on from where it was left."""

    def __init__(
        self, header: Header, base_file: int, delta_file: int, at: int
    ) -> None:
        self._streams: dict[tuple[int, int], FromTokens | Decoded] = {}
        for each in header.streams:
            tokens = _slice(delta_file, at, each.tokens.packed_bytes)
            at += each.tokens.packed_bytes
            literals = _slice(delta_file, at, each.literals.packed_bytes)
            at += each.literals.packed_bytes
            prefix = b""
            if each.lane == AFRESH and header.prefix_bytes:
                prefix = os.pread(base_file, header.prefix_bytes, 0)
            self._streams[each.lane, each.plane] = _reader(
                each, tokens, literals, header.plane_bytes(each.lane), prefix
            )

    def read(self, lane: int, plane: int, count: int) -> Bytes:
        """The next `count` bytes of a plane."""
        match self._streams.get((lane, plane)):
            case None:
                return np.zeros(count, np.uint8)
            case FromTokens() as stream:
                return stream.read(count)
            case Decoded() as stream:
                return np.frombuffer(stream.exactly(count), np.uint8)


def _reader(
    stream: Stream, tokens: Read, literals: Read, size: int, prefix: bytes
) -> FromTokens | Decoded:
    decoded = _decoded(stream.tokens, tokens, prefix)
    if not stream.bits:
        return decoded
    whole = _decoded(stream.literals, literals, b"")
    return FromTokens(decoded.some, whole.exactly, stream.bits, size)


def _decoded(part: Packed, packed: Read, prefix: bytes) -> Decoded:
    return Decoded(part.coding, packed, part.size_bytes, prefix=prefix)


def _slice(file: int, at: int, size: int) -> Read:
    """Reads on within a part of a file."""
    end = at + size

    def read(count: int) -> bytes:
        nonlocal at
        data = os.pread(file, min(count, end - at), at)
        at += len(data)
        return data

    return read
