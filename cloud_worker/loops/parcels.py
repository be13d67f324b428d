"""What the worker holds: deliveries, settled only when all in them is answered."""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Protocol

from broker.dead_letters import Mishap
from broker.messages import Request
from broker.topics import RequestAddress
from cloud_worker.core.intake import Inputs
from cloud_worker.core.ledger import Ledger
from cloud_worker.core.results import Subject
from cloud_worker.core.spec import ServedModel
from cloud_worker.core.split import Joint


class Delivery(Protocol):
    """One message of a queue, as `broker.amqp` gives it."""

    @property
    def queue(self) -> str:
        """The queue it came from."""
        ...

    @property
    def routing_key(self) -> str:
        """The key it was published with; names the sender."""
        ...

    @property
    def body(self) -> bytes:
        """The payload."""
        ...

    @property
    def headers(self) -> Mapping[str, Any]:
        """The message's headers."""
        ...

    @property
    def received_at(self) -> float:
        """Monotonic seconds."""
        ...

    @property
    def live(self) -> bool:
        """Whether it can still be acknowledged."""
        ...

    def ack(self) -> None:
        """Tell the broker to forget it."""
        ...

    async def reject(self, requeue: bool) -> None:
        """Give it back or dead-letter it."""
        ...


class Room:
    """How many requests the worker holds, and whether there is room for more.

    A model that holds less than its part may enter though others have filled the
    room: one that is away must not keep the others out.

    Attributes:
        ledger: the books of those who take, end and give back.

    Args:
        most: how many requests; a model's part is that over the models that hold any.
        ledger: see above.
    """

    def __init__(self, most: int, ledger: Ledger) -> None:
        self.ledger = ledger
        self._most = most
        self._held = 0
        self._held_of: Counter[str] = Counter()
        self._roomy = asyncio.Event()
        self._roomy.set()
        self._empty = asyncio.Event()
        self._empty.set()

    @property
    def held(self) -> int:
        """Requests taken and not yet settled."""
        return self._held

    async def wait(self, model: str) -> None:
        """Return once there is room; one envelope may then go over the bound."""
        while not self._has_room(model):
            self._roomy.clear()
            await self._roomy.wait()

    async def wait_empty(self) -> None:
        """Return once nothing is held."""
        await self._empty.wait()

    def take(self, model: str, requests: int) -> None:
        """Hold so many more."""
        self._held += requests
        self._held_of[model] += requests
        self._empty.clear()

    def give(self, model: str, requests: int) -> None:
        """Hold so many fewer."""
        self._held -= requests
        self._held_of[model] -= requests
        if not self._held_of[model]:
            del self._held_of[model]
        self._roomy.set()
        if self._held <= 0:
            self._empty.set()

    def _has_room(self, model: str) -> bool:
        if self._held < self._most:
            return True
        held = self._held_of.get(model, 0)
        return held * len(self._held_of.keys() | {model}) < self._most


class Parcel:
    """A delivery and how many of its requests are open."""

    __slots__ = ("_model", "_open", "_room", "agent", "delivery")

    def __init__(
        self, delivery: Delivery, address: RequestAddress, requests: int, room: Room
    ) -> None:
        self.delivery = delivery
        self.agent = address.agent
        self._model = address.model
        self._open = requests
        self._room = room
        room.take(self._model, requests)

    @property
    def live(self) -> bool:
        """Whether working on it is of use: else the broker delivers it again."""
        return self.delivery.live

    def settle(self, requests: int = 1) -> None:
        """The results of some are confirmed; the last of all acknowledges them."""
        self._open -= requests
        if self._open == 0:
            self.delivery.ack()
        self._room.give(self._model, requests)

    def drop(self, requests: int = 1) -> None:
        """Give some up, because the delivery is no longer ours."""
        self._room.ledger.give_back(requests)
        self._room.give(self._model, requests)


# Not frozen: thousands are made in a second, and that trebles what each costs.
@dataclass(slots=True, eq=False)
class Held:
    """A valid request on its way through the worker.

    `mishaps` are the batches that failed with it, oldest first. `joint` is set on a
    part of a request that was split, and `part` is its place there. `asked` is the
    request as it was sent, where it may be kept as an example.
    """

    parcel: Parcel
    subject: Subject
    model: ServedModel
    inputs: Inputs
    mishaps: tuple[Mishap, ...] = ()
    joint: Joint | None = None
    part: int = 0
    traceparent: str | None = None
    asked: Request | None = None

    @property
    def over(self) -> bool:
        """Whether another part has ended the request."""
        return self.joint is not None and self.joint.ended

    def end(self) -> bool:
        """End the request; False when another part of it has."""
        return self.joint is None or self.joint.end()
