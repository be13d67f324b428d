"""The way of a request: answered here, or kept, spilled and told how it ended."""

from __future__ import annotations

import contextlib
import functools
import random
from collections.abc import Callable

from broker.backoff import Backoff
from broker.mqtt.link import MqttLink
from cascade.allowance import bytes_allowance, parse_share
from edge_agent.adapters.outbox import Outbox
from edge_agent.adapters.watch_file import WatchFile
from edge_agent.core.accounts import Accounts
from edge_agent.core.delivery import Ending, Spill
from edge_agent.core.payload import PayloadLimits
from edge_agent.core.quotas import QuotaLimits
from edge_agent.core.watch import WatchOptions
from edge_agent.loops.calls import Calls
from edge_agent.loops.cascading import Cascading
from edge_agent.loops.ingress import Ingress
from edge_agent.loops.outcomes import Outcomes
from edge_agent.loops.serving import Serving
from edge_agent.loops.spans import RequestSpans
from edge_agent.loops.timekeeping import Timekeeping
from edge_agent.loops.uplink import NoLink, Uplink, UplinkLimits
from edge_agent.settings import AgentSettings
from edge_agent.status import Counted
from lifecycle.journal import Journal
from lifecycle.supervisor import Supervisor


def outbox_of(settings: AgentSettings, journal: Journal) -> Outbox:
    """The outbox, not open yet."""
    return Outbox(
        settings.outbox_path,
        group_commit_ms=settings.group_commit_ms,
        limits=QuotaLimits(
            max_rows=settings.outbox_max_rows,
            max_bytes=settings.outbox_max_bytes,
            device_max_rows=settings.device_max_rows,
            device_max_bytes=settings.device_max_bytes,
        ),
        disk_reserve_bytes=settings.disk_reserve_bytes,
        journal=journal,
    )


class Requests:
    """What a request meets, from its arrival to its outcome.

    Args:
        settings: every knob.
        timekeeping: the agent's time.
        outbox: open, or on its way to be.
        cloud: the link to the pool; None for an agent without one.
        local: the link to the devices' broker; None without devices.
        spans: what is traced of requests; None: nothing.
        journal: told what happens to each spill.
        rng: spreads retries and draws audits.
    """

    def __init__(  # noqa: PLR0913 - what it stands on
        self,
        settings: AgentSettings,
        *,
        timekeeping: Timekeeping,
        outbox: Outbox,
        cloud: MqttLink | None,
        local: MqttLink | None,
        spans: RequestSpans | None,
        journal: Journal,
        rng: random.Random,
    ) -> None:
        now_ms = timekeeping.time.now_ms
        has_cloud = cloud is not None
        self._timekeeping = timekeeping
        self.outbox = outbox
        self._has_cloud = has_cloud
        self._rng = rng
        # Told of each outcome, after the books: for shadows.
        self.on_outcome: Callable[[Spill, Ending], None] = lambda _, __: None
        self.accounts = Accounts()
        self.limits = PayloadLimits(max_payload_bytes=settings.max_payload_bytes)
        self.uplink = Uplink(
            agent=settings.agent_id,
            link=cloud or NoLink(),
            outbox=outbox,
            limits=_uplink_limits(settings),
            now_ms=now_ms,
            rng=rng,
            journal=journal,
        )
        if timekeeping.last_offset_ms is not None:
            self.uplink.pool_offset_ms = timekeeping.last_offset_ms
        self.outcomes = Outcomes(
            outbox=outbox,
            uplink=self.uplink,
            local=local,
            now_ms=now_ms,
            keep_outcomes_s=settings.keep_outcomes_s,
            keep_untold_s=settings.keep_untold_s,
            journal=journal,
            spans=spans,
        )
        self.cascading = _cascading(
            settings, has_cloud=has_cloud, now_ms=now_ms, rng=rng
        )
        self.uplink.on_bytes = self.cascading.sent
        self.outcomes.on_result = self.cascading.heard
        self.outcomes.on_outcome = self._ended
        self.serving = Serving(
            outbox=outbox,
            uplink=self.uplink,
            outcomes=self.outcomes,
            has_cloud=has_cloud,
            now_ms=now_ms,
            default_deadline_s=settings.default_deadline_s,
            agent=settings.agent_id,
            cascading=self.cascading,
            accounts=self.accounts,
            spans=spans,
            forbid_capture=settings.forbid_capture,
        )
        self.calls = Calls(serving=self.serving, outcomes=self.outcomes, outbox=outbox)
        self.ingress = Ingress(
            serving=self.serving,
            outcomes=self.outcomes,
            outbox=outbox,
            limits=self.limits,
            limit=settings.ingress_limit,
            answers=settings.answers,
            now_ms=now_ms,
        )

    @property
    def counted(self) -> Counted:
        """Those of the parts that count."""
        return Counted(
            self.serving,
            self.uplink,
            self.outcomes,
            self.ingress,
            self.outbox,
            self.cascading,
        )

    def open(self, stack: contextlib.AsyncExitStack) -> None:
        """Have what must outlive the process saved at the end, and models freed."""
        stack.callback(lambda: self._timekeeping.save(self.uplink.pool_offset_ms))
        stack.callback(self.cascading.save)
        stack.push_async_callback(self.serving.close)

    def start(self, loops: Supervisor) -> None:
        """Start the loops of requests; those of links are others'."""
        pauses = Backoff(rng=self._rng)
        loops.start("outbox", functools.partial(self.outbox.keep_open, pauses))
        loops.start("outcomes", self.outcomes.run)
        loops.start(
            "time", lambda: self._timekeeping.run(lambda: self.uplink.pool_offset_ms)
        )
        loops.start("promises", self.cascading.run)
        if self._has_cloud:
            loops.start("uplink", self.uplink.run)

    def cloud_changed(self, up: bool) -> None:
        """The link to the pool is there, or is lost."""
        self.uplink.link_changed(up)
        self.cascading.link_changed(up)

    def pool_s(self) -> float | None:
        """The pool's wall clock; None until a result has told it."""
        if not self.outcomes.knows_pool_time:
            return None
        return (self._timekeeping.time.now_ms() + self.uplink.pool_offset_ms) / 1000.0

    def _ended(self, spill: Spill, ending: Ending) -> None:
        self.cascading.ended(spill, ending)
        self.accounts.ended(spill, ending)
        self.on_outcome(spill, ending)


def _uplink_limits(settings: AgentSettings) -> UplinkLimits:
    return UplinkLimits(
        window=settings.uplink_window,
        envelope_items=settings.envelope_items,
        envelope_bytes=settings.envelope_bytes,
        resend_first_s=settings.resend_after_s,
        resend_most_s=settings.resend_most_s,
    )


def _cascading(
    settings: AgentSettings,
    *,
    has_cloud: bool,
    now_ms: Callable[[], float],
    rng: random.Random,
) -> Cascading:
    quota, budget = settings.spill_quota, settings.spill_budget
    return Cascading(
        options=WatchOptions(
            audit_share=settings.audit_share,
            spill_quota=None if quota is None else parse_share(quota),
            false_alarm=settings.drift_false_alarm,
            period_s=settings.promise_period_s,
        ),
        budget=None if budget is None else bytes_allowance(budget, now_ms() / 1000.0),
        file=WatchFile(settings.state_dir / "promises.json"),
        has_cloud=has_cloud,
        now_ms=now_ms,
        rng=rng,
    )
