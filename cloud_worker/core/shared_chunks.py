"""Which chunks a wave has been told lately, so that none is told it twice. Pure."""

from __future__ import annotations

from collections import OrderedDict
from enum import StrEnum
from typing import Final

# What was published so lately is on its way to whoever listened by then.
FRESH_S: Final = 10.0
# A question waits for so long in its queue.
ON_ITS_WAY_S: Final = 1.0
# A wave is over after so long; who asks then may be the first of another one.
QUIET_S: Final = 30.0
MAX_REMEMBERED: Final = 4096

Chunk = tuple[str, int, int]


class Reply(StrEnum):
    """What a question for a shared chunk is answered with."""

    WAVE = "wave"
    ALONE = "alone"
    NOTHING = "nothing"


class SharedChunks:
    """Remembers what was published on shared topics for `quiet_s`.

    Args:
        fresh_s: after a publish, who listened when it was made will still hear it.
        quiet_s: after a publish, who asks has missed it or came late: it is answered
            alone, because all others of the wave would hear what they have.

    Attributes:
        published: chunks that were.
        repaired: questions to be answered alone.
        spared: questions that an earlier publish had answered.
    """

    def __init__(self, fresh_s: float = FRESH_S, quiet_s: float = QUIET_S) -> None:
        self._fresh_s = fresh_s
        self._quiet_s = quiet_s
        self._at_s: OrderedDict[Chunk, float] = OrderedDict()
        self.published = 0
        self.repaired = 0
        self.spared = 0

    def claim(
        self, chunk: Chunk, now_s: float, listening_s: float | None = None
    ) -> Reply:
        """Whom to tell this chunk now; told to the wave it counts as published.

        Args:
            chunk: path, offset and length.
            now_s: of a monotonic clock.
            listening_s: for how long the asker hears what the wave is told, as far as it
                says so.
        """
        while self._at_s:
            oldest, at_s = next(iter(self._at_s.items()))
            if now_s - at_s < self._quiet_s and len(self._at_s) <= MAX_REMEMBERED:
                break
            del self._at_s[oldest]
        told_s = self._at_s.get(chunk)
        if told_s is None:
            self._at_s[chunk] = now_s
            self.published += 1
            return Reply.WAVE
        age_s = now_s - told_s
        late = listening_s is not None and age_s > listening_s + ON_ITS_WAY_S
        if age_s < self._fresh_s and not late:
            self.spared += 1
            return Reply.NOTHING
        self.repaired += 1
        return Reply.ALONE

    def forget(self, chunk: Chunk) -> None:
        """It was not published after all."""
        if self._at_s.pop(chunk, None) is not None:
            self.published -= 1
