"""Which chunks a wave has just been told, so that none is published twice. Pure."""

from __future__ import annotations

from collections import OrderedDict
from typing import Final

QUIET_S: Final = 5.0
MAX_REMEMBERED: Final = 4096

Chunk = tuple[str, int, int]


class SharedChunks:
    """Remembers what was published on shared topics for `quiet_s`.

    Attributes:
        published: chunks that were.
        spared: questions that an earlier publish had answered.
    """

    def __init__(self, quiet_s: float = QUIET_S) -> None:
        self._quiet_s = quiet_s
        self._at_s: OrderedDict[Chunk, float] = OrderedDict()
        self.published = 0
        self.spared = 0

    def claim(self, chunk: Chunk, now_s: float) -> bool:
        """Whether to publish this chunk now; if so it counts as published.

        Args:
            chunk: path, offset and length.
            now_s: of a monotonic clock.
        """
        while self._at_s:
            oldest, at_s = next(iter(self._at_s.items()))
            if now_s - at_s < self._quiet_s and len(self._at_s) <= MAX_REMEMBERED:
                break
            del self._at_s[oldest]
        if chunk in self._at_s:
            self.spared += 1
            return False
        self._at_s[chunk] = now_s
        self.published += 1
        return True

    def forget(self, chunk: Chunk) -> None:
        """It was not published after all."""
        if self._at_s.pop(chunk, None) is not None:
            self.published -= 1
