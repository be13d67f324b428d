"""Wire the agent together: as a daemon for devices, or inside a program that embeds it.

async with Agent(settings) as agent:
    answer = await agent.infer("fashion", image)
"""

from __future__ import annotations

import asyncio
import contextlib
import errno
import functools
import random
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any, Final, Self

import structlog

from broker import topics
from broker.backoff import Backoff
from broker.messages import Priority
from broker.mqtt.link import MqttLink
from broker.mqtt.target import MqttTarget
from broker.traceparent import read_traceparent
from bundle.source import Source
from cascade.allowance import bytes_allowance, parse_share
from edge_agent.adapters.control import ControlServer, only_agent_of
from edge_agent.adapters.day_file import DayFile
from edge_agent.adapters.embedded_broker import EmbeddedBroker
from edge_agent.adapters.machine import Machine
from edge_agent.adapters.model_store import ModelStore
from edge_agent.adapters.mqtt_source import MqttSource
from edge_agent.adapters.outbox import (
    Outbox,
    OutboxFailed,
)
from edge_agent.adapters.provisioned_seals import who_vouches
from edge_agent.adapters.sources import sources_of
from edge_agent.adapters.time_stamp import TimeStampFile, this_boot
from edge_agent.adapters.trusted_seals import TrustedSeals
from edge_agent.adapters.watch_file import WatchFile
from edge_agent.core.accounts import Accounts
from edge_agent.core.answers import Answer
from edge_agent.core.calls import Call, Inputs, read_call
from edge_agent.core.delivery import Ending, Spill
from edge_agent.core.payload import (
    PayloadLimits,
)
from edge_agent.core.quotas import QuotaLimits
from edge_agent.core.watch import WatchOptions
from edge_agent.loops.calls import Calls
from edge_agent.loops.cascading import Cascading
from edge_agent.loops.fetching import FetchSettings
from edge_agent.loops.ingress import REQUEST_FILTER, Ingress
from edge_agent.loops.loading import Loading, LoadingSettings
from edge_agent.loops.metering import Metering
from edge_agent.loops.outcomes import Outcomes
from edge_agent.loops.probation import Probation
from edge_agent.loops.pulling import Puller, PullSettings
from edge_agent.loops.reporting import Reporting
from edge_agent.loops.serving import Serving
from edge_agent.loops.shadowing import Shadowing
from edge_agent.loops.slot_book import SlotBook
from edge_agent.loops.spans import RequestSpans
from edge_agent.loops.timekeeping import Timekeeping
from edge_agent.loops.update_ports import Here, NoTrustRoot, Trust
from edge_agent.loops.updates import Updates, UpdateSettings
from edge_agent.loops.uplink import Link, NoLink, Uplink, UplinkLimits
from edge_agent.operator import Operator
from edge_agent.settings import AgentSettings
from edge_agent.status import AgentStatus, Counted
from lifecycle.clock import Clock, SystemClock
from lifecycle.health import Pulse, readiness_page
from lifecycle.journal import NOBODY, Journal
from lifecycle.supervisor import Supervisor
from lifecycle.tracing import Tracing

log = structlog.get_logger(__name__)

ONLY_INPUT: Final = "input"


