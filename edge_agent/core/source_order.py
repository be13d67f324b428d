"""Which source to ask next, of several that may be slow, gone or lying. Pure.

The first in the configured order that is not resting. One that failed rests for
longer each time; one that lied rests too, and after `MAX_LIES` is asked no more for
this blob; one that has no such file is not asked for it again.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

FIRST_REST_S: Final = 0.5
MOST_REST_S: Final = 30.0
MAX_LIES: Final = 3
# A pool that asks for an hour's patience would stop an update; it is asked again.
MOST_RETRY_AFTER_S: Final = 60.0


@dataclass(frozen=True, slots=True)
class Ask:
    """Ask the source of this index now."""

    index: int


@dataclass(frozen=True, slots=True)
class Rest:
    """None can be asked before `until_s`."""

    until_s: float


@dataclass(frozen=True, slots=True)
class Exhausted:
    """No source is left; why, for each."""

    reason: str


@dataclass(slots=True)
class _Standing:
    name: str
    failures: int = 0
    lies: int = 0
    not_before_s: float = 0.0
    out: str | None = None
    last: str | None = None


class SourceOrder:
    """What is known of each source while one blob is fetched.

    Args:
        names: of the sources, the preferred one first.
    """

    def __init__(self, names: Sequence[str]) -> None:
        self._sources = [_Standing(name) for name in names]

    def next(self, now_s: float) -> Ask | Rest | Exhausted:
        """What to do now."""
        left = [each for each in self._sources if each.out is None]
        if not left:
            return Exhausted(self.why())
        for index, each in enumerate(self._sources):
            if each.out is None and each.not_before_s <= now_s:
                return Ask(index)
        return Rest(min(each.not_before_s for each in left))

    def worked(self, index: int) -> None:
        """It gave what was asked."""
        self._sources[index].failures = 0

    def failed(
        self,
        index: int,
        now_s: float,
        *,
        reason: str,
        retry_after_s: float | None,
        chance: float,
    ) -> None:
        """It could not be asked, was too slow or broke off.

        `chance`, 0..1, is drawn: many agents that failed together come back apart.
        """
        each = self._sources[index]
        each.last = reason
        if each.not_before_s > now_s:
            return  # One of a window's questions has said so already.
        rest_s = min(MOST_REST_S, FIRST_REST_S * 2**each.failures)
        if retry_after_s is not None:
            rest_s = max(rest_s, min(retry_after_s, MOST_RETRY_AFTER_S))
        each.failures = min(each.failures + 1, 16)
        each.not_before_s = now_s + rest_s * (0.5 + chance)

    def lied(self, index: int, now_s: float, *, reason: str, chance: float) -> None:
        """It gave something else than what was asked."""
        each = self._sources[index]
        each.lies += 1
        self.failed(index, now_s, reason=reason, retry_after_s=None, chance=chance)
        if each.lies >= MAX_LIES:
            each.out = f"{reason} ({each.lies} times)"

    def lacks(self, index: int, *, reason: str) -> None:
        """It says that it has no such file."""
        self._sources[index].out = self._sources[index].last = reason

    def why(self) -> str:
        """What each source that failed last said, in one line."""
        said = [f"{each.name}: {each.last}" for each in self._sources if each.last]
        return "; ".join(said) or "no source is configured"
