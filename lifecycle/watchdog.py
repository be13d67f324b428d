"""Tell systemd that this process is ready, alive and ending. Never fails because of it.

The sign of life is sent by the event loop itself: one that stalls sends none, and
systemd (`WatchdogSec=`) kills the process and starts it again. Source: sd_notify(3),
sd_watchdog_enabled(3).
"""

from __future__ import annotations

import asyncio
import os
import socket
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from typing import Final, Self

import structlog

log = structlog.get_logger(__name__)

MAX_STATUS_CHARS: Final = 200


class ServiceManager:
    """The service manager that started this process, or nobody.

    Args:
        socket_address: a path, or `@NAME` of an abstract socket; None: nobody listens.
        watchdog_s: systemd kills a process that is silent for so long; None: never.
    """

    def __init__(
        self, socket_address: str | None = None, watchdog_s: float | None = None
    ) -> None:
        self._address = socket_address
        self._watchdog_s = watchdog_s

    @classmethod
    def from_environment(
        cls, environment: Mapping[str, str] = os.environ, *, pid: int | None = None
    ) -> Self:
        """Whoever the variables NOTIFY_SOCKET and WATCHDOG_… name."""
        address = environment.get("NOTIFY_SOCKET", "")
        if not address.startswith(("/", "@")):
            return cls()
        meant_for = environment.get("WATCHDOG_PID")
        own = str(os.getpid() if pid is None else pid)
        micros = environment.get("WATCHDOG_USEC", "")
        watched = micros.isdecimal() and int(micros) > 0 and meant_for in {None, own}
        return cls(address, int(micros) / 1e6 if watched else None)

    @asynccontextmanager
    async def watching(self, status: str) -> AsyncIterator[None]:
        """Ready and alive while the block lasts, then stopping."""
        failed: Exception | None = None
        async with asyncio.TaskGroup() as tasks:
            feeding = tasks.create_task(self._feed())
            self._send("READY=1", _status(status))
            try:
                yield
            except Exception as error:  # noqa: BLE001 - not as part of a group
                failed = error
            finally:
                self._send("STOPPING=1", "STATUS=stopping")
                feeding.cancel()
        if failed is not None:
            raise failed

    def status(self, text: str) -> None:
        """One line for `systemctl status`."""
        self._send(_status(text))

    async def _feed(self) -> None:
        """Give a sign of life twice in the time that is allowed."""
        if self._watchdog_s is None:
            return
        while True:
            self._send("WATCHDOG=1")
            await asyncio.sleep(self._watchdog_s / 2)

    def _send(self, *lines: str) -> None:
        if self._address is None:
            return
        address = self._address
        if address.startswith("@"):
            address = "\0" + address[1:]
        try:
            with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as sender:
                # A full socket costs a message, never the event loop's time.
                sender.setblocking(False)
                sender.sendto("\n".join(lines).encode(), address)
        except OSError as error:
            log.warning("systemd_not_told", what=lines[0], error=str(error))


def _status(text: str) -> str:
    return "STATUS=" + " ".join(text.split())[:MAX_STATUS_CHARS]
