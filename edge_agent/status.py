"""What the agent says of itself: to its operator, and in telemetry to the fleet.

The ledger is looked at whenever the outbox is counted: at the start, every few seconds
and when somebody asks. One that does not balance is an error, reported everywhere.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterator, Mapping
from dataclasses import asdict, dataclass, fields
from typing import Any, Final

import structlog

from broker.messages import Report, SlotReport
from broker.mqtt.link import MqttLink
from edge_agent.adapters.machine import Machine
from edge_agent.adapters.outbox import Counts, Outbox, OutboxFailed, enduring
from edge_agent.core.accounts import Accounts
from edge_agent.core.ledger import Ledger
from edge_agent.core.slots import Slots
from edge_agent.loops.cascading import Cascading
from edge_agent.loops.ingress import Ingress
from edge_agent.loops.outcomes import Outcomes
from edge_agent.loops.serving import Serving
from edge_agent.loops.uplink import Uplink
from edge_agent.metrics import PREFIX, cascade_families, counter_families
from edge_agent.settings import AgentSettings
from lifecycle.metrics import Family, counter, gauge
from lifecycle.supervisor import Supervisor

log = structlog.get_logger(__name__)

COUNTS_EVERY_S: Final = 5.0
# As many as the message takes.
MAX_REPORTED: Final = 256


@dataclass(frozen=True, slots=True)
class Counted:
    """The parts that count what happens to requests."""

    serving: Serving
    uplink: Uplink
    outcomes: Outcomes
    ingress: Ingress
    outbox: Outbox
    cascading: Cascading

    def counters(self) -> dict[str, int]:
        """What has happened since the start, by name."""
        spilled = self.serving.spilled
        return {
            **asdict(self.serving.counters),
            **{f"spilled_{reason.value}": n for reason, n in spilled.items()},
            **{f"refused_{why}": n for why, n in self.serving.refused.items()},
            **asdict(self.uplink.counters),
            "uplink_window": self.uplink.window,
            **asdict(self.outcomes.counters),
            **{f"ingress_{k}": v for k, v in asdict(self.ingress.counters).items()},
            **{f"outbox_{k}": v for k, v in asdict(self.outbox.counters).items()},
        }


class AgentStatus:
    """Gathers the state of every part; `run` keeps what telemetry needs at hand."""

    def __init__(  # noqa: PLR0913 - the parts it speaks of
        self,
        *,
        settings: AgentSettings,
        loops: Supervisor,
        cloud: MqttLink | None,
        local: MqttLink | None,
        parts: Counted,
        slots: Callable[[], Mapping[str, Slots]],
        accounts: Accounts,
        progress: Callable[[], Mapping[str, tuple[int, int]]],
        machine: Machine,
        now_ms: Callable[[], float],
    ) -> None:
        self._settings = settings
        self._loops = loops
        self._cloud = cloud
        self._local = local
        self._parts = parts
        self._slots = slots
        self._accounts = accounts
        self._progress = progress
        self._machine = machine
        self._now_ms = now_ms
        self._counts: Counts | None = None
        self._missing = 0
        self.ledger_mismatches = 0

    async def run(self) -> None:
        """Count now and then, until cancelled."""
        await enduring(self._count_now_and_then)

    async def _count_now_and_then(self) -> None:
        while True:
            await asyncio.sleep(COUNTS_EVERY_S)
            await self.count()

    async def count(self) -> Counts:
        """Look at the outbox; the next report carries what was found.

        Raises:
            OutboxFailed: the file cannot be read now.
        """
        self._counts = await self._parts.outbox.counts()
        self._check(self._counts.ledger)
        return self._counts

    def _check(self, ledger: Ledger) -> None:
        if ledger.missing == self._missing:
            return
        self._missing = ledger.missing
        if ledger.balanced:
            log.info("ledger_balanced")
            return
        self.ledger_mismatches += 1
        log.error(
            "ledger_mismatch",
            missing=ledger.missing,
            accepted=dict(ledger.accepted),
            ended={f"{what}/{why}": n for (what, why), n in ledger.ended.items()},
            waiting=ledger.waiting,
        )

    async def now(self) -> dict[str, Any]:
        """Links, model slots, outbox and counters, as JSON would hold them.

        While the outbox cannot be read it is null but for its error, and the ledger is.
        """
        error = None
        counts = None
        try:
            counts = await self.count()
        except OutboxFailed as failed:
            error = self._parts.outbox.error or str(failed)
        watched = self._parts.cascading.shown()
        return {
            "agent": self._settings.agent_id,
            "cloud": self._cloud_side(),
            "spill_budget": self._parts.cascading.budget_shown(),
            "local": self._local_side(),
            "models": {
                name: {
                    **slots.shown(),
                    "health": self._health(slots),
                    "serving": None
                    if (served := self._parts.serving.model(name)) is None
                    else served.manifest.version,
                    "cascade": watched.get(name),
                }
                for name, slots in self._slots().items()
            },
            "outbox": {**self._depth(counts), "error": error},
            "ledger": None
            if counts is None
            else {**counts.ledger.shown(), "mismatches": self.ledger_mismatches},
            "loops": {
                "failures": dict(self._loops.failures),
                "last_error": self._loops.last_error,
            },
            "counters": self._counters(),
        }

    def _depth(self, counts: Counts | None) -> dict[str, Any]:
        names = [each.name for each in fields(Counts) if each.name != "ledger"]
        if counts is None:
            return dict.fromkeys([*names, "oldest_s"])
        oldest = counts.oldest_accepted_ms
        age_s = None if oldest is None else max(0.0, self._now_ms() - oldest) / 1000.0
        return {**{name: getattr(counts, name) for name in names}, "oldest_s": age_s}

    def _counters(self) -> dict[str, int]:
        failures = sum(self._loops.failures.values())
        return {**self._parts.counters(), "loop_failures": failures}

    def _cloud_side(self) -> dict[str, Any]:
        link = self._cloud
        if link is None:
            return {"configured": False, "up": False, "error": None}
        return {"configured": True, "up": link.up, "error": link.last_error}

    def _local_side(self) -> dict[str, Any]:
        link = self._local
        if link is None:
            return {"serving": False, "up": False, "error": None}
        return {
            "serving": True,
            "embedded": self._settings.local_url is None,
            "up": link.up,
            "error": link.last_error,
        }

    def why_not_ready(self) -> str | None:
        """Why devices cannot be heard; an agent without its cloud is ready all the same."""
        link = self._local
        if link is None or link.up:
            return None
        return f"devices are not heard: {link.last_error or 'connecting'}"

    def families(self) -> Iterator[Family]:
        """Every metric as it is now; what is in the outbox as it was counted last."""
        yield gauge(f"{PREFIX}ready", "1 while devices are heard.", self._ready())
        yield Family(
            f"{PREFIX}link_up",
            "1 while the link works.",
            "gauge",
            {
                (side,): float(link.up)
                for side, link in (("cloud", self._cloud), ("devices", self._local))
                if link is not None
            },
            ("link",),
        )
        yield gauge(
            f"{PREFIX}uplink_window",
            "Publishes that may wait for their PUBACK, as the link bears it.",
            self._parts.uplink.window,
        )
        yield from counter_families(self._parts.counters())
        yield Family(
            f"{PREFIX}loop_failures_total",
            "How often a loop has failed and was started again.",
            "counter",
            {(name,): n for name, n in self._loops.failures.items()},
            ("loop",),
        )
        yield counter(
            f"{PREFIX}ledger_mismatches_total",
            "How often the books did not balance: a request was lost or ended twice.",
            self.ledger_mismatches,
        )
        yield from cascade_families(
            self._parts.cascading.shown(), self._parts.cascading.budget_shown()
        )
        counts = self._counts
        if counts is not None:
            yield gauge(f"{PREFIX}outbox_open", "Spills without outcome.", counts.open)
            yield gauge(
                f"{PREFIX}outbox_open_bytes",
                "Bytes of spills without outcome.",
                counts.open_bytes,
            )
            yield gauge(
                f"{PREFIX}outbox_untold", "Outcomes not told yet.", counts.untold
            )

    def _ready(self) -> bool:
        return self.why_not_ready() is None

    def report(self) -> Report:
        """What the fleet is told."""
        counters = {
            **self._counters(),
            "ledger_mismatch": self.ledger_mismatches,
        }
        counts = self._counts
        if counts is not None:
            counters |= {
                "outbox_open": counts.open,
                "outcome_answered": counts.answered,
                "outcome_failed": counts.failed,
                "outcome_expired": counts.expired,
                "answers_undelivered": counts.ledger.undelivered,
                **{
                    f"accepted_{reason}": n
                    for reason, n in counts.ledger.accepted.items()
                },
            }
        # What serves comes first: a report has room for so many.
        slots = sorted(self._slots().values(), key=lambda each: each.active is None)
        return Report(
            agent=self._settings.agent_id,
            at_ms=round(self._now_ms()),
            slots=[self._slot_report(each) for each in slots[:MAX_REPORTED]],
            counters=counters,
            facts=self._machine.facts(),
        )

    def _slot_report(self, slots: Slots) -> SlotReport:
        name = slots.model
        health, before = self._accounts.report(slots, self._now_ms() / 1000.0)
        done, total = self._progress().get(name, (0, 0))
        return slots.report().model_copy(
            update={
                "cascade": self._parts.cascading.report(name, slots.active),
                "health": health,
                "before": before,
                "pulled_bytes": done,
                "total_bytes": total,
            }
        )

    def _health(self, slots: Slots) -> dict[str, Any] | None:
        health, _ = self._accounts.report(slots, self._now_ms() / 1000.0)
        return None if health is None else health.model_dump()
