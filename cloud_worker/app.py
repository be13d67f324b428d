"""Wire the parts of a worker together, and end it without losing anything."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine
from concurrent.futures import ThreadPoolExecutor
from contextlib import AsyncExitStack
from functools import partial
from typing import Any, Final, TypeVar

import structlog

from broker.amqp import AmqpLink
from broker.amqp import Delivery as AmqpDelivery
from broker.backoff import Backoff
from broker.topology import GET_QUEUE, Queue, model_queues, standing_queues
from bundle.store import BundleStore
from cloud_worker.adapters.inline import InlineRunner
from cloud_worker.adapters.repository import (
    Candidate,
    Found,
    NoRepository,
    Unservable,
    find_models,
)
from cloud_worker.adapters.runner import CannotLoad, RunnerLost, RunnerProcess
from cloud_worker.core.batcher import Batcher
from cloud_worker.core.ledger import Ledger
from cloud_worker.core.spec import ServedModel
from cloud_worker.loops import side_queues, updates
from cloud_worker.loops.bookkeeping import Bookkeeping
from cloud_worker.loops.infer import Infer
from cloud_worker.loops.intake import Intake
from cloud_worker.loops.media import Decoder
from cloud_worker.loops.observer import Observer
from cloud_worker.loops.overload import PoolWatch
from cloud_worker.loops.parcels import Held, Room
from cloud_worker.loops.replies import Replies
from cloud_worker.loops.side_queues import SIDE_QUEUES, SideQueues
from cloud_worker.loops.stamps import Stamps
from cloud_worker.loops.updates import Updates
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

UPDATE_READERS: Final = 4

T = TypeVar("T")


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
            RunnerLost: the model process cannot be kept alive.
            CannotListen: `http_port` is taken.
            TelemetryMissing: `traces` is set and OpenTelemetry is not installed.
        """
        # A wrong URL should be told before the models are loaded, which takes long.
        AmqpLink(self._settings.amqp_url, name=self._settings.worker_id)
        found = find_models(self._settings.models, max_batch=self._settings.max_batch)
        for refused in found.refused:
            log.warning("model passed over", path=str(refused.path), why=refused.reason)
        async with AsyncExitStack() as stack:
            await self._serve_health(stack)
            tracing = await self._open_traces(stack)
            process = await stack.enter_async_context(self._runner())
            runner = InlineRunner(
                process,
                below_ms=self._settings.inline_below_ms,
                threads=self._settings.intra_threads,
            )
            models = await _unless(stop, self._load(found, runner))
            if models is None:
                log.info("stopped while loading models")
                return
            decoders = stack.enter_context(
                ThreadPoolExecutor(self._settings.decode_threads, "decode")
            )
            readers = stack.enter_context(ThreadPoolExecutor(UPDATE_READERS, "update"))
            pool = _Pool(
                self._settings,
                self._clock,
                runner,
                models,
                decoders=decoders,
                readers=readers,
                journal=self._journal,
                ledger=self.ledger,
                tracing=tracing,
            )
            self._status.parts = pool.parts(
                lambda: (RunnerLook("0", process.pid, process.restarts, process.ready),)
            )
            process.on_ready = pool.infer.wake
            try:
                # RabbitMQ may come hours later, and the watchdog watches until then.
                async with self._service.watching("waiting for RabbitMQ"):
                    await self._work(pool, process, stop)
            except* RunnerLost as lost:
                raise lost.exceptions[0] from None

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

    def _runner(self) -> RunnerProcess:
        settings = self._settings
        return RunnerProcess(
            intra_threads=settings.intra_threads,
            inter_threads=settings.inter_threads,
            batch_timeout_s=settings.batch_timeout_s,
            load_timeout_s=settings.load_timeout_s,
        )

    async def _load(
        self, found: Found, runner: InlineRunner
    ) -> tuple[ServedModel, ...]:
        """Load the newest version of each model that can be loaded.

        Raises:
            NoRepository: not one can.
        """
        loaded = [
            await _load_newest(candidates, runner)
            for candidates in found.models.values()
        ]
        models = tuple(model for model in loaded if model is not None)
        if not models:
            raise NoRepository(
                f"none of the models in {self._settings.models} can be served: "
                "see the reasons above"
            )
        return models

    async def _work(
        self, pool: _Pool, process: RunnerProcess, stop: asyncio.Event
    ) -> None:
        async with Supervisor(Backoff) as loops, asyncio.TaskGroup() as group:
            # These hold requests, which a new start would leave in no hands. When one
            # fails the worker ends, and RabbitMQ gives all it holds to another.
            tasks = [
                group.create_task(each)
                for each in (process.run(), pool.infer.run(), pool.replies.run())
            ]
            tasks.append(group.create_task(self._announce(pool)))
            loops.start("link", pool.link.run)
            loops.start("bookkeeping", pool.bookkeeping.run)
            loops.start("pool's wait", pool.watch.run)
            await stop.wait()
            await self._drain(pool)
            pool.bookkeeping.close()
            for task in tasks:
                task.cancel()

    async def _announce(self, pool: _Pool) -> None:
        await pool.link.wait_up()
        shown = [f"{each.name}/{each.version}" for each in pool.models.values()]
        log.info("ready", worker=self._settings.worker_id, models=shown)
        self._service.status(f"serving {', '.join(shown)}")
        self._on_ready(tuple(pool.models.values()))

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


