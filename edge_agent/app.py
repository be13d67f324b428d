"""The agent: a daemon for devices, or inside a program that embeds it.

async with Agent(settings) as agent:
    answer = await agent.infer("fashion", image)

`parts/` holds what it is made of; here they are joined, opened in order and started.
"""

from __future__ import annotations

import asyncio
import contextlib
import random
from collections.abc import Callable
from typing import Any, Final, Self

import structlog

from broker.backoff import Backoff
from broker.messages import Priority
from broker.traceparent import read_traceparent
from edge_agent.adapters.control import only_agent_of
from edge_agent.adapters.machine import Machine
from edge_agent.adapters.outbox import OutboxFailed
from edge_agent.adapters.time_stamp import TimeStampFile, this_boot
from edge_agent.core.answers import Answer
from edge_agent.core.calls import Call, Inputs, read_call
from edge_agent.loops.timekeeping import Timekeeping
from edge_agent.parts.cloud import Cloud, cloud_link
from edge_agent.parts.devices import Devices
from edge_agent.parts.models import Models
from edge_agent.parts.operators import open_traces, serve_control, serve_pages
from edge_agent.parts.requests import Requests, outbox_of
from edge_agent.settings import AgentSettings
from edge_agent.status import AgentStatus
from lifecycle.clock import Clock, SystemClock
from lifecycle.journal import NOBODY, Journal
from lifecycle.supervisor import Supervisor

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
        self._serves_devices = settings.local if devices is None else devices
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
        if self._devices is not None and not await self._devices.heard(stop):
            return
        log.info(
            "ready",
            agent=self.settings.agent_id,
            models={
                name: slots.active for name, slots in self._models.book.all.items()
            },
        )
        on_ready()
        await stop.wait()
        log.info("stopping", agent=self.settings.agent_id)

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
        served = self._requests.serving.model(model)
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
            self._requests.serving.count_refusal("bad_request")
            return request
        return await self._requests.calls.answer(request)

    # --- state ----------------------------------------------------------------------

    async def status(self) -> dict[str, Any]:
        """Link, model slots, outbox and counters, as JSON would hold them."""
        return await self._status.now()

    # --- joining the parts ------------------------------------------------------------

    async def _open(self) -> None:
        settings, stack = self.settings, self._stack
        settings.state_dir.mkdir(mode=0o700, parents=True, exist_ok=True)
        stack.enter_context(only_agent_of(settings.state_dir))
        if settings.trusted_root is not None:
            # Told at the start, not when the first update comes.
            settings.trusted_root.read_bytes()
        stamps = TimeStampFile(settings.state_dir / "time.json", self._boot_id)
        timekeeping = Timekeeping(stamps, self._clock)
        self._time = timekeeping.time
        outbox = await stack.enter_async_context(outbox_of(settings, self._journal))
        self._make_links()
        if self._devices is not None:
            await self._devices.open(stack)
        self._requests = Requests(
            settings,
            timekeeping=timekeeping,
            outbox=outbox,
            cloud=self._link,
            local=None if self._devices is None else self._devices.link,
            spans=open_traces(stack, settings),
            journal=self._journal,
            rng=self._rng,
        )
        self._models = Models(
            settings,
            requests=self._requests,
            now_s=lambda: self._time.now_ms() / 1000.0,
            clock=self._clock,
        )
        self._loops = Supervisor(Backoff)
        self._make_status_and_cloud()
        self._requests.open(stack)
        with contextlib.suppress(OutboxFailed):  # the status says so
            await self._status.count()
        await self._models.open(stack)
        if self._devices is not None:
            await serve_control(stack, settings, self._status, self._requests)
        await serve_pages(stack, settings, self._status, self._clock)
        await stack.enter_async_context(self._loops)
        self._start()

    def _make_links(self) -> None:
        """Links come first, and hear nothing before all the rest is there."""
        self._link = cloud_link(
            self.settings, hear=self._hear_cloud, changed=self._cloud_changed
        )
        self._devices: Devices | None = None
        if self._serves_devices:
            self._devices = Devices(
                self.settings, hear=self._hear_device, changed=self._devices_changed
            )

    def _make_status_and_cloud(self) -> None:
        """Each needs the other: what the fleet is told has in it what it has sent."""
        settings = self.settings
        machine = Machine(
            settings.state_dir,
            board=settings.board,
            utc_offset_min=settings.utc_offset_min,
            wall_s=lambda: self._clock.wall_ms() / 1000.0,
            pool_s=self._requests.pool_s,
        )
        self._status = AgentStatus(
            settings=settings,
            loops=self._loops,
            cloud=self._link,
            local=None if self._devices is None else self._devices.link,
            parts=self._requests.counted,
            slots=lambda: self._models.book.all,
            accounts=self._requests.accounts,
            progress=lambda: {} if self._cloud is None else self._cloud.progress,
            machine=machine,
            now_ms=self._time.now_ms,
        )
        self._cloud: Cloud | None = None
        if self._link is not None:
            self._cloud = Cloud(
                settings,
                link=self._link,
                requests=self._requests,
                models=self._models,
                machine=machine,
                report=self._status.report,
                clock=self._clock,
                rng=self._rng,
            )

    def _start(self) -> None:
        loops = self._loops
        self._requests.start(loops)
        loops.start("counts", self._status.run)
        self._models.start(loops)
        if self._cloud is not None:
            self._cloud.start(loops)
        if self._devices is not None:
            self._devices.start(loops, self._requests.ingress)

    # --- what the links say -----------------------------------------------------------

    def _hear_cloud(self, topic: str, payload: bytes) -> None:
        if self._cloud is not None:
            self._cloud.hear(topic, payload)

    def _cloud_changed(self, up: bool) -> None:
        if self._cloud is not None:
            self._cloud.link_changed(up)

    def _hear_device(self, topic: str, payload: bytes) -> None:
        self._requests.ingress.on_message(topic, payload)

    def _devices_changed(self, up: bool) -> None:
        self._requests.outcomes.local_link_changed(up)
