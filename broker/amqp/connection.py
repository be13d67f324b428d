"""One connection to a broker of several: making it, holding it, and saying why it ended."""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections.abc import AsyncIterator, Iterator, Sequence
from typing import Any, Final

import aio_pika
import aiormq
from aiormq.abc import AbstractChannel as Channel
from aiormq.exceptions import (
    AMQPError,
    AuthenticationError,
    ProbableAuthenticationError,
)
from yarl import URL

from broker.link import (
    BadUrl,
    LinkDown,
    each_address,
    why_unreachable,
    without_password,
)

CONNECT_TIMEOUT_S: Final = 10.0
SETUP_TIMEOUT_S: Final = 60.0
CALL_TIMEOUT_S: Final = 10.0
CLOSE_TIMEOUT_S: Final = 2.0
# Of three, as aiormq has it, the last comes too late for a link that is to be back
# within 15 s, as MQTT's is.
HEARTBEATS_MISSED: Final = 2

# What aio-pika lets through when a connection is gone or a call is refused; an
# invalid channel state is a RuntimeError.
LOST: Final = (AMQPError, OSError, EOFError, RuntimeError)


class Cluster:
    """The brokers that a URL names. One is connected to until a connection ends.

    Args:
        url: of one broker, or of several with commas between their addresses.
        name: shown at the broker beside the connections.
        heartbeat_s: seconds.

    Raises:
        BadUrl: `url` does not name an AMQP broker.
    """

    def __init__(self, url: str, *, name: str, heartbeat_s: int) -> None:
        self.name = name
        self._urls = tuple(
            _read_url(each).update_query(heartbeat=heartbeat_s)
            for each in each_address(url)
        )
        self._turn = 0

    @property
    def where(self) -> str:
        """The broker whose turn it is, without a password."""
        return f"{self._url.scheme}://{self._url.host}:{self._url.port}"

    @property
    def user(self) -> str | None:
        """Who connects to it."""
        return self._url.user

    def down(self, why: str | None) -> str:
        """That there is no connection, for a `LinkDown`; `why` if it is known."""
        why = why or "the connection was lost or not made yet"
        return f"no link to {self.where}: {why}"

    @contextlib.asynccontextmanager
    async def connected(self, purpose: str) -> AsyncIterator[aio_pika.Connection]:
        """A connection; the next one is to the next broker.

        Raises:
            LinkDown: there is none; says why and what to do.
        """
        turn = self._turn
        connection = aio_pika.Connection(
            self._url.update_query(name=f"{self.name}: {purpose}")
        )
        try:
            try:
                with only_own_cancellation():
                    # aio-pika's own timeout leaves out the wait of a blocked broker.
                    async with asyncio.timeout(CONNECT_TIMEOUT_S):
                        await connection.connect()
            except LOST as error:
                raise LinkDown(self._why_unconnected(error)) from error
            yield connection
        finally:
            with contextlib.suppress(*LOST, LinkDown), only_own_cancellation():
                async with asyncio.timeout(CLOSE_TIMEOUT_S):
                    await connection.close()
            if turn == self._turn:  # else the other connection has moved on already
                self._turn += 1

    async def until_ended(
        self,
        connection: aio_pika.Connection,
        channels: Sequence[Channel],
        ended: asyncio.Future[None] | None = None,
        *,
        until: asyncio.Future[None] | None = None,
    ) -> None:
        """Hold the connection; returns when `until` is done.

        Raises:
            LinkDown: the connection or a channel has ended, or `ended` was set.
        """
        transport = connection.transport
        if transport is None:
            raise LinkDown(f"{self.where} closed the connection")
        ends = [transport.connection.closing, *(each.closing for each in channels)]
        others = [each for each in (ended, until) if each is not None]
        try:
            done, _ = await asyncio.wait(
                [*others, *ends], return_when=asyncio.FIRST_COMPLETED
            )
        finally:
            for end in ends:
                end.cancel()
        if done != {until}:
            raise LinkDown(self._why_ended(done))

    @property
    def _url(self) -> URL:
        return self._urls[self._turn % len(self._urls)]

    def _why_ended(self, done: set[asyncio.Future[Any]]) -> str:
        errors = [end.exception() for end in done if not end.cancelled()]
        for error in errors:
            if isinstance(error, LinkDown):
                return str(error)
        known = dict.fromkeys(text_of(error) for error in errors if error is not None)
        return f"{self.where} closed the connection ({'; '.join(known) or 'no reason'})"

    def _why_unconnected(self, error: BaseException) -> str:
        if isinstance(error, (AuthenticationError, ProbableAuthenticationError)):
            return (
                f"{self.where} refused user {self.user!r}: check the user and "
                "password in the URL, and that the broker knows the user"
            )
        # aiormq keeps only the text of a socket's error, so look behind its own.
        cause = error.__cause__ or error.__context__
        if isinstance(error, AMQPError) and not isinstance(cause, OSError):
            return (
                f"{self.where} refused the connection ({text_of(error)}): check the "
                f"vhost {self._url.path!r} and the permissions of {self.user!r}"
            )
        return why_unreachable(self.where, cause or error)


def set_up_libraries() -> None:
    """Tell the libraries, once in a process, what holds for all connections."""
    for library in ("aiormq", "aio_pika"):
        # They log each failure in their own words; ours say it once.
        logging.getLogger(library).setLevel(logging.CRITICAL)
    aiormq.Connection.HEARTBEAT_GRACE_MULTIPLIER = HEARTBEATS_MISSED


async def open_channel(
    connection: aio_pika.Connection, *, confirms: bool = False
) -> Channel:
    """A channel at the level of aiormq."""
    channel = connection.channel(publisher_confirms=confirms)
    await channel.initialize()
    return await channel.get_underlay_channel()


@contextlib.contextmanager
def only_own_cancellation() -> Iterator[None]:
    """Let a cancellation through only when this task was cancelled.

    aiormq answers calls that wait on a closing channel with a CancelledError, which
    would end a task that nobody has cancelled.

    Raises:
        LinkDown: instead of such an answer.
    """
    try:
        yield
    except asyncio.CancelledError:
        task = asyncio.current_task()
        if task is not None and task.cancelling():
            raise
        raise LinkDown("the connection was lost during a call") from None


@contextlib.contextmanager
def translated() -> Iterator[None]:
    """Make one error of all that says that a connection is gone.

    Raises:
        LinkDown: instead of them, and of a call that took too long.
    """
    try:
        with only_own_cancellation():
            yield
    except TimeoutError:
        raise LinkDown("the broker did not answer in time") from None
    except LOST as error:
        raise LinkDown(f"the connection was lost ({text_of(error)})") from error


def text_of(error: BaseException) -> str:
    """What the broker said, without AMQP's number for it."""
    parts = [str(part) for part in getattr(error, "args", ()) if isinstance(part, str)]
    return "; ".join(parts) or type(error).__name__


def _read_url(url: str) -> URL:
    try:
        read = URL(url)
    except ValueError as error:
        raise BadUrl(f"not the URL of an AMQP broker ({error})") from error
    if read.scheme not in {"amqp", "amqps"} or not read.host:
        raise BadUrl(
            f"{without_password(url)!r} does not name an AMQP broker; write "
            "amqp://user:password@host:5672/vhost, or amqps:// for TLS"
        )
    return (
        read if read.port else read.with_port(5671 if read.scheme == "amqps" else 5672)
    )