class Agent:
    """One agent. Use as `async with Agent(settings) as agent`.

    Args:
        settings: every knob.
        clock: where time comes from.
        devices: serve devices over MQTT and answer the control socket; a program
            that embeds the agent may leave both out.
        journal: told what happens to each spill.
        boot_id: names the boot of the machine that `clock` is of; the system's own
            when both are left out.
    """

    def __init__(
        self,
        settings: AgentSettings,
        *,
        clock: Clock | None = None,
        devices: bool | None = None,
        journal: Journal = NOBODY,
        boot_id: str | None = None,
    ) -> None:
        self.settings = settings
        self._devices = settings.local if devices is None else devices
        self._clock = clock or SystemClock()
        self._boot_id = boot_id or (this_boot() if clock is None else None)
        self._journal = journal
        self._rng = random.Random()  # noqa: S311 - it spreads retries, guards nothing
        self._stack = contextlib.AsyncExitStack()

    async def __aenter__(self) -> Self:
        try:
            await self._open()
        except BaseException:
            await self._stack.aclose()
            raise
        return self

    async def __aexit__(self, *_: object) -> None:
        await self._stack.aclose()

    async def run(
        self, stop: asyncio.Event, *, on_ready: Callable[[], None] = lambda: None
    ) -> None:
        """Serve until `stop` is set; `ready` is logged once devices can be heard."""
        if self._local is not None and not await self._heard(self._local, stop):
            return
        log.info(
            "ready",
            agent=self.settings.agent_id,
            models={name: slots.active for name, slots in self._book.all.items()},
        )
        on_ready()
        await stop.wait()
        log.info("stopping", agent=self.settings.agent_id)

    async def _heard(self, local: MqttLink, stop: asyncio.Event) -> bool:
        """Wait for the devices' broker, which may come much later, or for the end."""
        async with asyncio.TaskGroup() as either:
            up = either.create_task(local.wait_up())
            stopped = either.create_task(stop.wait())
            await asyncio.wait((up, stopped), return_when=asyncio.FIRST_COMPLETED)
            up.cancel()
            stopped.cancel()
        return not stop.is_set()

    # --- for a program that embeds the agent ---------------------------------------

    async def infer(  # noqa: PLR0913 - each is a choice of the caller's
        self,
        model: str,
        inputs: Inputs,
        *,
        id: str | None = None,  # noqa: A002 - the word of the wire
        device: str | None = None,
        deadline_s: float | None = None,
        priority: Priority = Priority.NORM,
        force: bool = False,
        traceparent: str | None = None,
        capture: bool = True,
    ) -> Answer:
        """Answer one request, here or in the cloud.

        Args:
            model: its name.
            inputs: the bytes of a PNG or JPEG, the array of the model's only input,
                or every input by name; batch first.
            id: resend the same id to hear the same outcome; made when left out.
            device: whose request it is; the agent's own id when left out.
            deadline_s: seconds until an answer is of no use any more.
            priority: its class.
            force: ask the cloud whatever the edge thinks.
            traceparent: the caller's span, in the words of W3C; what is none is ignored.
            capture: False forbids the pool to keep it as an example for retraining.

        Returns:
            The final answer. A request that cannot be taken has status `refused`
            and its reason; this does not raise.
        """
        served = self._serving.model(model)
        call = Call(
            model=model,
            inputs=inputs,
            only_input=ONLY_INPUT
            if served is None
            else next(iter(served.input_shapes)),
            id=id,
            device=device or self.settings.agent_id,
            deadline_s=deadline_s,
            priority=priority,
            forced=force,
            traceparent=None if traceparent is None else read_traceparent(traceparent),
            capture=capture,
        )
        request = read_call(call, max_payload_bytes=self.settings.max_payload_bytes)
        if isinstance(request, Answer):
            self._serving.count_refusal("bad_request")
            return request
        return await self._calls.answer(request)

    # --- state ----------------------------------------------------------------------

    async def status(self) -> dict[str, Any]:
        """Link, model slots, outbox and counters, as JSON would hold them."""
        return await self._status.now()

    # --- wiring -----------------------------------------------------------------------

    async def _open(self) -> None:
        settings = self.settings
        settings.state_dir.mkdir(mode=0o700, parents=True, exist_ok=True)
        self._stack.enter_context(only_agent_of(settings.state_dir))
        if settings.trusted_root is not None:
            # Told at the start, not when the first update comes.
            settings.trusted_root.read_bytes()
        stamps = TimeStampFile(settings.state_dir / "time.json", self._boot_id)
        self._timekeeping = Timekeeping(stamps, self._clock)
        self._time = self._timekeeping.time
        self._store = ModelStore(settings.state_dir / "models")
        self._book = SlotBook(self._store)
        self._accounts = Accounts()
        self._outbox = await self._stack.enter_async_context(
            Outbox(
                settings.outbox_path,
                group_commit_ms=settings.group_commit_ms,
                limits=QuotaLimits(
                    max_rows=settings.outbox_max_rows,
                    max_bytes=settings.outbox_max_bytes,
                    device_max_rows=settings.device_max_rows,
                    device_max_bytes=settings.device_max_bytes,
                ),
                disk_reserve_bytes=settings.disk_reserve_bytes,
                journal=self._journal,
            )
        )
        await self._open_local_broker()
        self._make_links()
        self._open_traces()
        self._make_parts()
        self._stack.callback(
            lambda: self._timekeeping.save(self._uplink.pool_offset_ms)
        )
        self._stack.callback(self._cascading.save)
        with contextlib.suppress(OutboxFailed):  # the status says so
            await self._status.count()
        self._stack.push_async_callback(self._serving.close)
        vouch = who_vouches(
            settings.trusted_root,
            settings.provisioned_registry,
            settings.state_dir,
            unsigned=settings.unsigned_bundles,
            clock=self._clock,
        )
        self._book.start_with(await self._loading.restore(settings.bundles, vouch))
        await self._probation.restore()
        self._stack.push_async_callback(self._probation.close)
        await self._open_control()
        await self._serve_health()
        await self._stack.enter_async_context(self._loops)
        self._start(self._loops)

    async def _open_local_broker(self) -> None:
        settings = self.settings
        if self._devices and settings.local_url is None:
            await self._stack.enter_async_context(
                EmbeddedBroker(settings.embedded_host, settings.embedded_port)
            )

    def _make_links(self) -> None:
        settings = self.settings
        agent = settings.agent_id
        self._cloud: MqttLink | None = None
        if settings.cloud_url is not None:
            target = MqttTarget.from_url(settings.cloud_url)
            if settings.cloud_ca_file is not None:
                target = replace(target, ca_file=str(settings.cloud_ca_file))
            self._cloud = MqttLink(
                target,
                client_id=agent,
                subscriptions=[topics.downlink(agent)],
                on_message=self._on_cloud_message,
                on_change=self._on_cloud_change,
                window=settings.uplink_window + 8,
                keepalive_s=settings.keepalive_s,
                answered=topics.wants_result,
            )
        self._local: MqttLink | None = None
        if self._devices:
            url = settings.local_url or (
                f"mqtt://{settings.embedded_host}:{settings.embedded_port}"
            )
            self._local = MqttLink(
                MqttTarget.from_url(url),
                client_id=f"overspill-{agent}",
                subscriptions=[REQUEST_FILTER],
                on_message=self._on_device_message,
                on_change=self._on_local_change,
                window=100,
            )

    def _open_traces(self) -> None:
        self._spans: RequestSpans | None = None
        if self.settings.traces is not None:
            tracing = Tracing(
                self.settings.traces,
                service="overspill-agent",
                instance=self.settings.agent_id,
            )
            self._stack.push_async_callback(asyncio.to_thread, tracing.close)
            self._spans = RequestSpans(tracing)

    async def _serve_health(self) -> None:
        settings = self.settings
        if settings.http_port is None:
            return
        # Without a port an agent need not hold what serves it.
        from lifecycle.metrics import Exposition  # noqa: PLC0415
        from lifecycle.pages import Pages  # noqa: PLC0415

        pulse = self._stack.enter_context(Pulse(self._clock))
        pages = Pages(
            settings.http_host,
            settings.http_port,
            {
                "/healthz": pulse.page,
                "/readyz": functools.partial(
                    readiness_page, self._status.why_not_ready
                ),
                "/metrics": Exposition(self._status.families).page,
            },
        )
        await self._stack.enter_async_context(pages)

    def _make_cascading(self) -> None:
        settings = self.settings
        quota, budget = settings.spill_quota, settings.spill_budget
        self._cascading = Cascading(
            options=WatchOptions(
                audit_share=settings.audit_share,
                spill_quota=None if quota is None else parse_share(quota),
                false_alarm=settings.drift_false_alarm,
                period_s=settings.promise_period_s,
            ),
            budget=None
            if budget is None
            else bytes_allowance(budget, self._time.now_ms() / 1000.0),
            file=WatchFile(settings.state_dir / "promises.json"),
            has_cloud=self._cloud is not None,
            now_ms=self._time.now_ms,
            rng=self._rng,
        )
        self._uplink.on_bytes = self._cascading.sent
        self._outcomes.on_result = self._cascading.heard
        self._outcomes.on_outcome = self._on_outcome

    def _make_parts(self) -> None:
        settings = self.settings
        link: Link = self._cloud if self._cloud is not None else NoLink()
        self._uplink = Uplink(
            agent=settings.agent_id,
            link=link,
            outbox=self._outbox,
            limits=UplinkLimits(
                window=settings.uplink_window,
                envelope_items=settings.envelope_items,
                envelope_bytes=settings.envelope_bytes,
                resend_first_s=settings.resend_after_s,
                resend_most_s=settings.resend_most_s,
            ),
            now_ms=self._time.now_ms,
            rng=self._rng,
            journal=self._journal,
        )
        if self._timekeeping.last_offset_ms is not None:
            self._uplink.pool_offset_ms = self._timekeeping.last_offset_ms
        self._outcomes = Outcomes(
            outbox=self._outbox,
            uplink=self._uplink,
            local=self._local,
            now_ms=self._time.now_ms,
            keep_outcomes_s=settings.keep_outcomes_s,
            keep_untold_s=settings.keep_untold_s,
            journal=self._journal,
            spans=self._spans,
        )
        self._make_cascading()
        self._serving = Serving(
            outbox=self._outbox,
            uplink=self._uplink,
            outcomes=self._outcomes,
            has_cloud=self._cloud is not None,
            now_ms=self._time.now_ms,
            default_deadline_s=settings.default_deadline_s,
            agent=settings.agent_id,
            cascading=self._cascading,
            accounts=self._accounts,
            spans=self._spans,
            forbid_capture=settings.forbid_capture,
        )
        self._calls = Calls(
            serving=self._serving, outcomes=self._outcomes, outbox=self._outbox
        )
        self._loading = Loading(
            store=self._store,
            accounts=self._accounts,
            settings=LoadingSettings(
                threads=settings.threads,
                infer_queue=settings.infer_queue,
                trial_timeout_s=settings.trial_timeout_s,
                trial_memory_mb=settings.trial_memory_mb,
            ),
            swap=self._serving.swap,
        )
        self._limits = PayloadLimits(max_payload_bytes=settings.max_payload_bytes)
        self._ingress = Ingress(
            serving=self._serving,
            outcomes=self._outcomes,
            outbox=self._outbox,
            limits=self._limits,
            limit=settings.ingress_limit,
            answers=settings.answers,
            now_ms=self._time.now_ms,
        )
        self._make_model_side()
        self._make_status()
        self._make_fleet_side(link)

    def _now_s(self) -> float:
        return self._time.now_ms() / 1000.0

    def _make_model_side(self) -> None:
        settings = self.settings
        self._machine = Machine(
            settings.state_dir,
            board=settings.board,
            utc_offset_min=settings.utc_offset_min,
            wall_s=lambda: self._clock.wall_ms() / 1000.0,
            pool_s=self._pool_s,
        )
        self._probation = Probation(
            slots=self._book,
            store=self._store,
            accounts=self._accounts,
            load=self._loading.load,
            swap=self._serving.swap,
            remove=self._serving.remove,
            now_s=self._now_s,
        )
        self._shadowing = Shadowing(
            slots=self._book,
            accounts=self._accounts,
            threads=settings.threads,
            memory_mb=settings.trial_memory_mb,
            now_s=self._now_s,
        )
        self._serving.on_answer = self._shadowing.offer

    def _pool_s(self) -> float | None:
        if not self._outcomes.knows_pool_time:
            return None
        return self._now_s() + self._uplink.pool_offset_ms / 1000.0

    def _on_outcome(self, spill: Spill, ending: Ending) -> None:
        self._cascading.ended(spill, ending)
        self._accounts.ended(spill, ending)
        self._shadowing.ended(spill, ending)

    def _make_status(self) -> None:
        self._loops = Supervisor(Backoff)
        self._status = AgentStatus(
            settings=self.settings,
            loops=self._loops,
            cloud=self._cloud,
            local=self._local,
            parts=Counted(
                self._serving,
                self._uplink,
                self._outcomes,
                self._ingress,
                self._outbox,
                self._cascading,
            ),
            slots=lambda: self._book.all,
            accounts=self._accounts,
            progress=lambda: {} if self._updates is None else self._updates.progress,
            machine=self._machine,
            now_ms=self._time.now_ms,
        )

    def _make_fleet_side(self, link: Link) -> None:
        settings = self.settings
        self._updates: Updates | None = None
        self._reporting: Reporting | None = None
        self._source: MqttSource | None = None
        if self._cloud is None:
            return
        self._reporting = Reporting(
            agent=settings.agent_id,
            link=link,
            report=self._status.report,
            every_s=settings.report_every_s,
            rng=self._rng,
        )
        self._book.changed = self._reporting.report_now
        self._source = MqttSource(
            agent=settings.agent_id, link=self._cloud, timeout_s=settings.pull_timeout_s
        )
        sources = sources_of(
            settings.pull_sources,
            self._source,
            registry_url=settings.registry_url,
            ca_file=settings.registry_ca_file,
            timeout_s=settings.pull_timeout_s,
            connections=settings.pull_window,
        )
        self._updates = Updates(
            agent=settings.agent_id,
            # Over HTTPS nobody knows who asks: what is desired comes from the pool.
            sources=[self._source],
            store=self._store,
            slots=self._book,
            trust=self._make_trust(sources),
            pulls=self._make_puller(sources),
            probation=self._probation,
            shadows=self._shadowing,
            here=Here(lambda: self._machine.device, self._machine.local_now),
            settings=UpdateSettings(
                poll_every_s=settings.poll_desired_every_s,
                spread_s=settings.look_spread_s,
                disk_reserve_bytes=settings.disk_reserve_bytes,
            ),
            try_out=self._loading.try_out,
            rng=self._rng,
        )

    def _make_trust(self, sources: Sequence[Source]) -> Trust:
        settings = self.settings
        if settings.trusted_root is None:
            return NoTrustRoot()
        return TrustedSeals(
            settings.trusted_root,
            settings.state_dir / "trust",
            sources,
            clock=self._clock,
        )

    def _make_puller(self, sources: Sequence[Source]) -> Puller:
        settings = self.settings
        return Puller(
            sources,
            self._store.parts,
            metering=Metering(
                DayFile(settings.state_dir / "pulled.json"),
                local_now_s=self._machine.local_now_s,
            ),
            rng=self._rng,
            settings=PullSettings(
                FetchSettings(window=settings.pull_window),
                jitter_s=settings.pull_jitter_s,
            ),
            sharing=self._source,
        )

    def _start(self, loops: Supervisor) -> None:
        pauses = Backoff(rng=self._rng)
        loops.start("outbox", functools.partial(self._outbox.keep_open, pauses))
        loops.start("outcomes", self._outcomes.run)
        loops.start(
            "time",
            lambda: self._timekeeping.run(lambda: self._uplink.pool_offset_ms),
        )
        loops.start("counts", self._status.run)
        loops.start("promises", self._cascading.run)
        if self._cloud is not None:
            loops.start("cloud link", self._cloud.run)
            loops.start("uplink", self._uplink.run)
        loops.start("probation", self._probation.run)
        loops.start("shadows", self._shadowing.run)
        if self._updates is not None:
            loops.start("updates", self._updates.run)
        if self._reporting is not None:
            loops.start("reporting", self._reporting.run)
        if self._local is not None:
            loops.start("ingress", functools.partial(self._ingress.run, self._local))
            loops.start("devices' link", self._local.run)

    # --- links ------------------------------------------------------------------------

    def _on_cloud_message(self, topic: str, payload: bytes) -> None:
        if self._source is not None and self._source.on_message(topic, payload):
            return
        match topic.rsplit("/", 1)[-1]:
            case "res":
                self._outcomes.on_results(payload)
            case "cmd" if self._updates is not None:
                # Any command is a reason to look; losing one costs a poll.
                self._updates.look_now()
            case _:
                log.debug("message_ignored", topic=topic)

    def _on_cloud_change(self, up: bool) -> None:
        self._uplink.link_changed(up)
        self._cascading.link_changed(up)
        if self._updates is not None:
            self._updates.link_changed(up)
        if self._reporting is not None:
            self._reporting.link_changed(up)

    def _on_device_message(self, topic: str, payload: bytes) -> None:
        self._ingress.on_message(topic, payload)

    def _on_local_change(self, up: bool) -> None:
        self._outcomes.local_link_changed(up)

    # --- control ----------------------------------------------------------------------

    async def _open_control(self) -> None:
        if self._devices:
            operator = Operator(
                status=self._status,
                infer=self._calls.answer,
                cancel=self._outcomes.cancel,
                drift_seen=self._cascading.drift_seen,
                limits=self._limits,
            )
            server = ControlServer(self.settings.control_socket, operator.reply_to)
            try:
                await self._stack.enter_async_context(server)
            except OSError as error:
                if error.errno not in (errno.EROFS, errno.ENOSPC, errno.EIO):
                    raise
                # Devices are served all the same, and telemetry goes on.
                log.error("control_not_served", error=str(error))
