"""Devices: they offer requests under ids of their own and write down what they hear.

A device sends an id again until it hears `accepted` or an answer, as a real one does.
Once accepted it is silent, unless it loses its broker: the answer must come by itself.
"""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import msgpack
import numpy as np

from broker.backoff import Backoff
from broker.link import LinkDown
from broker.mqtt.link import MqttLink
from broker.mqtt.target import MqttTarget
from tests.faults.history import History

COPY_BYTES = 1024
POISON = 666.0


@dataclass(frozen=True, slots=True)
class Kind:
    """What a device asks for, and what must come back for it.

    Attributes:
        model: asked.
        local: whether the edge answers it; then its gaps are measured.
        columns: of the float32 rows of `fragile` (y = 2x); None for `copy`.
        deadline_s: None for the agent's default.
        priority: the class; None for the usual.
    """

    model: str
    local: bool = False
    columns: int | None = None
    deadline_s: float | None = None
    priority: str | None = None

    def body(self, id_: str, *, poison: bool = False) -> dict[str, Any]:
        """The request, made from its id alone."""
        if self.columns is None:
            name, shape, data = "payload", [1, COPY_BYTES], _bytes_of(id_)
            tensor = {"dtype": "uint8", "shape": shape, "data": data}
        else:
            row = np.full((1, self.columns), POISON if poison else _number_of(id_))
            data = row.astype("<f4").tobytes()
            name, tensor = (
                "x",
                {"dtype": "float32", "shape": [*row.shape], "data": data},
            )
        body: dict[str, Any] = {"id": id_, "inputs": {name: tensor}}
        if self.deadline_s is not None:
            body["deadline_ms"] = self.deadline_s * 1000.0
        if self.priority is not None:
            body["class"] = self.priority
        return body

    def expected(self, id_: str) -> str:
        """The digest of the only right answer."""
        if self.columns is None:
            return digest(_bytes_of(id_))
        row = np.full((1, self.columns), 2.0 * _number_of(id_))
        return digest(row.astype("<f4").tobytes())


SPILLED = Kind("copy")
LOCAL = Kind("near", local=True)
FRAGILE = Kind("fragile", columns=4)


def digest(data: bytes) -> str:
    """What an answer's content is compared by."""
    return hashlib.sha256(data).hexdigest()[:16]


def _bytes_of(id_: str) -> bytes:
    return hashlib.shake_128(id_.encode()).digest(COPY_BYTES)


def _number_of(id_: str) -> float:
    # Whole, so that doubling it in float32 is exact; over all that `fragile` minds.
    return 1000.0 + int.from_bytes(_bytes_of(id_)[:2], "little") % 1000


@dataclass(slots=True)
class _Open:
    body: bytes
    model: str
    sent_s: float
    accepted: bool = False


class Device:
    """One device at the local broker.

    Args:
        url: of the local broker.
        name: its id.
        folder: of the run's histories.
        run: starts each of its ids, so that no two runs share one.
        resend_s: without any reply for so long, an id is sent again.
        window: requests that may be without a final answer; further ones wait.
        persistent: whether the broker keeps its answers while it is away.
    """

    def __init__(
        self,
        url: str,
        name: str,
        folder: Path,
        *,
        run: str = "r",
        resend_s: float = 1.0,
        window: int = 1000,
        persistent: bool = True,
    ) -> None:
        self.name = name
        self.run = run
        self.resend_s = resend_s
        self.history = History(folder, f"device:{name}")
        self.open: dict[str, _Open] = {}
        self.ended: dict[str, str] = {}
        self.offered = 0
        self.heard_accepted: set[str] = set()
        # Which versions of models have answered.
        self.versions: set[str] = set()
        self._room = asyncio.Semaphore(window)
        self._window = window
        self.link = MqttLink(
            MqttTarget.from_url(url),
            client_id=f"device-{name}",
            subscriptions=[f"answer/{name}"],
            on_message=self._heard,
            on_change=self._changed,
            backoff=Backoff(0.05, 0.3),
            persistent=persistent,
            window=100,
        )

    async def offer(
        self, kind: Kind = SPILLED, *, id_: str | None = None, poison: bool = False
    ) -> str:
        """Send one request as soon as the window has room; gives its id."""
        await self._room.acquire()
        if id_ is None:
            id_ = f"{self.run}-{self.name}-{self.offered:06d}"
        self.offered += 1
        body = msgpack.packb(kind.body(id_, poison=poison))
        now = asyncio.get_running_loop().time()
        self.open[id_] = _Open(body, kind.model, now)
        expects: dict[str, Any] = {"local": True} if kind.local else {}
        if not poison:
            expects["digest"] = kind.expected(id_)
        self.history.note("offered", self.name, id_, json.dumps(expects))
        await self.send(id_)
        return id_

    async def offer_many(
        self, count: int, kind: Kind = SPILLED, *, rate: float | None = None
    ) -> list[str]:
        """Send so many, `rate` a second; without a rate as fast as it goes."""
        ids = []
        for _ in range(count):
            ids.append(await self.offer(kind))
            await asyncio.sleep(0 if rate is None else 1.0 / rate)
        return ids

    async def send(self, id_: str) -> None:
        """Publish an id that is open, once more if it was before."""
        asked = self.open.get(id_)
        if asked is None:
            return
        asked.sent_s = asyncio.get_running_loop().time()
        with contextlib.suppress(LinkDown):  # then it is sent again when it is time
            await self.link.publish(
                f"infer/{self.name}/{asked.model}", asked.body, timeout_s=5.0
            )

    async def send_again(self, id_: str, kind: Kind) -> None:
        """Publish an id whatever has become of it, as a device that forgot does."""
        body = msgpack.packb(kind.body(id_))
        await self.link.publish(f"infer/{self.name}/{kind.model}", body)

    async def resend_all(self) -> None:
        """Send all that has no answer, accepted or not, as after a loss of session."""
        for id_ in list(self.open):
            await self.send(id_)

    async def run_for_ever(self) -> None:
        """Keep the link, and send again what had no reply; until cancelled."""
        async with asyncio.TaskGroup() as tasks:
            tasks.create_task(self.link.run())
            tasks.create_task(self._resend())

    async def _resend(self) -> None:
        while True:
            await asyncio.sleep(self.resend_s / 4)
            late = asyncio.get_running_loop().time() - self.resend_s
            for id_, asked in list(self.open.items()):
                if not asked.accepted and asked.sent_s < late:
                    await self.send(id_)

    def _changed(self, up: bool) -> None:
        """A broker that was gone may have lost what was on its way: ask again."""
        for asked in self.open.values() if up else ():
            asked.accepted = False

    def _heard(self, _topic: str, payload: bytes) -> None:
        answer = msgpack.unpackb(payload)
        id_, status, final = answer["id"], answer["status"], answer["final"]
        heard = {"status": status, "source": answer["source"], "final": final}
        for output in (answer.get("outputs") or {}).values():
            heard["digest"] = digest(output["data"])
        self.history.note("heard", self.name, id_ or "", json.dumps(heard))
        if (version := answer.get("version")) is not None:
            self.versions.add(version)
        asked = self.open.get(id_)
        if status == "accepted":
            self.heard_accepted.add(id_)
            if asked is not None:
                asked.accepted = True
        elif status != "refused" and asked is not None:
            del self.open[id_]
            self.ended[id_] = status
            self._room.release()
