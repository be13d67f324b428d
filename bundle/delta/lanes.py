"""Differences between words, and their bytes apart. Pure.

A lane is the width of a word in bytes: 1, 2 or 4. The difference is of the words as
unsigned integers and wraps, so it fits a word; folded, a small one of either sign is a
small number (0, -1, 1, -2 are 0, 1, 2, 3). A float's bits are such an integer too: two
floats that lie close together differ little in it.
"""

from __future__ import annotations

from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

Bytes = NDArray[np.uint8]

WORDS: Final[dict[int, np.dtype[Any]]] = {
    1: np.dtype("<u1"),
    2: np.dtype("<u2"),
    4: np.dtype("<u4"),
}
SIGNED: Final[dict[int, np.dtype[Any]]] = {
    1: np.dtype("<i1"),
    2: np.dtype("<i2"),
    4: np.dtype("<i4"),
}


def planes(base: Bytes, wanted: Bytes, lane: int) -> list[Bytes]:
    """The folded difference, its lowest bytes first.

    Args:
        base: of shape [n * lane].
        wanted: the same.
        lane: bytes in a word.

    Returns:
        `lane` arrays of shape [n].
    """
    difference = (wanted.view(WORDS[lane]) - base.view(WORDS[lane])).view(SIGNED[lane])
    folded = (difference << 1) ^ (difference >> (8 * lane - 1))
    apart = folded.view(np.uint8).reshape(-1, lane)
    return [np.ascontiguousarray(apart[:, plane]) for plane in range(lane)]


def together(base: Bytes, apart: list[Bytes]) -> Bytes:
    """What `planes` was told of `base`: the wanted bytes, of shape [n * lane]."""
    lane = len(apart)
    folded = np.stack(apart, axis=1).reshape(-1).view(WORDS[lane])
    one = WORDS[lane].type(1)
    difference = (folded >> one) ^ (np.zeros_like(folded) - (folded & one))
    wanted: Bytes = (base.view(WORDS[lane]) + difference).view(np.uint8)
    return wanted


def entropy_bytes(data: Bytes) -> float:
    """The order-0 entropy of all of `data`, in bytes."""
    counts = np.bincount(data, minlength=256)
    shares = counts[counts > 0] / max(1, len(data))
    return float(-(shares * np.log2(shares)).sum() * len(data) / 8)


def cost_bytes(base: Bytes, wanted: Bytes, lane: int) -> float:
    """The entropy of a difference, plane by plane, in bytes."""
    return sum(entropy_bytes(each) for each in planes(base, wanted, lane))
