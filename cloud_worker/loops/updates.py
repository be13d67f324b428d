"""Serve the files of the registry, range by range, as agents ask for them.

Questions come from one queue, so that the pool shares them by how fast each member
answers. Public files go to whoever asks; `desired/{agent}` to that agent alone, whose
name the broker has checked. What a whole wave needs is published once for all of it;
who of it asks again is answered alone.
"""

from __future__ import annotations

import asyncio
import time
from typing import Final

import structlog

from broker.codec import WireError, decode, encode
from broker.messages import Blob, Get
from broker.topics import as_routing_key, blobs, read_agent, shared_blobs
from bundle import layout
from bundle.source import NotThere, Piece, Source, SourceUnavailable
from cloud_worker.core.shared_chunks import Reply, SharedChunks
from cloud_worker.loops.parcels import Delivery
from cloud_worker.loops.replies import Publish, publish_while

log = structlog.get_logger(__name__)

# Each chunk is 128 KiB: this bounds what many agents that pull at once can cost.
PREFETCH: Final = 16
# Of an envelope: a window's worth. More would hold one agent's delivery for long.
MAX_QUESTIONS: Final = 64
READERS: Final = 4
# Longer than a good disk or bucket takes; a question that waits so long is sent away,
# to be asked again of a member that has time.
READ_S: Final = 5.0
RETRY_AFTER_S: Final = 2.0


class Updates:
    """The loop over `model.get`.

    Args:
        registry: its files.
        publish: on the topic exchange.
        readers: reads at once.
        read_s: how long one question may wait for a reader and be read.
        timeout_s: until a publish is confirmed.
    """

    def __init__(
        self,
        registry: Source,
        publish: Publish,
        *,
        readers: int = READERS,
        read_s: float = READ_S,
        timeout_s: float = 10.0,
        shared: SharedChunks | None = None,
    ) -> None:
        self._registry = registry
        self._publish = publish
        self._reading = asyncio.Semaphore(readers)
        self._read_s = read_s
        self._timeout_s = timeout_s
        self.shared = shared or SharedChunks()

    async def take(self, delivery: Delivery) -> None:
        """Answer one delivery and acknowledge it."""
        agent = read_agent(delivery.routing_key)
        if agent is None:
            log.warning("get refused", routing_key=delivery.routing_key[:200])
            delivery.ack()
            return
        try:
            envelope = decode(delivery.body, Get)
        except WireError as error:
            log.warning("get refused", agent=agent, reason=str(error))
            delivery.ack()
            return
        for bad in envelope.bad:
            log.warning("get refused", agent=agent, reason=bad.reason)
        if len(envelope.items) > MAX_QUESTIONS:
            log.warning("gets left out", agent=agent, items=len(envelope.items))
        for get in envelope.items[:MAX_QUESTIONS]:
            if not await self._answer(delivery, agent, get):
                return
        delivery.ack()

    async def _answer(self, delivery: Delivery, agent: str, get: Get) -> bool:
        """Whether the broker has the answer, or none is due."""
        topic = blobs(agent)
        digest = _shared_digest(get)
        chunk = (get.path, get.offset, get.length)
        if digest is not None:
            heard_ms = get.listening_ms
            listening_s = None if heard_ms is None else heard_ms / 1000
            reply = self.shared.claim(chunk, time.monotonic(), listening_s)
            if reply is Reply.NOTHING:
                return True
            if reply is Reply.ALONE:
                digest = None
            else:
                topic = shared_blobs(digest)
        blob = await self._read(agent, get)
        if digest is not None and blob.status != "ok":
            # A whole wave need not hear what is wrong; who asked is told.
            self.shared.forget(chunk)
            topic = blobs(agent)
        confirmed = await publish_while(
            lambda: delivery.live,
            self._publish,
            as_routing_key(topic),
            encode(blob),
            timeout_s=self._timeout_s,
        )
        if digest is not None and not confirmed:
            self.shared.forget(chunk)
        return confirmed

    async def _read(self, agent: str, get: Get) -> Blob:
        asked = Blob(want=get.want, path=get.path, offset=get.offset)
        if not _may_read(agent, get.path):
            # The same words as for a file that is not there: what others may read is
            # nobody's business.
            return _refusal(asked, "not_found", f"{get.path} is not in the registry")
        try:
            async with asyncio.timeout(self._read_s), self._reading:
                piece = await self._registry.read(get.path, get.offset, get.length)
        except NotThere as error:
            return _refusal(asked, "not_found", str(error))
        except TimeoutError:
            reason = f"the pool's readers took over {self._read_s:g} s: ask again"
            return _busy(asked, reason, RETRY_AFTER_S)
        except SourceUnavailable as error:
            log.warning("registry unreadable", path=get.path, reason=str(error))
            reason = f"the pool cannot read its registry: {error}"
            return _busy(asked, reason, error.retry_after_s or RETRY_AFTER_S)
        return _found(asked, piece, get.length)


def _may_read(agent: str, path: str) -> bool:
    return layout.is_public(path) or path == f"{layout.DESIRED}/{agent}"


def _shared_digest(get: Get) -> str | None:
    """The blob whose wave may hear the answer; None: the asker alone."""
    if not get.shared:
        return None
    folder, _, digest = get.path.partition("/")
    return digest if folder == layout.BLOBS and _is_digest(digest) else None


def _is_digest(text: str) -> bool:
    return len(text) == 64 and not set(text) - set("0123456789abcdef")


def _found(asked: Blob, piece: Piece, length: int) -> Blob:
    data = piece.data[:length]
    return asked.model_copy(update={"data": data, "total_bytes": piece.total_bytes})


def _refusal(asked: Blob, status: str, reason: str) -> Blob:
    return asked.model_copy(update={"status": status, "reason": reason[:1024]})


def _busy(asked: Blob, reason: str, retry_after_s: float) -> Blob:
    busy = _refusal(asked, "busy", reason)
    return busy.model_copy(update={"retry_after_s": retry_after_s})
