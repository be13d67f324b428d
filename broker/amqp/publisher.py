"""The connection that publishes: each message persistent, confirmed and timed."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from typing import Any, Final

from aiormq.abc import AbstractChannel as Channel
from aiormq.exceptions import DeliveryError
from pamqp.commands import Basic

from broker.amqp.connection import (
    LOST,
    SETUP_TIMEOUT_S,
    Cluster,
    only_own_cancellation,
    open_channel,
    text_of,
)
from broker.link import LinkDown, PublishTimeout, Standing

PERSISTENT: Final = 2


class Publisher:
    """Publishes while its connection lasts, which is not the one that consumes.

    A broker that is over a limit stops reading from connections that publish, and
    acknowledgements must still come through.
    """

    def __init__(self, cluster: Cluster, standing: Standing) -> None:
        self._cluster = cluster
        self._standing = standing
        self._channel: Channel | None = None

    async def run_once(self) -> None:
        """Connect and hold the connection until it ends.

        Raises:
            LinkDown: at its end, or when there is none.
        """
        async with self._cluster.connected("publish") as connection:
            with only_own_cancellation():
                async with asyncio.timeout(SETUP_TIMEOUT_S):
                    channel = await open_channel(connection, confirms=True)
            self._channel = channel
            self._standing.rise()
            try:
                await self._cluster.until_ended(connection, [channel])
            finally:
                self._channel = None
                self._standing.fall()

    async def publish(
        self,
        routing_key: str,
        body: bytes,
        *,
        exchange: str,
        headers: Mapping[str, Any] | None,
        timeout_s: float,
    ) -> None:
        """Publish a message and return when it is confirmed; see `AmqpLink.publish`."""
        channel = self._channel
        if channel is None:
            raise LinkDown(self._cluster.down(self._standing.last_error))
        properties = Basic.Properties(
            delivery_mode=PERSISTENT, headers=dict(headers) if headers else None
        )
        try:
            with only_own_cancellation():
                await channel.basic_publish(
                    body,
                    exchange=exchange,
                    routing_key=routing_key,
                    properties=properties,
                    timeout=timeout_s,
                )
        except TimeoutError:
            raise PublishTimeout(
                f"{self._cluster.where} did not confirm a message within "
                f"{timeout_s:g} s: it may be over its memory or disk limit; publish "
                "again later"
            ) from None
        except DeliveryError as error:
            raise LinkDown(
                f"{self._cluster.where} refused a message for {routing_key!r}: a queue "
                "that takes it is full or has no leader; publish again later"
            ) from error
        except LOST as error:
            down = self._cluster.down(self._standing.last_error)
            raise LinkDown(f"{down} ({text_of(error)})") from error
