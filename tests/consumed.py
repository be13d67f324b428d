"""Waiting until a pool serves a model.

A worker says that it is ready as soon as it serves one. Another that loads for long is
not waited for, as on a busy machine: until then its requests fail.
"""

from __future__ import annotations

import asyncio
from contextlib import suppress

from broker.amqp.link import AmqpLink
from broker.amqp.queues import NoSuchQueue
from broker.topology import model_queues

PATIENCE_S = 90.0


async def until_consumed(amqp_url: str, *models: str) -> None:
    """Return once somebody consumes every queue of these models.

    Raises:
        TimeoutError: it does not come to that.
    """
    link = AmqpLink(amqp_url, name="looks")
    async with asyncio.timeout(PATIENCE_S), asyncio.TaskGroup() as beside:
        looking = beside.create_task(link.run())
        await link.wait_up()
        for queue in (queue for model in models for queue in model_queues(model)):
            while not await _is_consumed(link, queue.name):  # noqa: ASYNC110 - no event
                await asyncio.sleep(0.1)
        looking.cancel()


async def _is_consumed(link: AmqpLink, queue: str) -> bool:
    with suppress(NoSuchQueue):
        return (await link.look(queue)).consumers > 0
    return False
