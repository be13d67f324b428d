"""What was accepted must be accounted for: accepted = answered + failed + expired + waiting.

The counts are written with the rows they count, so a difference means a defect or a
file that something else has touched.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from edge_agent.core.delivery import Outcome


@dataclass(frozen=True, slots=True)
class Ledger:
    """Every spill that this outbox has taken, since its file was made.

    Attributes:
        accepted: how many, by the reason for which they spilled.
        ended: how many, by outcome and what brought it about.
        waiting: open rows, counted one by one.
        undelivered: outcomes that no device acknowledged within the time limit.
    """

    accepted: Mapping[str, int]
    ended: Mapping[tuple[str, str], int]
    waiting: int
    undelivered: int

    def of(self, outcome: Outcome) -> int:
        """How many ended that way."""
        return sum(n for (name, _), n in self.ended.items() if name == outcome)

    @property
    def missing(self) -> int:
        """Accepted, neither ended nor waiting. Anything but 0 is an error."""
        return sum(self.accepted.values()) - sum(self.ended.values()) - self.waiting

    @property
    def balanced(self) -> bool:
        """Whether everything is accounted for."""
        return self.missing == 0

    def shown(self) -> dict[str, Any]:
        """As JSON would hold it."""
        by_why: dict[str, dict[str, int]] = {}
        for (outcome, why), count in sorted(self.ended.items()):
            by_why.setdefault(outcome, {})[why] = count
        return {
            "accepted": dict(sorted(self.accepted.items())),
            **{outcome.value: self.of(outcome) for outcome in Outcome},
            "waiting": self.waiting,
            "undelivered": self.undelivered,
            "missing": self.missing,
            "balanced": self.balanced,
            "by_why": by_why,
        }
