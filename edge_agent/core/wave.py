"""Who of a wave asks for a chunk that all of it will hear. Pure.

Nobody knows of the others. Each waits for a moment drawn by chance; who finds the topic
silent then asks for one chunk. If that is the first it hears, it leads, and goes on asking
as its chunks come; the others hear them and keep quiet. After a silence somebody asks
again: the pool gives what it has published a while ago to whoever asks, alone, so who
comes late or has missed a chunk costs the wave nothing. (The suppression of NORM, RFC
5740, without its rounds.) Members of the pool know nothing of each other, so each chunk
that two agents ask for at once may be told twice: moments are drawn so that few are early.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

# So often in a row what was asked for did not come: the rest is fetched alone.
MOST_SILENCES: Final = 3
# Who has asked is patient, and more so each time: a broker that has a chunk for a thousand
# agents takes seconds, and what is asked for again then makes it take longer.
PATIENCE: Final = 4
# Moments are drawn for a wave of about e to the power of this, a few thousand; a smaller
# one only waits longer.
LN_WAVE: Final = 8.0


@dataclass(frozen=True, slots=True)
class AskWave:
    """Ask for these chunks on the shared topic."""

    chunks: tuple[int, ...]


@dataclass(frozen=True, slots=True)
class Listen:
    """Keep quiet until `until_s`, or until something is heard."""

    until_s: float


@dataclass(frozen=True, slots=True)
class Leave:
    """Nothing more is to be had by listening."""


Turn = AskWave | Listen | Leave


class WaveTurns:
    """One agent's turns while a wave pulls one blob.

    Args:
        missing: the chunks it lacks, in the order in which it would ask for them; a
            different one for each agent, so that those who ask at once divide the work.
        window: chunks it has asked for at once.
        first_s: its first turn comes after so long, or up to twice that: the others of
            the wave may not be there yet.
        silent_s: without a chunk for so long, or up to twice that, the topic is silent.
        now_s: of a monotonic clock.
        chance: drawn from [0, 1), as in every other call.
    """

    def __init__(
        self,
        missing: Sequence[int],
        *,
        window: int,
        first_s: float,
        silent_s: float,
        now_s: float,
        chance: float,
    ) -> None:
        self._missing = dict.fromkeys(missing)
        self._window = window
        self._silent_s = silent_s
        self._asked: set[int] = set()
        self._silences = 0
        # Whether it has asked, and nothing was heard since.
        self._stands = False
        self._leads = False
        # Chunks that came as it had asked.
        self._led = 0
        self._due_s = now_s + first_s * _late(chance)

    def heard(self, chunk: int, now_s: float, chance: float) -> None:
        """A chunk is here, whoever asked for it."""
        self._missing.pop(chunk, None)
        # Where another's chunk came first, another leads.
        self._leads |= self._stands and chunk in self._asked
        self._led += chunk in self._asked
        self._stands = False
        self._asked.discard(chunk)
        self._silences = 0
        self._due_s = now_s + self._silent_s * _late(chance)

    def next(self, now_s: float, chance: float) -> Turn:
        """What to do now. Chunks that it says to ask for count as asked."""
        if not self._missing:
            return Leave()
        if self._leads:
            # More with each that came: what others have asked for is heard by then.
            chunks = self._take(min(self._window, self._led) - len(self._asked))
            if chunks:
                return AskWave(chunks)
        if now_s < self._due_s:
            return Listen(self._due_s)
        return self._break_silence(now_s, chance)

    def _break_silence(self, now_s: float, chance: float) -> Turn:
        if self._asked:
            self._silences += 1
            if self._silences >= MOST_SILENCES:
                return Leave()
        self._leads, self._stands, self._led = False, True, 0
        self._asked.clear()
        self._due_s = now_s + self._silent_s * PATIENCE * 2**self._silences * _late(
            chance
        )
        # One: of all who break a silence together the pool hears few words.
        return AskWave(self._take(1))

    def _take(self, count: int) -> tuple[int, ...]:
        chunks = [each for each in self._missing if each not in self._asked]
        taken = tuple(chunks[: max(0, count)])
        self._asked.update(taken)
        return taken


def _late(chance: float) -> float:
    """From 1 to 2, most often near 2: of many who draw, one or two are first.

    Exponential as the timers of J. Nonnenmacher and E. Biersack, "Scalable Feedback for
    Large Groups", IEEE/ACM Transactions on Networking 7(3), 1999.
    """
    return 1 + math.log1p(chance * math.expm1(LN_WAVE)) / LN_WAVE
