"""Wire the parts of a worker together, and end it without losing anything."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine
from concurrent.futures import ThreadPoolExecutor
from contextlib import AsyncExitStack
from dataclasses import dataclass
from functools import partial
from typing import Any, Final

import structlog

from broker.amqp.delivery import Delivery as AmqpDelivery
from broker.amqp.link import AmqpLink
from broker.amqp.subscriber import Prefetch
from broker.backoff import Backoff
from broker.topology import GET_QUEUE, standing_queues
from bundle.open_tree import open_tree
from bundle.tree_source import TreeSource
from cloud_worker.adapters.example_store import ExampleStore
from cloud_worker.adapters.inline import InlineRunner
from cloud_worker.adapters.library import Library, Refusal, anything
from cloud_worker.adapters.repository import NoRepository
from cloud_worker.adapters.runners import Limits, Runners
from cloud_worker.adapters.runtime import Tuning
from cloud_worker.adapters.signed_models import NoTrustedRoot, signed_models
from cloud_worker.core.batcher import Batcher
from cloud_worker.core.costs import Costs
from cloud_worker.core.examples import Quota, Quotas
from cloud_worker.core.ledger import Ledger
from cloud_worker.core.prefetch import prefetch
from cloud_worker.core.serving import Serving
from cloud_worker.core.spec import ServedModel
from cloud_worker.core.versions import Versions
from cloud_worker.loops import side_queues, updates
from cloud_worker.loops.bookkeeping import Bookkeeping
from cloud_worker.loops.capturing import Capturing
from cloud_worker.loops.complaints import Complaints
from cloud_worker.loops.dead_letters import DeadLetters
from cloud_worker.loops.infer import Infer
from cloud_worker.loops.intake import Intake
from cloud_worker.loops.keeping import Keeper
from cloud_worker.loops.media import Decoder
from cloud_worker.loops.observer import Observer
from cloud_worker.loops.overload import PoolWatch
from cloud_worker.loops.parcels import Held, Room
from cloud_worker.loops.replies import Replies
from cloud_worker.loops.side_queues import SIDE_QUEUES, SideQueues
from cloud_worker.loops.stamps import Stamps
from cloud_worker.loops.updates import Updates
from cloud_worker.loops.usage import Usage
from cloud_worker.settings import WorkerSettings
from cloud_worker.status import Parts, RunnerLook, WorkerStatus
from lifecycle.clock import Clock, SystemClock
from lifecycle.health import Pulse, readiness_page
from lifecycle.journal import NOBODY, Journal
from lifecycle.metrics import Exposition
from lifecycle.pages import Pages
from lifecycle.supervisor import Supervisor
from lifecycle.tracing import Tracing
from lifecycle.watchdog import ServiceManager

log = structlog.get_logger(__name__)

# Examples that wait for the disk at the end; requests are answered by then.
LAST_EXAMPLES_S: Final = 2.0


class Worker:
    """One member of the pool.

    Attributes:
        ledger: what became of the requests it has taken.
        http_port: where health and metrics are served while it runs; None: nowhere.

    Args:
        settings: see `WorkerSettings`.
        clock: for deadlines and stamps.
        on_ready: called with the models once, when the first connection consumes.
        journal: told what happens to each request.
        service: told that the worker is ready, alive and ending.
    """

    def __init__(
        self,
        settings: WorkerSettings,
        *,
        clock: Clock | None = None,
        on_ready: Callable[[tuple[ServedModel, ...]], None] = lambda _: None,
        journal: Journal = NOBODY,
        service: ServiceManager | None = None,
    ) -> None:
        self._settings = settings
        self._clock = clock or SystemClock()
        self._on_ready = on_ready
        self._journal = journal
        self._service = service or ServiceManager()
        self.ledger = Ledger()
        self.http_port: int | None = None
        self._status = WorkerStatus(self.ledger)

    async def run(self, stop: asyncio.Event) -> None:
        """Load the models, work until `stop`, drain.

        Raises:
            NoRepository: there is no model to serve.
            BadUrl: `amqp_url` does not name a broker.
            CannotListen: `http_port` is taken.
            TelemetryMissing: `traces` is set and OpenTelemetry is not installed.
        """
        # A wrong URL should be told before the models are loaded, which takes long.
        AmqpLink(self._settings.amqp_url, name=self._settings.worker_id)
        async with AsyncExitStack() as stack:
            await self._serve_health(stack)
            tracing = await self._open_traces(stack)
            runners = await stack.enter_async_context(self._runners())
            runner = InlineRunner(
                runners,
                below_ms=self._settings.inline_below_ms,
                threads=self._settings.intra_threads,
            )
            threads = _Threads(
                *(
                    stack.enter_context(ThreadPoolExecutor(count, name))
                    for count, name in (
                        (self._settings.decode_threads, "decode"),
                        (updates.READERS, "update"),
                    )
                )
            )
            pool = _Pool(
                self._settings,
                self._clock,
                runner,
                threads=threads,
                journal=self._journal,
                ledger=self.ledger,
                tracing=tracing,
            )
            runners.on_change = pool.infer.wake
            async with Supervisor(Backoff) as loops:
                if not await _unless(stop, _fill(pool.keeper, loops)):
                    log.info("stopped while loading models")
                    return
                if pool.keeper.serving:
                    self._status.parts = pool.parts(
                        partial(_look, pool.keeper, runners, runner)
                    )
                    # RabbitMQ may come hours later, and the watchdog watches until
                    # then.
                    async with self._service.watching("waiting for RabbitMQ"):
                        await self._work(pool, runners, loops, stop)
                    return
            raise NoRepository(
                "none of the models in the repository can be served: see the reasons "
                "above"
            )

    async def _serve_health(self, stack: AsyncExitStack) -> None:
        settings = self._settings
        if settings.http_port is None:
            return
        pulse = stack.enter_context(Pulse(self._clock))
        pages = Pages(
            settings.http_host,
            settings.http_port,
            {
                "/healthz": pulse.page,
                "/readyz": partial(readiness_page, self._status.why_not_ready),
                "/metrics": Exposition(self._status.families).page,
            },
        )
        self.http_port = (await stack.enter_async_context(pages)).port

    async def _open_traces(self, stack: AsyncExitStack) -> Tracing | None:
        if self._settings.traces is None:
            return None
        tracing = Tracing(
            self._settings.traces,
            service="overspill-worker",
            instance=self._settings.worker_id,
        )
        stack.push_async_callback(asyncio.to_thread, tracing.close)
        return tracing

    def _runners(self) -> Runners:
        settings = self._settings
        return Runners(
            tuning=Tuning(
                intra_threads=settings.intra_threads,
                inter_threads=settings.inter_threads,
                xla=settings.xla,
                mixed_precision=settings.mixed_precision,
                at_once=settings.at_once,
            ),
            limits=Limits(
                batch_s=settings.batch_timeout_s,
                load_s=settings.load_timeout_s,
                deaths=settings.max_deaths,
                retry_failed_s=settings.retry_failed_s,
                memory_mb=settings.runner_memory_mb,
            ),
        )

    async def _work(
        self, pool: _Pool, runners: Runners, loops: Supervisor, stop: asyncio.Event
    ) -> None:
        async with asyncio.TaskGroup() as group:
            # These hold requests, which a new start would leave in no hands. When one
            # fails the worker ends, and RabbitMQ gives all it holds to another.
            tasks = [
                group.create_task(each)
                for each in (runners.run(), pool.infer.run(), pool.replies.run())
            ]
            tasks.append(group.create_task(self._announce(pool)))
            loops.start("link", pool.link.run)
            loops.start("bookkeeping", pool.bookkeeping.run)
            loops.start("pool's wait", pool.watch.run)
            if pool.capturing is not None:
                loops.start("examples", pool.capturing.run)
            await stop.wait()
            await self._drain(pool)
            if pool.capturing is not None:
                await pool.capturing.finish(LAST_EXAMPLES_S)
            pool.bookkeeping.close()
            for task in tasks:
                task.cancel()

    async def _announce(self, pool: _Pool) -> None:
        await pool.link.wait_up()
        models = pool.keeper.models
        shown = [model.key for model in models]
        log.info("ready", worker=self._settings.worker_id, models=shown)
        self._service.status(f"serving {', '.join(shown)}")
        self._on_ready(models)

    async def _drain(self, pool: _Pool) -> None:
        held = pool.room.held
        self._status.draining = True
        log.info("stopping", held=held, within_s=self._settings.drain_s)
        try:
            async with asyncio.timeout(self._settings.drain_s):
                await pool.link.stop_consuming()
                await pool.room.wait_empty()
        except TimeoutError:
            left = pool.room.held
            log.warning("stopped", finished=held - left, given_back=left)
        else:
            log.info("stopped", finished=held, given_back=0)


@dataclass(frozen=True, slots=True)
class _Threads:
    """Where what would block the event loop is done."""

    decode: ThreadPoolExecutor
    update: ThreadPoolExecutor


class _Pool:
    """The loops of one worker and what they share."""

    def __init__(  # noqa: PLR0913 - the parts it stands on
        self,
        settings: WorkerSettings,
        clock: Clock,
        runner: InlineRunner,
        *,
        threads: _Threads,
        journal: Journal,
        ledger: Ledger,
        tracing: Tracing | None,
    ) -> None:
        self.room = Room(settings.max_held, ledger)
        complaints = Complaints(clock)
        self.bookkeeping = Bookkeeping(self.room, complaints)
        self.link = AmqpLink(
            settings.amqp_url,
            name=settings.worker_id,
            queues=standing_queues(),
            consume=_consumed_always(settings),
            on_delivery=self._take,
        )
        timeout_s = settings.publish_timeout_s
        costs = Costs(least_limit_s=settings.batch_timeout_s)
        batcher: Batcher[Held] = Batcher(
            costs=costs, max_batch_bytes=settings.max_batch_bytes
        )
        self._waiting = batcher.__len__
        self.observer = Observer(clock, tracing)
        self.watch = PoolWatch(
            self.link.look,
            models=lambda: tuple(self.keeper.serving),
            loaded=lambda: self.keeper.models,
            observer=self.observer,
            waiting=self._waiting,
        )
        stamps = Stamps(settings.worker_id, clock, self.watch.wait_s)
        self.replies = Replies(
            self.link.publish,
            stamps,
            ledger=ledger,
            timeout_s=timeout_s,
            journal=journal,
            observer=self.observer,
        )
        self.capturing = _capturing(settings, clock)
        self.infer = Infer(
            runner,
            batcher,
            costs=costs,
            replies=self.replies,
            dead_letters=DeadLetters(
                self.link.publish,
                worker=settings.worker_id,
                clock=clock,
                ledger=ledger,
                complaints=complaints,
            ),
            clock=clock,
            capturing=self.capturing,
        )
        usage = Usage()
        limit_mb = settings.models_memory_mb
        self.keeper = Keeper(
            Library(
                settings.models,
                max_batch=settings.max_batch,
                only=settings.only,
                settle_s=settings.watch_s,
                refusal=may_load(settings),
            ),
            Versions(limit_bytes=None if limit_mb is None else limit_mb * 2**20),
            runner=runner,
            link=self.link,
            infer=self.infer,
            usage=usage,
            costs=costs,
            clock=clock,
            prefetch=partial(_prefetch, settings, costs),
            watch_s=settings.watch_s,
        )
        self.observer.models = self.keeper.serving
        self._intake = Intake(
            self.keeper.serving,
            offer=self.infer.offer,
            replies=self.replies,
            clock=clock,
            room=self.room,
            decoder=Decoder(threads.decode, max_pixels=settings.max_pixels),
            usage=usage,
            complaints=complaints,
            journal=journal,
            capturing=self.capturing,
        )
        self._side_queues = SideQueues(
            self.keeper.serving,
            self.link.publish,
            restore=self.link.restore,
            replies=self.replies,
            room=self.room,
            complaints=complaints,
            timeout_s=timeout_s,
        )
        self._updates = None
        if settings.registry is not None:
            self._updates = Updates(
                TreeSource(open_tree(settings.registry), threads.update),
                self.link.publish,
                timeout_s=timeout_s,
            )

    def parts(self, runners: Callable[[], tuple[RunnerLook, ...]]) -> Parts:
        """What the status tells of."""
        return Parts(
            link=self.link,
            room=self.room,
            observer=self.observer,
            watch=self.watch,
            waiting=self._waiting,
            runners=runners,
            capturing=self.capturing,
        )

    async def _take(self, delivery: AmqpDelivery) -> None:
        if delivery.queue in SIDE_QUEUES:
            await self._side_queues.take(delivery)
        elif delivery.queue == GET_QUEUE and self._updates is not None:
            await self._updates.take(delivery)
        else:
            await self._intake.take(delivery)


async def _fill(keeper: Keeper, loops: Supervisor) -> None:
    """Load what the repository holds; afterwards the keeper goes on keeping to it.

    Raises:
        NoRepository: it holds nothing that could be served, or its disk hangs.
    """
    try:
        await keeper.look()
    except TimeoutError:
        raise NoRepository("the repository's disk does not answer") from None
    loops.start("models", keeper.run)
    await keeper.wait_filled()


def _look(
    keeper: Keeper, runners: Runners, runner: InlineRunner
) -> tuple[RunnerLook, ...]:
    """What runs each version that is in memory."""
    memory = runners.memory_bytes()
    return tuple(
        RunnerLook(key, runner.ready(key), runners.restarts[key], memory.get(key))
        for key in sorted(each.key for each in keeper.models)
    )


def _capturing(settings: WorkerSettings, clock: Clock) -> Capturing | None:
    """What keeps examples, where there is a folder for them."""
    if settings.examples is None or settings.capture is False:
        return None
    quotas = Quotas.of(
        Quota(settings.examples_max, settings.examples_max_mb * 2**20),
        label_share=settings.examples_class_share,
        reason_share=settings.examples_reason_share,
    )
    store = ExampleStore(
        settings.examples,
        quotas=quotas,
        reserve_bytes=settings.examples_reserve_mb * 2**20,
    )
    return Capturing(store, clock=clock, worker_says=settings.capture)


def may_load(settings: WorkerSettings) -> Refusal:
    """What says why a version must not be loaded.

    Raises:
        NoRepository: it is not clear where signatures are.
    """
    try:
        signed = signed_models(
            settings.trusted_root, settings.trust_dir, settings.registry
        )
    except NoTrustedRoot as error:
        raise NoRepository(str(error)) from error
    return anything if signed is None else signed.refusal


def _consumed_always(settings: WorkerSettings) -> dict[str, int]:
    """The queues, and their prefetch, whatever models are served."""
    consumed = dict.fromkeys(SIDE_QUEUES, side_queues.PREFETCH)
    if settings.registry is not None:
        consumed[GET_QUEUE] = updates.PREFETCH
    return consumed


def _prefetch(settings: WorkerSettings, costs: Costs, serving: Serving) -> Prefetch:
    """How many envelopes of a model to hold, once the round trip is known."""
    if settings.prefetch is not None:
        return settings.prefetch

    def for_round_trip(round_trip_s: float) -> int:
        most = serving.max_batch
        quickest_s = min(
            costs.cost_s(model.key, most) for model in serving.versions.values()
        )
        return prefetch(most, round_trip_s=round_trip_s, cost_s=quickest_s)

    return for_round_trip


async def _unless(stop: asyncio.Event, work: Coroutine[Any, Any, None]) -> bool:
    """Do `work` unless `stop` is set before it is done; says whether it was done."""
    finished = False

    async def watch() -> None:
        nonlocal finished
        await work
        finished = True
        waiting.cancel()

    async def wait() -> None:
        await stop.wait()
        working.cancel()

    try:
        async with asyncio.TaskGroup() as group:
            working = group.create_task(watch())
            waiting = group.create_task(wait())
    except* NoRepository as failures:
        raise failures.exceptions[0] from None
    return finished
