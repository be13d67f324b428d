"""How a delta lies in a file: what it is made for, its segments, its streams.

    "OVD1"  first 8 bytes of the base's digest
    numbers: size of the wanted file, prefix length, count of segments, each as
        lane, length, and where in the base unless the lane is 0 (afresh);
        count of streams, each as lane, plane, bits, and for tokens and literals:
        coding, packed size, size
    the packed streams, in that order

Numbers are little-endian base 128. A stream that is left out is all zeros.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Final

from bundle.delta.coded import MAX_PREFIX_BYTES, Coding
from bundle.delta.offer import DeltaRejected
from bundle.seal import MAX_PACKED_BYTES

MAGIC: Final = b"OVD1"
BASE_BYTES: Final = 8
AFRESH: Final = 0
LANES: Final = (AFRESH, 1, 2, 4)
MAX_SEGMENTS: Final = 4096
MAX_HEADER_BYTES: Final = 64 * 1024


@dataclass(frozen=True, slots=True)
class Segment:
    """A stretch of the wanted file: `lane` 0 afresh, else against the base."""

    lane: int
    length: int
    base_offset: int = 0


@dataclass(frozen=True, slots=True)
class Packed:
    """Some coded bytes; their size before that."""

    coding: Coding = Coding.RAW
    packed_bytes: int = 0
    size_bytes: int = 0


@dataclass(frozen=True, slots=True)
class Stream:
    """One plane of one lane; with `bits` 0 `tokens` are the bytes themselves."""

    lane: int
    plane: int
    bits: int
    tokens: Packed
    literals: Packed = Packed()


@dataclass(frozen=True, slots=True)
class Header:
    """What a delta says of itself."""

    base: bytes
    size_bytes: int
    prefix_bytes: int
    segments: tuple[Segment, ...]
    streams: tuple[Stream, ...]

    def plane_bytes(self, lane: int) -> int:
        """How many bytes each plane of a lane has."""
        of_lane = sum(each.length for each in self.segments if each.lane == lane)
        return of_lane // max(1, lane)

    def pack(self) -> bytes:
        """As `read_header` reads it."""
        numbers = [self.size_bytes, self.prefix_bytes, len(self.segments)]
        for each in self.segments:
            numbers += [each.lane, each.length]
            if each.lane != AFRESH:
                numbers.append(each.base_offset)
        numbers.append(len(self.streams))
        for stream in self.streams:
            numbers += [stream.lane, stream.plane, stream.bits]
            for part in (stream.tokens, stream.literals)[: 2 if stream.bits else 1]:
                numbers += [part.coding, part.packed_bytes, part.size_bytes]
        return MAGIC + self.base + b"".join(map(_number, numbers))


def read_header(data: bytes) -> tuple[Header, int]:
    """The header that `data` begins with, and its length in bytes.

    Raises:
        DeltaRejected: it is none, or contradicts itself.
    """
    if data[: len(MAGIC)] != MAGIC:
        raise DeltaRejected(
            "it is not a delta, or of a kind that this agent cannot read"
        )
    numbers = _Numbers(data, len(MAGIC) + BASE_BYTES)
    size, prefix = numbers.upto(MAX_PACKED_BYTES), numbers.upto(MAX_PREFIX_BYTES)
    segments = tuple(_segments(numbers, numbers.upto(MAX_SEGMENTS), size))
    base = data[len(MAGIC) : len(MAGIC) + BASE_BYTES]
    bare = Header(base, size, prefix, segments, ())
    streams = tuple(_streams(numbers, numbers.upto(8), bare))
    return Header(base, size, prefix, segments, streams), numbers.at


def _segments(numbers: _Numbers, count: int, size: int) -> Iterator[Segment]:
    left = size
    for _ in range(count):
        lane, length = numbers.upto(4), numbers.upto(left)
        if lane not in LANES or length % max(1, lane):
            raise DeltaRejected(f"a segment of {length} bytes in words of {lane}")
        offset = 0 if lane == AFRESH else numbers.upto(MAX_PACKED_BYTES)
        left -= length
        yield Segment(lane, length, offset)
    if left:
        raise DeltaRejected(f"its segments leave {left} of {size} bytes out")


def _streams(numbers: _Numbers, count: int, header: Header) -> Iterator[Stream]:
    seen = set()
    for _ in range(count):
        lane, plane, bits = numbers.upto(4), numbers.upto(3), numbers.upto(7)
        if lane not in LANES or plane >= max(1, lane) or (lane, plane) in seen:
            raise DeltaRejected(f"plane {plane} of words of {lane} has no place in it")
        seen.add((lane, plane))
        size = header.plane_bytes(lane)
        tokens = _packed(numbers, size)
        yield Stream(
            lane, plane, bits, tokens, _packed(numbers, size) if bits else Packed()
        )


def _packed(numbers: _Numbers, most: int) -> Packed:
    coding = Coding(numbers.upto(max(Coding)))
    # A token tells of a byte or more, so there are never more of them than bytes.
    return Packed(coding, numbers.upto(MAX_PACKED_BYTES), numbers.upto(most))


class _Numbers:
    """Reads numbers one after the other."""

    def __init__(self, data: bytes, at: int) -> None:
        self._data = data
        self.at = at

    def upto(self, most: int) -> int:
        """The next number.

        Raises:
            DeltaRejected: there is none, or it is above `most`.
        """
        value = shift = 0
        while True:
            if self.at >= len(self._data) or shift > 35:
                raise DeltaRejected("its header is cut short or damaged")
            byte = self._data[self.at]
            self.at += 1
            value |= (byte & 0x7F) << shift
            shift += 7
            if byte < 0x80:
                break
        if value > most:
            raise DeltaRejected(f"its header says {value} where {most} is the most")
        return value


def _number(value: int) -> bytes:
    out = bytearray()
    while value >= 0x80:
        out.append(value & 0x7F | 0x80)
        value >>= 7
    out.append(value)
    return bytes(out)
