"""A worker that answers, and then does all that a worker must not.

Each right result is published again with another content, results leave in any order,
some only long after, and others are for requests that nobody made.
"""

from __future__ import annotations

import asyncio
import random
from collections import deque

from broker.amqp.delivery import Delivery
from broker.amqp.link import AmqpLink
from broker.codec import decode, encode
from broker.messages import Request, Result, Status, Tensor
from broker.topics import as_routing_key, read_request_key, results
from broker.topology import model_queues
from lifecycle.clock import SystemClock

LATE = 30


class Malicious:
    """Use `run` beside a row.

    Args:
        url: of the pool's RabbitMQ.
        random_: chooses the order.

    Attributes:
        strangers: results published for requests that nobody made.
        again: results published for requests that had one already.
    """

    def __init__(self, url: str, random_: random.Random) -> None:
        self.strangers = 0
        self.again = 0
        self._random = random_
        self._waiting: list[tuple[str, Request]] = []
        self._answered: deque[tuple[str, Result]] = deque(maxlen=LATE)
        self._clock = SystemClock()
        self.link = AmqpLink(
            url,
            name="malicious",
            queues=model_queues("copy"),
            consume={queue.name: 100 for queue in model_queues("copy")},
            on_delivery=self._take,
        )

    async def run(self) -> None:
        """Answer until cancelled."""
        async with asyncio.TaskGroup() as tasks:
            tasks.create_task(self.link.run())
            tasks.create_task(self._answer_for_ever())

    async def _take(self, delivery: Delivery) -> None:
        address = read_request_key(delivery.routing_key)
        assert address is not None
        for request in decode(delivery.body, Request).items:
            self._waiting.append((address.agent, request))
        delivery.ack()

    async def _answer_for_ever(self) -> None:
        await self.link.wait_up()
        while True:
            await asyncio.sleep(0.02)
            waiting, self._waiting = self._waiting, []
            self._random.shuffle(waiting)
            for agent, request in waiting:
                await self._answer(agent, request)

    async def _answer(self, agent: str, request: Request) -> None:
        right = self._result(request, dict(request.tensors or {}))
        await self._publish(agent, right, right)
        wrong = right.model_copy(update={"outputs": {}, "reason": "a second one"})
        failed = wrong.model_copy(update={"status": Status.FAILED})
        await self._publish(agent, wrong, failed)
        self.again += 3
        strange = right.model_copy(update={"id": f"no-{request.id}"})
        other = right.model_copy(update={"device": "nobody"})
        await self._publish(agent, strange, other)
        self.strangers += 2
        if len(self._answered) == LATE:
            late_agent, late = self._answered.popleft()
            await self._publish(late_agent, late)
            self.again += 1
        self._answered.append((agent, wrong))

    def _result(self, request: Request, outputs: dict[str, Tensor]) -> Result:
        return Result(
            id=request.id,
            device=request.device,
            model=request.model,
            status=Status.OK,
            version="1",
            worker="malicious",
            outputs={f"{name}_out": tensor for name, tensor in outputs.items()},
            server_time_ms=self._clock.wall_ms(),
        )

    async def _publish(self, agent: str, *items: Result) -> None:
        key = as_routing_key(results(agent))
        await self.link.publish(key, encode(*items), timeout_s=10.0)
