"""What is known of an agent, as a value. The newest report that arrived wins.

An agent's own clock may be wrong, so only times of arrival are kept.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace

from broker.messages import Report, SlotReport


@dataclass(frozen=True, slots=True)
class Device:
    """One agent as it last reported itself.

    `first_seen_ms` and `last_seen_ms` are Unix time of the fleet's own clock.
    """

    agent: str
    first_seen_ms: int
    last_seen_ms: int
    slots: tuple[SlotReport, ...] = ()
    counters: Mapping[str, int] = field(default_factory=dict)
    facts: Mapping[str, str] = field(default_factory=dict)
    reports: int = 0

    def slot(self, model: str) -> SlotReport | None:
        """What the agent says of one model."""
        return next((each for each in self.slots if each.model == model), None)

    def silent(self, now_ms: int, silent_after_s: float) -> bool:
        """Whether it was not heard of for too long."""
        return now_ms - self.last_seen_ms > silent_after_s * 1000


def observe(known: Device | None, agent: str, report: Report, now_ms: int) -> Device:
    """The agent after a report; `agent` is who the broker says it is."""
    before = known or Device(agent, first_seen_ms=now_ms, last_seen_ms=now_ms)
    return replace(
        before,
        # Also when the fleet's clock was set back: or nobody would ever fall silent.
        last_seen_ms=now_ms,
        slots=tuple(report.slots),
        counters=dict(report.counters),
        facts=dict(report.facts),
        reports=before.reports + 1,
    )
