"""An MQTT broker inside the agent, for devices on a gateway that runs no other.

For development and small gateways; production has Mosquitto. The only user of amqtt.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import socket
from typing import TYPE_CHECKING, Any, Self

if TYPE_CHECKING:
    from amqtt.broker import Broker


class PortTaken(Exception):
    """The embedded broker cannot listen where it was told to."""


class EmbeddedBroker:
    """amqtt on one TCP port. Use as `async with`.

    Args:
        host: the address to listen on; beyond loopback anybody there may connect.
        port: the TCP port.
    """

    def __init__(self, host: str, port: int) -> None:
        self._host = host
        self._port = port
        self._broker: Broker | None = None

    async def __aenter__(self) -> Self:
        # Imported here: it takes 0.2 s, and most gateways run another broker.
        from amqtt.broker import Broker  # noqa: PLC0415

        self._check_port()
        logging.getLogger("amqtt").setLevel(logging.ERROR)
        logging.getLogger("transitions").setLevel(logging.ERROR)
        config: dict[str, Any] = {
            "listeners": {
                "default": {
                    "type": "tcp",
                    "bind": f"{self._host}:{self._port}",
                    "max_connections": 1000,
                }
            },
            "plugins": {
                "amqtt.plugins.authentication.AnonymousAuthPlugin": {
                    "allow_anonymous": True
                }
            },
        }
        self._broker = Broker(config)
        await self._broker.start()
        return self

    async def __aexit__(self, *_: object) -> None:
        if self._broker is not None:
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(5.0):
                    await self._broker.shutdown()

    def _check_port(self) -> None:
        # amqtt's own error does not say which port, nor what to do.
        with socket.socket(socket.AF_INET, socket.SOCK_STREAM) as probe:
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            try:
                probe.bind((self._host, self._port))
            except OSError as error:
                raise PortTaken(
                    f"the embedded broker cannot listen on {self._host}:{self._port} "
                    f"({error.strerror}): stop what uses it, choose another "
                    "embedded_port, or name that broker with local_url"
                ) from error
