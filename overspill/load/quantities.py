"""Durations, rates, shares and sizes as a person types them: `30ms`, `200/s`, `5%`."""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Final, Generic, TypeVar

T = TypeVar("T")

_NUMBER: Final = r"(\d+(?:\.\d+)?(?:e[+-]?\d+)?)"
_DURATION: Final = re.compile(_NUMBER + r"\s*(us|ms|s|m|min|h)?\Z", re.IGNORECASE)
_RATE: Final = re.compile(_NUMBER + r"\s*(?:/\s*(s|min|m|h))?\Z", re.IGNORECASE)
_SIZE: Final = re.compile(_NUMBER + r"\s*(b|kb|kib|mb|mib)?\Z", re.IGNORECASE)
_SHARE: Final = re.compile(_NUMBER + r"\s*%?\Z")
_SECONDS: Final[Mapping[str, float]] = {
    "us": 1e-6,
    "ms": 1e-3,
    "s": 1.0,
    "m": 60.0,
    "min": 60.0,
    "h": 3600.0,
}
_BYTES: Final[Mapping[str, int]] = {
    "b": 1,
    "kb": 1000,
    "kib": 1024,
    "mb": 1000**2,
    "mib": 1024**2,
}


class BadQuantity(ValueError):
    """A text that is no such quantity; says how to write one."""


def duration_s(text: str) -> float:
    """Seconds in `30ms`, `1.5s`, `2min`; a bare number is seconds.

    Raises:
        BadQuantity: it is none, or not over 0.
    """
    found = _DURATION.match(text.strip())
    seconds = 0.0 if found is None else _times(found, _SECONDS, "s")
    if not 0 < seconds < math.inf:
        raise BadQuantity(f"{text!r} is no duration: write 30ms, 1.5s, 2min or 1h")
    return seconds


def rate_per_s(text: str) -> float:
    """Requests a second in `200/s`, `30/min`; a bare number is a second's.

    Raises:
        BadQuantity: it is none.
    """
    found = _RATE.match(text.strip())
    if found is None:
        raise BadQuantity(f"{text!r} is no rate: write 200/s or 30/min")
    return float(found[1]) / _SECONDS[(found[2] or "s").lower()]


def size_bytes(text: str) -> int:
    """Bytes in `1024`, `1KiB`, `2MB`.

    Raises:
        BadQuantity: it is none, or not over 0.
    """
    found = _SIZE.match(text.strip())
    size = 0 if found is None else int(_times(found, _BYTES, "b"))
    if size <= 0:
        raise BadQuantity(f"{text!r} is no size: write 1024, 1KiB or 2MB")
    return size


@dataclass(frozen=True, slots=True)
class Weighted(Generic[T]):
    """Values and how often each is drawn, in shares that add up to 1."""

    values: tuple[T, ...]
    shares: tuple[float, ...]

    def at(self, point: float) -> T:
        """The value whose share `point` of [0, 1) falls into."""
        for value, share in zip(self.values, self.shares, strict=True):
            point -= share
            if point < 0:
                return value
        return self.values[-1]


def weighted(text: str, read: Callable[[str], T]) -> Weighted[T]:
    """Read `a:70%,b:30%`; without shares, `a,b`, all are drawn alike.

    The shares are relative to each other: `a:7,b:3` is the same.

    Raises:
        BadQuantity: a share is none, only some have one, or they add up to 0.
    """
    parts = [part.partition(":") for part in text.split(",")]
    if len({bool(colon) for _, colon, _ in parts}) > 1:
        raise BadQuantity(f"{text!r}: give each a share, or none, as a:70%,b:30%")
    values = tuple(read(value.strip()) for value, _, _ in parts)
    weights = [_weight(share) if colon else 1.0 for _, colon, share in parts]
    total = sum(weights)
    if total <= 0:
        raise BadQuantity(f"{text!r}: the shares add up to nothing")
    return Weighted(values, tuple(weight / total for weight in weights))


def _weight(text: str) -> float:
    found = _SHARE.match(text.strip())
    if found is None:
        raise BadQuantity(f"{text!r} is no share: write 30%")
    return float(found[1])


def _times(found: re.Match[str], units: Mapping[str, float], bare: str) -> float:
    return float(found[1]) * units[(found[2] or bare).lower()]
