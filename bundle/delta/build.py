"""Make the smallest delta there is between two packed bundles. Blocking, and bounded."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Final, Literal

import numpy as np
from numpy.typing import NDArray

from bundle.delta.coded import (
    LEVEL,
    MAX_PREFIX_BYTES,
    QUICK_LEVEL,
    Coding,
    Proceed,
    encode,
)
from bundle.delta.container import (
    AFRESH,
    BASE_BYTES,
    Header,
    Packed,
    Segment,
    Stream,
)
from bundle.delta.gaps import WIDTHS, to_tokens
from bundle.delta.lanes import planes
from bundle.delta.segments import members, segments_of

# What is told afresh may refer to the first bytes of the base: the manifest and its
# neighbours, whose new ones are often the old ones moved.
NEAR_BYTES: Final = 64 * 1024

HOPEFUL: Final = 1.5

Bytes = NDArray[np.uint8]


class TookTooLong(Exception):
    """The delta was not made in its time."""


@dataclass(frozen=True, slots=True)
class BuildLimits:
    """What making a delta may cost the server.

    Attributes:
        max_bytes: of the base and of the wanted file; some five times as much memory.
        max_s: of this process's time on the clock.
        max_share: of the wanted file's size; a larger delta is none.
    """

    max_bytes: int = 128 * 1024 * 1024
    max_s: float = 120.0
    max_share: float = 0.7


class _Deadline:
    """When the best must do, and when there is none."""

    def __init__(self, now_s: Callable[[], float], max_s: float) -> None:
        self._now_s = now_s
        self._quick_from_s = now_s() + max_s / 2
        self._end_s = now_s() + max_s

    def check(self) -> None:
        """Return while there is time.

        Raises:
            TookTooLong: there is none left.
        """
        if self._now_s() > self._end_s:
            raise TookTooLong

    def quickly(self) -> None:
        """Return while there is time for more than the least.

        Raises:
            TookTooLong: there is not.
        """
        if self._now_s() > self._quick_from_s:
            raise TookTooLong


@dataclass(frozen=True, slots=True, eq=False)
class _Plane:
    """One plane of one lane, whole."""

    lane: int
    plane: int
    data: Bytes
    prefix: bytes = b""


@dataclass(frozen=True, slots=True)
class Delta:
    """A delta as it is stored."""

    kind: Literal["subtract", "prefix"]
    data: bytes


def build_delta(
    base: Path,
    base_sha256: str,
    wanted: Path,
    *,
    limits: BuildLimits | None = None,
    now_s: Callable[[], float] = time.monotonic,
) -> Delta | None:
    """The smallest delta, or None when the whole file is better.

    Raises:
        OSError: a file cannot be read.
    """
    limits = limits or BuildLimits()
    sizes = (base.stat().st_size, wanted.stat().st_size)
    if max(sizes) > limits.max_bytes or min(sizes) == 0:
        return None
    proceed = _Deadline(now_s, limits.max_s)
    mark = bytes.fromhex(base_sha256)[:BASE_BYTES]
    found: list[Delta] = []
    try:
        found.append(Delta("subtract", _subtracted(base, wanted, mark, proceed)))
        # As a rule far smaller, and then the prefix is not worth its time.
        if len(found[0].data) > sizes[1] // 50:
            found.append(Delta("prefix", _prefixed(base, wanted, mark, proceed)))
    except TookTooLong:
        pass  # then the best of what there is
    best = min(found, key=lambda each: len(each.data), default=None)
    if best is None or len(best.data) > limits.max_share * sizes[1]:
        return None
    return best


def _subtracted(base: Path, wanted: Path, mark: bytes, proceed: _Deadline) -> bytes:
    old = np.fromfile(base, np.uint8)
    new = np.fromfile(wanted, np.uint8)
    segments = segments_of(old, new, members(wanted), members(base))
    proceed.check()
    near = old[:NEAR_BYTES].tobytes()
    streams: list[Stream] = []
    packed: list[bytes] = []
    for each in _planes(old, new, segments, near):
        if each.lane != AFRESH and not each.data.any():
            continue
        stream, parts = _smallest(each, proceed)
        streams.append(stream)
        packed += parts
    return _joined(mark, new.size, len(near), segments, streams, packed)


def _planes(
    old: Bytes, new: Bytes, segments: list[Segment], near: bytes
) -> Iterator[_Plane]:
    gathered: dict[tuple[int, int], list[Bytes]] = {}
    at = 0
    for each in segments:
        now = new[at : at + each.length]
        at += each.length
        if each.lane == AFRESH:
            gathered.setdefault((AFRESH, 0), []).append(now)
            continue
        was = old[each.base_offset : each.base_offset + each.length]
        for plane, data in enumerate(planes(was, now, each.lane)):
            gathered.setdefault((each.lane, plane), []).append(data)
    for (lane, plane), pieces in sorted(gathered.items(), key=lambda each: each[0]):
        prefix = near if lane == AFRESH else b""
        yield _Plane(lane, plane, np.concatenate(pieces), prefix)


def _smallest(plane: _Plane, proceed: _Deadline) -> tuple[Stream, list[bytes]]:
    """One plane in the way that takes the fewest bytes."""
    if plane.lane == AFRESH:
        return _coded(plane, 0, proceed.check)
    quick = [_coded(plane, bits, proceed.check, level=QUICK_LEVEL) for bits in WIDTHS]
    least = min(map(_size, quick))
    # The plain bytes too where they come near: long matches may be found in them.
    hopeful = [
        bits
        for bits, coded in zip(WIDTHS, quick, strict=True)
        if _size(coded) == least or (bits == 0 and _size(coded) < HOPEFUL * least)
    ]
    with suppress(TookTooLong):  # then as small as it is
        quick += [_coded(plane, bits, proceed.quickly) for bits in hopeful]
    return min(quick, key=_size)


def _size(coded: tuple[Stream, list[bytes]]) -> int:
    return sum(map(len, coded[1]))


def _coded(
    plane: _Plane, bits: int, proceed: Proceed, *, level: int = LEVEL
) -> tuple[Stream, list[bytes]]:
    proceed()
    parts = to_tokens(plane.data, bits) if bits else (plane.data.tobytes(), b"")
    coded = [encode(part, proceed, prefix=plane.prefix, level=level) for part in parts]
    of = [
        Packed(coding, len(packed), len(part))
        for (coding, packed), part in zip(coded, parts, strict=True)
    ]
    stream = Stream(plane.lane, plane.plane, bits, *of)
    return stream, [packed for _, packed in coded]


def _prefixed(base: Path, wanted: Path, mark: bytes, proceed: _Deadline) -> bytes:
    """The whole file, which may refer to the whole base."""
    old, new = base.read_bytes(), wanted.read_bytes()
    if len(old) > MAX_PREFIX_BYTES:
        raise TookTooLong  # of memory, on the device
    coding, packed = encode(new, proceed.check, prefix=old)
    if coding is Coding.RAW:
        raise TookTooLong
    stream = Stream(AFRESH, 0, 0, Packed(coding, len(packed), len(new)))
    segments = [Segment(AFRESH, len(new))]
    return _joined(mark, len(new), len(old), segments, [stream], [packed])


def _joined(
    mark: bytes,
    size: int,
    prefix_bytes: int,
    segments: list[Segment],
    streams: list[Stream],
    packed: list[bytes],
) -> bytes:
    refers = any(
        each.lane == AFRESH and each.tokens.coding is Coding.ZSTD for each in streams
    )
    header = Header(
        mark, size, prefix_bytes if refers else 0, tuple(segments), tuple(streams)
    )
    return b"".join((header.pack(), *packed))
