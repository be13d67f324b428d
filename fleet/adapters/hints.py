"""Tell agents over RabbitMQ that their desired state changed. Losing a hint costs time only."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterable, Sequence
from typing import Final, Protocol

from broker.amqp.link import AmqpLink
from broker.codec import encode
from broker.link import LinkDown
from broker.messages import Command
from broker.topics import as_routing_key, commands

AT_ONCE: Final = 64


class Publisher(Protocol):
    """The part of an AMQP link that sends."""

    async def publish(
        self, routing_key: str, body: bytes, *, timeout_s: float = ...
    ) -> None:
        """Send one message and return once it is confirmed."""
        ...


async def send_hints(
    link: Publisher, agents: Iterable[str], *, timeout_s: float
) -> None:
    """Publish `desired_changed` to each agent.

    Raises:
        LinkDown: there is no connection, or a confirm did not come in time.
    """
    body = encode(Command(action="desired_changed"))
    for agent in agents:
        await link.publish(as_routing_key(commands(agent)), body, timeout_s=timeout_s)


async def hint_once(
    amqp_url: str,
    agents: Sequence[str],
    *,
    timeout_s: float,
    told: Callable[[int], None] = lambda _: None,
) -> None:
    """Connect, publish `desired_changed` to each agent, disconnect.

    Args:
        amqp_url: RabbitMQ.
        agents: whom to tell.
        timeout_s: how long to try to connect, and to wait for each confirm.
        told: called with the number of agents told so far.

    Raises:
        LinkDown: RabbitMQ cannot be reached or does not confirm; says why.
        BadUrl: the URL names no broker.
    """
    link = AmqpLink(
        amqp_url, name="rollout", queues=(), consume={}, on_delivery=_nothing
    )
    failed: list[LinkDown] = []
    async with asyncio.TaskGroup() as group:
        running = group.create_task(link.run())
        try:
            async with asyncio.timeout(timeout_s):
                await link.wait_up()
            for start in range(0, len(agents), AT_ONCE):
                some = agents[start : start + AT_ONCE]
                await _at_once(link, some, timeout_s)
                told(start + len(some))
        except TimeoutError:
            failed.append(LinkDown(link.last_error or "RabbitMQ did not answer"))
        except LinkDown as error:
            failed.append(error)
        finally:
            running.cancel()
    if failed:
        raise failed[0]


async def _at_once(link: AmqpLink, agents: Sequence[str], timeout_s: float) -> None:
    try:
        async with asyncio.TaskGroup() as group:
            for agent in agents:
                group.create_task(send_hints(link, [agent], timeout_s=timeout_s))
    except* LinkDown as errors:
        raise LinkDown(str(_first(errors))) from errors


def _first(group: BaseExceptionGroup[BaseException]) -> BaseException:
    error: BaseException = group
    while isinstance(error, BaseExceptionGroup):
        error = error.exceptions[0]
    return error


async def _nothing(_delivery: object) -> None:
    """This link consumes nothing."""
