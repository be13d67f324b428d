"""What a version did on one device, in pretence: counts that grow with time. Pure."""

from __future__ import annotations

from dataclasses import dataclass
from random import Random
from typing import Final

from broker.messages import HealthReport
from overspill.simulate.plan import Quality

# Beyond so many the sum of draws is a normal one, at a fraction of the work.
FEW: Final = 30


@dataclass(slots=True)
class Pretended:
    """One version while it serves.

    Attributes:
        quality: what is drawn from.
        rng: the device's own draws.
        requests_per_s: what it is asked.
        audit_share: of what it is sure of, what is compared all the same.
        slowness: of the device.
        since_s: when it began.
    """

    quality: Quality
    rng: Random
    requests_per_s: float
    audit_share: float
    slowness: float
    since_s: float
    requests: int = 0
    errors: int = 0
    spilled: int = 0
    chosen: int = 0
    compared: int = 0
    agreed: int = 0
    chosen_agreed: int = 0

    def until(self, now_s: float) -> HealthReport:
        """What it has done by now; time only ever goes forward."""
        due = int((now_s - self.since_s) * self.requests_per_s)
        fresh = max(0, due - self.requests)
        self.requests += fresh
        errors = self._draw(fresh, self.quality.errors)
        spilled = self._draw(fresh - errors, self.quality.spill)
        chosen = self._draw(fresh - errors - spilled, self.audit_share)
        # What it is unsure of it gets wrong more often.
        chosen_agreed = self._draw(chosen, min(1.0, self.quality.agreement + 0.02))
        self.errors += errors
        self.spilled += spilled
        self.chosen += chosen
        self.chosen_agreed += chosen_agreed
        self.compared += spilled + chosen
        self.agreed += chosen_agreed
        self.agreed += self._draw(spilled, max(0.0, self.quality.agreement - 0.02))
        ms = self.quality.latency_ms * self.slowness
        return HealthReport(
            for_s=max(0.0, now_s - self.since_s),
            requests=self.requests,
            errors=self.errors,
            spilled=self.spilled,
            compared=self.compared,
            agreed=self.agreed,
            chosen=self.chosen,
            chosen_agreed=self.chosen_agreed,
            p50_ms=ms,
            p99_ms=2.5 * ms,
        )

    def _draw(self, times: int, share: float) -> int:
        """How many of so many tries succeed."""
        if times <= 0 or share <= 0:
            return 0
        if times <= FEW:
            return sum(self.rng.random() < share for _ in range(times))
        drawn = self.rng.gauss(times * share, (times * share * (1 - share)) ** 0.5)
        return min(times, max(0, round(drawn)))
