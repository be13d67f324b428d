"""What a link to a broker is, whatever it speaks: up or down, and why.

A link endures: it is down until it is up, says in one sentence what keeps it down,
and nothing but cancellation ends it.
"""

from __future__ import annotations

import asyncio
import socket
import ssl
from collections.abc import Callable, Coroutine
from typing import Any, Final

import structlog

from broker.backoff import Backoff

log = structlog.get_logger(__name__)

STABLE_S: Final = 5.0
# Longer than a link takes to close in good order.
CANCEL_AGAIN_S: Final = 5.0
CAUSES_KEPT: Final = 16


class LinkDown(Exception):
    """There is no connection to the broker; keep the message and try again later."""


class PublishTimeout(LinkDown):
    """The broker did not confirm in time; it may or may not have the message."""


class BadUrl(ValueError):
    """A URL that does not name a broker."""


class Standing:
    """Whether a link is up, since when, and what last kept it down."""

    def __init__(
        self,
        name: str,
        on_change: Callable[[bool], None] | None,
        backoff: Backoff | None,
    ) -> None:
        self.name = name
        self.last_error: str | None = None
        self._on_change = on_change
        self._backoff = backoff or Backoff()
        self._up = asyncio.Event()
        self._since_s = 0.0
        self._said: set[str] = set()

    @property
    def up(self) -> bool:
        """Whether the link works now."""
        return self._up.is_set()

    async def wait_up(self) -> None:
        """Return once the link works."""
        await self._up.wait()

    def rise(self) -> None:
        """The link works from now on."""
        self._since_s = asyncio.get_running_loop().time()
        self.last_error = None
        self._said.clear()
        self._up.set()
        log.info("link up", link=self.name)
        self._tell(up=True)

    def fall(self) -> None:
        """The link has stopped working; a link that was not up stays silent."""
        if not self._up.is_set():
            return
        # A link that is lost at once has not worked: it goes on backing off.
        if self.stable:
            self._backoff.reset()
        self._up.clear()
        self._tell(up=False)

    @property
    def stable(self) -> bool:
        """Whether the link is up and has been for a while."""
        held_s = asyncio.get_running_loop().time() - self._since_s
        return self._up.is_set() and held_s >= STABLE_S

    async def pause(self, error: str) -> None:
        """Say what keeps the link down, once for each cause, and wait before a retry."""
        wait_s = self._backoff.next_s()
        # Several addresses that are tried in turn fail each in its own way.
        report = log.debug if error in self._said else log.warning
        if len(self._said) >= CAUSES_KEPT:
            self._said.clear()
        self._said.add(error)
        report("link down", link=self.name, error=error, retry_in_s=round(wait_s, 2))
        self.last_error = error
        await asyncio.sleep(wait_s)

    def _tell(self, *, up: bool) -> None:
        if self._on_change is None:
            return
        try:
            self._on_change(up)
        except Exception:
            # All there is: it is somebody else's function, and no mistake in it may
            # keep a link from coming up, or from being torn down.
            log.exception("a link's on_change failed", link=self.name, up=up)


async def until_cancelled(work: Coroutine[Any, Any, None]) -> None:
    """Run a link's endless work, and end it for certain when this is cancelled.

    Until Python 3.12 a cancellation can get lost on its way: `asyncio.wait_for`, which
    the libraries await, and `TaskGroup` both prefer an error or a result that comes in
    the same turn of the loop. The link would then connect again and go on for ever.
    """
    async with asyncio.TaskGroup() as tasks:
        task = tasks.create_task(work)
        try:
            await asyncio.wait((task,))
        except asyncio.CancelledError:
            while not task.done():
                task.cancel()
                await asyncio.wait((task,), timeout=CANCEL_AGAIN_S)
            raise


def why_unreachable(where: str, error: BaseException) -> str:
    """Why no connection came about and what to do, in one sentence.

    Args:
        where: the broker, without a password.
        error: what the attempt raised.
    """
    if isinstance(error, socket.gaierror):
        return f"{where} has no address ({error.strerror}): correct the host name"
    if isinstance(error, ConnectionRefusedError):
        return f"nothing listens at {where}: start the broker or correct the port"
    if isinstance(error, ssl.SSLError):
        return (
            f"TLS with {where} failed ({error.reason or error}): check that its "
            "certificate names this host and is signed by the CA that was given"
        )
    if isinstance(error, TimeoutError):
        return (
            f"{where} did not answer in time: it is unreachable, overloaded or over "
            "its memory limit"
        )
    if isinstance(error, FileNotFoundError):
        return f"cannot connect to {where}: {error.filename or error} does not exist"
    return f"cannot connect to {where}: {str(error) or type(error).__name__}"


def each_address(url: str) -> list[str]:
    """One URL for each address of a URL that names several, as those of a cluster.

    `amqp://user:password@a:5672,b:5672/vhost` is two; the rest of it is of each.
    """
    head, slashes, rest = url.partition("//")
    end = min((at for at in map(rest.find, "/?#") if at >= 0), default=len(rest))
    who, at, hosts = rest[:end].rpartition("@")
    return [f"{head}{slashes}{who}{at}{host}{rest[end:]}" for host in hosts.split(",")]


def without_password(url: str) -> str:
    """A URL as it may be shown, whether or not it is well formed."""
    head, at, tail = url.rpartition("@")
    return f"{head.partition('//')[0]}//…@{tail}" if at else url
