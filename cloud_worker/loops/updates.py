"""Serve model updates from the registry: desired state, seals and chunks, as asked for."""

from __future__ import annotations

import asyncio
from concurrent.futures import ThreadPoolExecutor
from typing import Final

import structlog

from broker.codec import WireError, decode, encode
from broker.messages import Blob, Get
from broker.topics import as_routing_key, blobs, read_agent
from bundle.store import BundleStore, NotFound
from cloud_worker.loops.parcels import Delivery
from cloud_worker.loops.replies import Publish, publish_while

log = structlog.get_logger(__name__)

# Each chunk is 128 KiB: this bounds what many agents that pull at once can cost.
PREFETCH: Final = 16


class Updates:
    """The loop over `model.get`."""

    def __init__(
        self,
        store: BundleStore,
        publish: Publish,
        *,
        readers: ThreadPoolExecutor,
        timeout_s: float = 10.0,
    ) -> None:
        self._store = store
        self._publish = publish
        self._readers = readers
        self._timeout_s = timeout_s

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
        for get in envelope.items:
            blob = await asyncio.get_running_loop().run_in_executor(
                self._readers, self._read, agent, get
            )
            confirmed = await publish_while(
                lambda: delivery.live,
                self._publish,
                as_routing_key(blobs(agent)),
                encode(blob),
                timeout_s=self._timeout_s,
            )
            if not confirmed:
                return
        delivery.ack()

    def _read(self, agent: str, get: Get) -> Blob:
        asked = Blob(
            want=get.want, model=get.model, version=get.version, index=get.index
        )
        try:
            data = self._data(agent, get)
        except NotFound as error:
            return asked.model_copy(
                update={"status": "not_found", "reason": str(error)[:1024]}
            )
        except OSError as error:
            log.exception("registry unreadable", want=get.want, model=get.model)
            return asked.model_copy(
                update={
                    "status": "failed",
                    "reason": f"the pool cannot read its registry: {error.strerror}",
                }
            )
        return asked.model_copy(update={"data": data})

    def _data(self, agent: str, get: Get) -> bytes:
        """Read what is asked for.

        Raises:
            NotFound: there is no such thing.
        """
        if get.want == "desired":
            desired = self._store.read_desired(agent)
            if desired is None:
                raise NotFound(f"nothing is desired of agent {agent!r}")
            return desired
        if get.model is None or get.version is None:
            raise NotFound(f"a get of a {get.want} names a model and a version")
        if get.want == "seal":
            return self._store.read_seal(get.model, get.version)
        return self._store.read_chunk(get.model, get.version, get.index)
