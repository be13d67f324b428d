"""What a wave must show before the next one begins, and whether it does.

A gate **fails** on proof of harm and **passes** on proof of no great harm; between the
two it is inconclusive, and the rollout waits. `limit` is the harm that fails it when it is
proven; `enough` is the harm that must be proven absent to pass. Both by the same interval, which holds at all times
at once (`fleet.core.intervals`), so looking each second makes no false alarm likelier.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from enum import StrEnum
from typing import Final


class GateKind(StrEnum):
    """What is looked at."""

    SUCCESS = "success"
    SILENCE = "silence"
    ERRORS = "errors"
    AGREEMENT = "agreement"
    SPILL = "spill"
    LATENCY = "latency"
    PROMISE = "promise"


class Decision(StrEnum):
    """What a gate says."""

    PASS = "pass"  # noqa: S105 - no password
    FAIL = "fail"
    INCONCLUSIVE = "inconclusive"


class Unsure(StrEnum):
    """What an inconclusive gate does: hold the wave and in the end ask, or nothing."""

    ASK = "ask"
    GO_ON = "go_on"


@dataclass(frozen=True, slots=True)
class Gate:
    """One thing a wave is judged by; what the numbers mean is `SAYS[kind]`.

    Attributes:
        kind: what is looked at.
        limit: proven beyond it, the gate fails.
        enough: proven not beyond it, the gate passes in the first wave; from wave to
            wave it comes closer to `limit`, by half. None means `limit`.
        min_sample: of fewer (agents, requests or comparisons) it says nothing.
        unsure: `ASK` holds the wave until it passes, and asks a person when the
            wave's patience has run out; `GO_ON` only stops on proof of harm.
        false_alarm: the chance, over the whole rollout, that it fails although the
            truth is at its limit.
    """

    kind: GateKind
    limit: float
    enough: float | None = None
    min_sample: int = 1
    unsure: Unsure = Unsure.ASK
    false_alarm: float = 0.01

    def asked(self, wave: int) -> float:
        """What harm must be proven absent for a wave, from 0 on, to pass.

        The further a version has spread, the more is known, and the more is asked.
        """
        enough = self.limit if self.enough is None else self.enough
        return self.limit + (enough - self.limit) * math.pow(0.5, wave)


@dataclass(frozen=True, slots=True)
class Verdict:
    """What one gate says of a wave; the value lies in `low` to `high`.

    `value`, `low` and `high` are None while nothing can be said. `final`: it is
    inconclusive and no more will be learned by waiting.
    """

    kind: GateKind
    decision: Decision
    sample: int
    value: float | None = None
    low: float | None = None
    high: float | None = None
    reason: str = ""
    final: bool = False


# A median over so many times that of before is a slower agent.
SLOWER: Final = 1.5
SAYS: Final = {
    GateKind.SUCCESS: "share of agents that failed: refused, returned, stuck or silent",
    GateKind.SILENCE: "share of agents not heard of within their lease",
    GateKind.ERRORS: "share of requests that the new version failed",
    GateKind.AGREEMENT: "how much less it agrees with the cloud than the version before",
    GateKind.SPILL: "how much more is spilled than by the version before",
    GateKind.LATENCY: "share of agents on which its median is over 1.5 times that before",
    GateKind.PROMISE: "share of agents on which the cascade's promise is broken",
}

# What a staged rollout is judged by when nobody says otherwise.
DEFAULT_GATES: Final = (
    Gate(GateKind.SUCCESS, limit=0.2),
    Gate(GateKind.SILENCE, limit=0.2),
    Gate(GateKind.ERRORS, limit=0.02, enough=0.05, min_sample=20),
    Gate(GateKind.AGREEMENT, limit=0.05, enough=0.15, min_sample=20),
    Gate(GateKind.SPILL, limit=0.1, enough=0.3, min_sample=50, unsure=Unsure.GO_ON),
    Gate(GateKind.LATENCY, limit=0.5, min_sample=1, unsure=Unsure.GO_ON),
    Gate(GateKind.PROMISE, limit=0.2, min_sample=1, unsure=Unsure.GO_ON),
)
