"""The registry over the uplink's own link: a question on `up/get`, an answer on `dn/blob`.

Answers are matched by path and offset, in any order; what nobody asked for is
ignored. Chunks that a whole wave needs may also be heard on a topic of their blob, and
what of it was missed comes as an answer that nobody waits for.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager, suppress
from typing import Final, Protocol

import structlog

from broker import topics
from broker.codec import WireError, decode, encode
from broker.link import LinkDown
from broker.messages import MAX_READ_BYTES, Blob, Get
from bundle import layout
from bundle.source import NotThere, Piece, SourceUnavailable

log = structlog.get_logger(__name__)

TRIES: Final = 3
SHARED_PREFIX: Final = topics.shared_blobs("")
# What is heard is one chunk and a few words around it.
MAX_HEARD_BYTES: Final = MAX_READ_BYTES + 64 * 1024

Heard = Callable[[int, bytes], None]
_Key = tuple[str, int]


class AskingLink(Protocol):
    """What this needs of an MQTT connection."""

    @property
    def up(self) -> bool:
        """Whether a publish can be tried."""
        ...

    def publish(
        self, topic: str, payload: bytes, *, timeout_s: float = 10.0
    ) -> Awaitable[None]:
        """Begin at once, return on PUBACK; raise LinkDown, then or when awaited."""
        ...

    async def hear(self, topic: str) -> None:
        """Subscribe at QoS 0, after each reconnect too, until `unhear`."""
        ...

    async def unhear(self, topic: str) -> None:
        """Subscribe no more."""
        ...


class MqttSource:
    """Files of the registry, served by the pool.

    Args:
        agent: this agent's identity; it alone reads `desired/{agent}`.
        link: the uplink's connection.
        timeout_s: until an answer to one question; it is asked `tries` times.
    """

    name = "mqtt"

    def __init__(
        self,
        *,
        agent: str,
        link: AskingLink,
        timeout_s: float = 10.0,
        tries: int = TRIES,
    ) -> None:
        self._topic = topics.gets(agent)
        self._blobs = topics.blobs(agent)
        self._link = link
        self._timeout_s = timeout_s
        self._tries = tries
        self._asked: dict[_Key, set[asyncio.Future[Blob]]] = {}
        self._heard: dict[str, Heard] = {}

    async def read(self, path: str, offset: int, length: int) -> Piece:
        """At most `length` bytes of the file from `offset` on; fewer only at its end.

        Raises:
            NotThere: the pool says that there is no such file.
            SourceUnavailable: no link, no answer in time, or the pool is busy.
        """
        blob = await self._ask(
            Get(want="file", path=path, offset=offset, length=length)
        )
        match blob.status:
            case "ok":
                pass
            case "not_found":
                raise NotThere(blob.reason or f"the pool has no {path}")
            case _:
                raise SourceUnavailable(
                    blob.reason or f"the pool is {blob.status}", blob.retry_after_s
                )
        due = min(length, max(0, blob.total_bytes - offset))
        if len(blob.data) < due:
            raise SourceUnavailable(
                f"the pool gave {len(blob.data)} of {due} bytes of {path}"
            )
        return Piece(blob.data[:length], blob.total_bytes)

    async def ask_shared(
        self, path: str, offset: int, length: int, listening_s: float
    ) -> None:
        """Ask for a chunk on the topic that the whole wave hears; wait for nothing.

        Args:
            path: of the blob.
            offset: of the chunk.
            length: of the chunk.
            listening_s: for how long that topic has been heard.

        Raises:
            SourceUnavailable: the question could not be sent.
        """
        get = Get(
            want="file",
            path=path,
            offset=offset,
            length=length,
            shared=True,
            listening_ms=round(1000 * listening_s),
        )
        await self._publish(encode(get))

    @asynccontextmanager
    async def hearing(self, sha256: str, heard: Heard) -> AsyncIterator[None]:
        """Hear the chunks of a blob that others of the wave ask for.

        Args:
            sha256: of the whole blob.
            heard: called in the event loop with offset and bytes, unverified.

        Raises:
            SourceUnavailable: the topic cannot be subscribed now.
        """
        topic = topics.shared_blobs(sha256)
        try:
            await self._link.hear(topic)
        except LinkDown as error:
            raise SourceUnavailable(str(error)) from error
        self._heard[sha256] = heard
        try:
            yield
        finally:
            del self._heard[sha256]
            with suppress(LinkDown):
                await self._link.unhear(topic)

    def on_message(self, topic: str, payload: bytes) -> bool:
        """Take what the link hears; says whether it was for this."""
        if topic == self._blobs:
            self._on_blobs(payload)
        elif topic.startswith(SHARED_PREFIX):
            self._on_shared(topic.removeprefix(SHARED_PREFIX), payload)
        else:
            return False
        return True

    def _on_blobs(self, payload: bytes) -> None:
        for blob in _read(payload):
            asked = self._asked.get((blob.path, blob.offset))
            if asked is None:
                # Asked for with the wave, which had been told it already.
                self._tell_heard(blob)
                continue
            for future in asked:
                if not future.done():
                    future.set_result(blob)

    def _on_shared(self, sha256: str, payload: bytes) -> None:
        if sha256 not in self._heard or len(payload) > MAX_HEARD_BYTES:
            return
        for blob in _read(payload):
            if blob.path == layout.blob(sha256):
                self._tell_heard(blob)

    def _tell_heard(self, blob: Blob) -> None:
        heard = self._heard.get(blob.path.removeprefix(f"{layout.BLOBS}/"))
        if heard is not None and blob.status == "ok":
            heard(blob.offset, blob.data)

    async def _ask(self, get: Get) -> Blob:
        key = (get.path, get.offset)
        question = encode(get)
        for _ in range(self._tries):
            future: asyncio.Future[Blob] = asyncio.get_running_loop().create_future()
            asked = self._asked.setdefault(key, set())
            asked.add(future)
            try:
                async with asyncio.timeout(self._timeout_s):
                    await self._publish(question)
                    return await future
            except TimeoutError:
                continue
            finally:
                asked.discard(future)
                if not asked:
                    self._asked.pop(key, None)
        raise SourceUnavailable(
            f"the pool did not answer for {get.path} after {self._tries} tries of "
            f"{self._timeout_s:g} s; is a worker with a registry running?"
        )

    async def _publish(self, question: bytes) -> None:
        try:
            await self._link.publish(self._topic, question, timeout_s=self._timeout_s)
        except LinkDown as error:
            raise SourceUnavailable(str(error)) from error


def _read(payload: bytes) -> tuple[Blob, ...]:
    try:
        envelope = decode(payload, Blob)
    except WireError as error:
        log.warning("blob_unreadable", error=str(error))
        return ()
    return envelope.items
