"""The ways into the system: as agents, as devices, or straight into the queue.

Each uses the links that the programs use; what they cost, a load costs too.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Coroutine, Sequence
from dataclasses import dataclass
from typing import Any, Final, Protocol

import structlog

from broker.codec import WireError
from broker.mqtt.link import MqttLink
from broker.mqtt.target import MqttTarget
from broker.topics import as_routing_key, requests, results
from overspill.load.account import Ending
from overspill.load.mix import Planned
from overspill.load.wording import (
    device_message,
    envelope,
    read_answer,
    read_results,
)

log = structlog.get_logger(__name__)

# Open loop: a message must not wait for a place that the broker's silence fills.
WINDOW: Final = 10_000
PUBLISH_TIMEOUT_S: Final = 10.0
RESULTS_PREFETCH: Final = 1000


@dataclass(frozen=True, slots=True)
class Hears:
    """Whom a way tells.

    Attributes:
        endings: what came of requests, at once when it was heard.
        link: a link came up (True) or was lost (False).
    """

    endings: Callable[[Sequence[Ending]], None]
    link: Callable[[bool], None]


class Link(Protocol):
    """What a way needs of a connection; both links of `broker` are one."""

    @property
    def up(self) -> bool:
        """Whether it works."""
        ...

    @property
    def last_error(self) -> str | None:
        """What keeps it down; None while it is up."""
        ...

    async def run(self) -> None:
        """Connect and stay connected."""
        ...


class Way(Protocol):
    """How requests get in and what came of them gets out."""

    @property
    def links(self) -> Sequence[Link]:
        """Connections that are to be run."""
        ...

    def wrap(self, together: Sequence[Planned], *, began_wall_ms: int) -> bytes:
        """One message that holds all of these."""
        ...

    def send(self, first: Planned, message: bytes) -> Coroutine[Any, Any, None]:
        """Publish a message, as the sender of the request that is first in it.

        Raises:
            LinkDown: the broker may or may not have it.
        """
        ...


class AsAgents:
    """Publishes to RabbitMQ over MQTT with the agents' own credentials.

    A broker knows one connection of an agent: the agent itself must not run.

    Args:
        run: what makes this run's ids its own.
        agents: each one's id and broker.
        hears: who is told.
    """

    def __init__(
        self, run: str, agents: Sequence[tuple[str, MqttTarget]], hears: Hears
    ) -> None:
        self._run = run
        self._names = [name for name, _ in agents]
        self._hears = hears
        self.links = [
            _mqtt(target, name, results(name), self._hear, hears)
            for name, target in agents
        ]

    def wrap(self, together: Sequence[Planned], *, began_wall_ms: int) -> bytes:
        """An envelope."""
        return envelope(self._run, together, began_wall_ms=began_wall_ms)

    async def send(self, first: Planned, message: bytes) -> None:
        """Publish it as one of the agents."""
        topic = requests(self._names[first.sender], first.model, first.priority)
        link = self.links[first.sender]
        await link.publish(topic, message, timeout_s=PUBLISH_TIMEOUT_S)

    def _hear(self, _topic: str, payload: bytes) -> None:
        self._hears.endings(read_results(self._run, payload))


class AsDevices:
    """Publishes to an agent's local broker as devices of its own.

    Args:
        run: what makes this run's ids and its devices' names its own.
        target: the broker of the agent's devices.
        devices: how many, each with a connection.
        spill: ask for the cloud each time.
        hears: who is told.
    """

    def __init__(
        self,
        run: str,
        target: MqttTarget,
        hears: Hears,
        *,
        devices: int,
        spill: bool = False,
    ) -> None:
        self._run = run
        self._hears = hears
        self._spill = spill
        self._names = [f"{run}-{index}" for index in range(devices)]
        self.links = [
            _mqtt(target, name, f"answer/{name}", self._hear, hears)
            for name in self._names
        ]

    def wrap(self, together: Sequence[Planned], *, began_wall_ms: int) -> bytes:  # noqa: ARG002 - an agent is told how long, not until when
        """The message of the one request that a device sends at a time."""
        (alone,) = together
        return device_message(self._run, alone, spill=self._spill)

    async def send(self, first: Planned, message: bytes) -> None:
        """Publish it as one of the devices."""
        topic = f"infer/{self._names[first.sender]}/{first.model}"
        link = self.links[first.sender]
        await link.publish(topic, message, timeout_s=PUBLISH_TIMEOUT_S)

    def _hear(self, _topic: str, payload: bytes) -> None:
        ending = read_answer(self._run, payload)
        if ending is not None:
            self._hears.endings([ending])


class IntoQueue:
    """Publishes to `amq.topic` over AMQP and consumes the results from its own queue.

    Args:
        run: what makes this run's ids, agents and queue its own.
        url: RabbitMQ, as a user that may write requests and read results.
        agents: how many names to publish under.
        hears: who is told.
    """

    def __init__(self, run: str, url: str, hears: Hears, *, agents: int) -> None:
        # aio-pika is no dependency of the other ways.
        from broker.amqp.link import AmqpLink  # noqa: PLC0415 - as said
        from broker.topology import result_queue  # noqa: PLC0415 - as said

        self._run = run
        self._hears = hears
        self._names = [f"{run}-{index}" for index in range(agents)]
        queues = [result_queue(run, each) for each in self._names]
        self._link = AmqpLink(
            url,
            name=f"overspill load {run}",
            queues=queues,
            consume={queues[0].name: RESULTS_PREFETCH},
            on_delivery=self._take,
            on_change=hears.link,
        )
        self.links: list[Link] = [self._link]

    def wrap(self, together: Sequence[Planned], *, began_wall_ms: int) -> bytes:
        """An envelope."""
        return envelope(self._run, together, began_wall_ms=began_wall_ms)

    async def send(self, first: Planned, message: bytes) -> None:
        """Publish it under one of the names."""
        topic = requests(self._names[first.sender], first.model, first.priority)
        await self._link.publish(
            as_routing_key(topic), message, timeout_s=PUBLISH_TIMEOUT_S
        )

    async def _take(self, delivery: Any) -> None:  # noqa: ANN401 - broker.amqp's Delivery, imported late
        self._hears_of(delivery.body)
        delivery.ack()

    def _hears_of(self, body: bytes) -> None:
        try:
            self._hears.endings(read_results(self._run, body))
        except WireError as error:
            log.warning("a result could not be read", error=str(error))


def _mqtt(
    target: MqttTarget,
    client_id: str,
    listens: str,
    hear: Callable[[str, bytes], None],
    hears: Hears,
) -> MqttLink:
    return MqttLink(
        target,
        client_id=client_id,
        subscriptions=[listens],
        on_message=functools.partial(_readable, hear),
        on_change=hears.link,
        # A session that outlived the run would fill with results of nobody's.
        persistent=False,
        window=WINDOW,
    )


def _readable(hear: Callable[[str, bytes], None], topic: str, payload: bytes) -> None:
    try:
        hear(topic, payload)
    except WireError as error:
        log.warning("a result could not be read", topic=topic, error=str(error))
