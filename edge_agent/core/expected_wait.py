"""How long a spill sent now is expected to wait. What was heard fades until it is heard anew."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

LEAST_HALF_LIFE_S: Final = 5.0


@dataclass(frozen=True, slots=True)
class ExpectedWait:
    """What was heard last.

    A pool that nothing is sent to says nothing, so its last word loses half of its
    weight in as long as it was, and in five seconds at least: then it is tried again.

    Attributes:
        heard_s: the wait; 0 before anything is known.
        at_s: when it was heard.
    """

    heard_s: float = 0.0
    at_s: float = 0.0

    def at(self, now_s: float) -> float:
        """What is expected now, in seconds."""
        half_life_s = max(LEAST_HALF_LIFE_S, self.heard_s)
        faded: float = 0.5 ** (max(0.0, now_s - self.at_s) / half_life_s)
        return self.heard_s * faded

    def heard(self, wait_s: float, now_s: float) -> ExpectedWait:
        """The pool has said how long it takes."""
        return ExpectedWait(wait_s, now_s)

    def missed(self, waited_s: float, now_s: float) -> ExpectedWait:
        """A spill has waited so long in vain: it is this at the least."""
        return ExpectedWait(max(waited_s, self.at(now_s)), now_s)
