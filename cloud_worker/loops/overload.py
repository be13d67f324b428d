"""Look at the queues every second, so that the worker knows how long the pool's line is."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Iterable
from typing import Final

import structlog

from broker.amqp.queues import NoSuchQueue, QueueLook
from broker.link import LinkDown
from broker.topology import model_queues
from cloud_worker.core.overload import Backlog, Depth, backlog
from cloud_worker.core.spec import ServedModel
from cloud_worker.loops.observer import Observer

log = structlog.get_logger(__name__)

LOOK_EVERY_S: Final = 1.0

Look = Callable[[str], Awaitable[QueueLook]]


class PoolWatch:
    """How long requests wait in the pool, as far as this worker can tell.

    Args:
        look: how a queue stands, as `AmqpLink.look`.
        models: the names whose queues this worker consumes now.
        loaded: the models in memory, whose warm-up is the first guess at their cost.
        observer: what requests cost.
        waiting: how many requests wait in this worker for a batch.
        every_s: how often to look.

    Attributes:
        depths: what was seen last.
        backlog: what it means.
    """

    def __init__(
        self,
        look: Look,
        *,
        models: Callable[[], Iterable[str]],
        loaded: Callable[[], Iterable[ServedModel]] = tuple,
        observer: Observer,
        waiting: Callable[[], int],
        every_s: float = LOOK_EVERY_S,
    ) -> None:
        self._look = look
        self._models = models
        self._loaded = loaded
        self._observer = observer
        self._waiting = waiting
        self._every_s = every_s
        self.depths: tuple[Depth, ...] = ()
        self.backlog = Backlog()

    async def run(self) -> None:
        """Look, for ever."""
        while True:
            await self.look_once()
            await asyncio.sleep(self._every_s)

    async def look_once(self) -> None:
        """See how long the line is now; what is not seen is taken to be empty."""
        depths: list[Depth] = []
        for each in self._loaded():
            self._observer.rate.seed(each.name, each.spec.costs_ms)
        try:
            for model in tuple(self._models()):
                for queue in model_queues(model):
                    found = await self._look(queue.name)
                    depths.append(Depth(model, found.ready, found.consumers))
        except (LinkDown, NoSuchQueue) as error:
            # The line goes on without us; a wait that may be over is better not told.
            log.debug("queues not seen", reason=str(error))
        self.depths = tuple(depths)
        self.backlog = backlog(depths, self._observer.rate, self._observer.sizes)

    def in_hand_s(self) -> float:
        """Seconds until what is in this worker already has run."""
        requests = self._waiting() + self._observer.running
        return requests * self._observer.rate.seconds_any()

    def wait_s(self, model: str | None = None) -> float:
        """How long a request of a model that arrives now will wait for its batch."""
        return self.backlog.wait_s(model) + self.in_hand_s()

    def drain_s(self) -> float:
        """Seconds until nothing waits with the present pool, if no more came."""
        return self.backlog.drain_s + self.in_hand_s()
