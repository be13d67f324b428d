"""How long to wait before trying again. Never waits; the caller does."""

from __future__ import annotations

import random
from typing import Final

# One for all: to seed another takes longer than most of what is retried.
_JITTER: Final = random.Random()  # noqa: S311 - jitter, not a secret


class Backoff:
    """Exponential backoff with full jitter.

    Each wait is uniform in `[0, ceiling]`, and the ceiling doubles from `first_s` to
    `most_s`: clients that lost the same broker at the same moment come back spread
    out. Source: M. Brooker, "Exponential Backoff And Jitter", AWS Architecture Blog,
    2015.
    """

    def __init__(
        self,
        first_s: float = 0.2,
        most_s: float = 15.0,
        rng: random.Random | None = None,
    ) -> None:
        if not 0 < first_s <= most_s:
            raise ValueError(
                f"a backoff needs 0 < first_s <= most_s, got {first_s} and {most_s}"
            )
        self._first_s = first_s
        self._most_s = most_s
        self._rng = rng or _JITTER
        self._ceiling_s = first_s

    def next_s(self) -> float:
        """Seconds to wait before the next try."""
        wait_s = self._rng.uniform(0, self._ceiling_s)
        self._ceiling_s = min(self._most_s, self._ceiling_s * 2)
        return wait_s

    def reset(self) -> None:
        """Start again from `first_s`: what was tried has worked for a while."""
        self._ceiling_s = self._first_s