class _Pool:
    """The loops of one worker and what they share."""

    def __init__(  # noqa: PLR0913 - the parts it stands on
        self,
        settings: WorkerSettings,
        clock: Clock,
        runner: InlineRunner,
        models: tuple[ServedModel, ...],
        *,
        decoders: ThreadPoolExecutor,
        readers: ThreadPoolExecutor,
        journal: Journal,
        ledger: Ledger,
        tracing: Tracing | None,
    ) -> None:
        self.models = {model.name: model for model in models}
        self.room = Room(settings.max_held, ledger)
        self.bookkeeping = Bookkeeping(self.room)
        self.link = AmqpLink(
            settings.amqp_url,
            name=settings.worker_id,
            queues=_queues(models),
            consume=_consumed(settings, models),
            on_delivery=self._take,
        )
        timeout_s = settings.publish_timeout_s
        batcher: Batcher[Held] = Batcher(max_batch_bytes=settings.max_batch_bytes)
        self._waiting = batcher.__len__
        self.observer = Observer(clock, self.models, tracing)
        for model in models:
            self.observer.rate.seed(model.name, model.spec.costs_ms)
        self.watch = PoolWatch(
            self.link.look,
            models=self.models.keys,
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
        self.infer = Infer(
            runner,
            batcher,
            replies=self.replies,
            clock=clock,
        )
        self._intake = Intake(
            self.models,
            offer=self.infer.offer,
            replies=self.replies,
            clock=clock,
            room=self.room,
            decoder=Decoder(decoders, max_pixels=settings.max_pixels),
            journal=journal,
        )
        self._side_queues = SideQueues(
            self.models,
            self.link.publish,
            restore=self.link.restore,
            replies=self.replies,
            room=self.room,
            timeout_s=timeout_s,
        )
        self._updates = None
        if settings.registry is not None:
            self._updates = Updates(
                BundleStore(settings.registry),
                self.link.publish,
                readers=readers,
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
        )

    async def _take(self, delivery: AmqpDelivery) -> None:
        if delivery.queue in SIDE_QUEUES:
            await self._side_queues.take(delivery)
        elif delivery.queue == GET_QUEUE and self._updates is not None:
            await self._updates.take(delivery)
        else:
            await self._intake.take(delivery)


def _queues(models: tuple[ServedModel, ...]) -> tuple[Queue, ...]:
    return (
        *standing_queues(),
        *(queue for model in models for queue in model_queues(model.name)),
    )


def _consumed(
    settings: WorkerSettings, models: tuple[ServedModel, ...]
) -> dict[str, int]:
    """Each queue and its prefetch: enough for the next batch to wait here already."""
    consumed = dict.fromkeys(SIDE_QUEUES, side_queues.PREFETCH)
    if settings.registry is not None:
        consumed[GET_QUEUE] = updates.PREFETCH
    for model in models:
        prefetch = settings.prefetch or 2 * model.max_batch
        for queue in model_queues(model.name):
            consumed[queue.name] = prefetch
    return consumed


async def _load_newest(
    candidates: tuple[Candidate, ...], runner: InlineRunner
) -> ServedModel | None:
    for candidate in candidates:
        source = candidate.source
        try:
            spec = await runner.load(source)
            model = candidate.served(spec)
        except (CannotLoad, Unservable) as error:
            log.error(
                "model version passed over",
                model=source.name,
                version=source.version,
                why=str(error),
            )
        else:
            log.info(
                "model loaded",
                model=source.name,
                version=source.version,
                batched=spec.batched,
                inline=runner.runs_inline(source),
                costs_ms={size: round(ms, 2) for size, ms in spec.costs_ms},
            )
            return model
    return None


async def _unless(stop: asyncio.Event, work: Coroutine[Any, Any, T]) -> T | None:
    """The result of `work`, or None if `stop` is set before it is done."""
    result: T | None = None

    async def watch() -> None:
        nonlocal result
        result = await work
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
    return result
