"""Which stretches of two packed bundles belong together, and how to take their difference.

Files of the same name are compared. One that has grown or shrunk is cut once, where
that leaves the fewest differences: the same before it from the start on, the same
after it from the end on.
"""

from __future__ import annotations

import tarfile
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Final

import numpy as np
from numpy.typing import NDArray

from bundle.delta.container import AFRESH, MAX_SEGMENTS, Segment
from bundle.delta.lanes import cost_bytes, entropy_bytes

# Words are tried on stretches of so many bytes that follow each other in a file.
PIECE_BYTES: Final = 1024 * 1024
# A difference that is not clearly smaller than the thing itself is none.
WORTH: Final = 0.97
MAX_MEMBERS: Final = 256

Bytes = NDArray[np.uint8]
Stretch = tuple[int, int]


def segments_of(
    base: Bytes,
    wanted: Bytes,
    stretches: dict[str, Stretch],
    of_base: dict[str, Stretch],
) -> list[Segment]:
    """The wanted file as segments.

    Args:
        base: all of it, of shape [n].
        wanted: all of it.
        stretches: where the files in the wanted one lie, by name: begin and end.
        of_base: the same of the base.
    """
    found: list[Segment] = []
    at = 0
    for name, (begin, end) in sorted(stretches.items(), key=lambda each: each[1]):
        # The tar's own words between files, and what nobody has a counterpart of.
        found += _compared(
            base, wanted, (at, begin), _before(name, begin - at, of_base)
        )
        found += _compared(base, wanted, (begin, end), of_base.get(name))
        at = end
    ends = [end for _, end in of_base.values()]
    found += _compared(
        base, wanted, (at, len(wanted)), (max(ends, default=0), len(base))
    )
    joined = list(_joined(found))
    if len(joined) > MAX_SEGMENTS:
        return [Segment(AFRESH, len(wanted))]
    return joined


def members(packed: Path) -> dict[str, Stretch]:
    """Where the files of a packed bundle lie; none if it is not a tar."""
    try:
        with tarfile.open(packed, mode="r:") as tar:
            found: dict[str, Stretch] = {}
            while (member := tar.next()) is not None and len(found) < MAX_MEMBERS:
                begin = member.offset_data
                found[member.name] = (begin, begin + member.size)
            return found
    except (tarfile.TarError, EOFError, OverflowError):
        return {}


def _before(name: str, length: int, of_base: dict[str, Stretch]) -> Stretch | None:
    """What stands in the base before a file of that name."""
    if name not in of_base:
        return None
    begin = of_base[name][0]
    return (max(0, begin - length), begin)


def _compared(
    base: Bytes, wanted: Bytes, stretch: Stretch, of_base: Stretch | None
) -> Iterator[Segment]:
    begin, end = stretch
    if begin >= end:
        return
    if of_base is None or of_base[0] >= of_base[1]:
        yield Segment(AFRESH, end - begin)
        return
    new, old = wanted[begin:end], base[of_base[0] : of_base[1]]
    least = min(len(new), len(old))
    cut = least if len(new) == len(old) else _best_cut(old, new)
    yield from _in_words(old[:cut], new[:cut], of_base[0])
    if len(new) > len(old):
        yield Segment(AFRESH, len(new) - len(old))
    tail = least - cut
    yield from _in_words(
        old[len(old) - tail :], new[len(new) - tail :], of_base[1] - tail
    )


def _best_cut(old: Bytes, new: Bytes) -> int:
    """How far to compare from the start on; the rest is compared from the end on."""
    least = min(len(old), len(new))
    from_start = old[:least] != new[:least]
    from_end = old[len(old) - least :] != new[len(new) - least :]
    before = np.concatenate(([0], np.cumsum(from_start)))
    after = np.concatenate(([0], np.cumsum(from_end)))
    return int(np.argmin(before + (after[-1] - after)))


def _in_words(old: Bytes, new: Bytes, base_offset: int) -> Iterator[Segment]:
    """Pieces of two stretches as long, each in the words that leave the least."""
    for at in range(0, len(new), PIECE_BYTES):
        was, now = old[at : at + PIECE_BYTES], new[at : at + PIECE_BYTES]
        even = len(now) // 4 * 4
        if even:
            lane = _best_lane(was[:even], now[:even])
            yield Segment(lane, even, base_offset + at)
        if even < len(now):
            yield Segment(1, len(now) - even, base_offset + at + even)


def _best_lane(old: Bytes, new: Bytes) -> int:
    if np.array_equal(old, new):
        return 1
    costs = {lane: cost_bytes(old, new, lane) for lane in (1, 2, 4)}
    lane = min(costs, key=lambda each: costs[each])
    return lane if costs[lane] < WORTH * entropy_bytes(new) else AFRESH


def _joined(segments: list[Segment]) -> Iterator[Segment]:
    """Neighbours that go on where the one before ended, as one.

    What did not change at all joins words of any width.
    """
    last: Segment | None = None
    for each in segments:
        if last is not None and each.lane == last.lane and _goes_on(last, each):
            last = replace(last, length=last.length + each.length)
            continue
        if last is not None:
            yield last
        last = each
    if last is not None:
        yield last


def _goes_on(last: Segment, each: Segment) -> bool:
    return each.lane == AFRESH or last.base_offset + last.length == each.base_offset
