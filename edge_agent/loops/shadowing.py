"""Candidates run beside the active versions, see the same requests, and only report.

No answer waits for a shadow: what does not fit in its short queue is dropped and
counted. A shadow is judged by how often it agrees with the cloud, where the cloud was
asked anyway, and with the version that serves.
"""

from __future__ import annotations

import asyncio
from collections import OrderedDict
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Final, TypeVar

import structlog

from broker.backoff import Backoff
from broker.messages import Medium, Reason, Tensor
from edge_agent.adapters.model_store import StoredBundle
from edge_agent.adapters.shadow import ShadowEnded, ShadowProcess, Shown
from edge_agent.core.accounts import Accounts
from edge_agent.core.answers import Answer, Source
from edge_agent.core.arrays import NotAnArray
from edge_agent.core.delivery import Ending, Spill
from edge_agent.core.health import Account
from edge_agent.core.payload import DeviceRequest, to_wire_inputs
from edge_agent.core.slots import Slots, State
from edge_agent.loops.slot_book import SlotBook

log = structlog.get_logger(__name__)

QUEUE: Final = 16
MAX_INPUT_BYTES: Final = 2 * 1024 * 1024
# The cloud's answer may come before the shadow's, or long after.
REMEMBERED: Final = 2048
MAX_ENDS: Final = 3

_Key = tuple[str, str | None]
T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class _Asked:
    key: _Key
    label: str | None
    tensors: dict[str, Tensor] | None
    medium: Medium | None


@dataclass(slots=True)
class _Shadow:
    """One candidate, what waits for it, and what is known of recent requests."""

    stored: StoredBundle
    account: Account
    waiting: asyncio.Queue[_Asked] = field(default_factory=lambda: asyncio.Queue(QUEUE))
    said: OrderedDict[_Key, str | None] = field(default_factory=OrderedDict)
    cloud: OrderedDict[_Key, tuple[str, bool]] = field(default_factory=OrderedDict)
    dropped: int = 0


class Shadowing:
    """Runs the candidates of one agent.

    Args:
        slots: of its models: a candidate that ends too often is refused there.
        accounts: where a candidate's health is counted.
        threads: for a candidate's kernels.
        memory_mb: how much memory a candidate may map.
        now_s: the agent's clock.
    """

    def __init__(
        self,
        *,
        slots: SlotBook,
        accounts: Accounts,
        threads: int,
        memory_mb: int,
        now_s: Callable[[], float],
    ) -> None:
        self._slots = slots
        self._accounts = accounts
        self._threads = threads
        self._memory_mb = memory_mb
        self._now_s = now_s
        self._shadows: dict[str, _Shadow] = {}
        self._changed = asyncio.Event()

    async def start(self, stored: StoredBundle) -> None:
        """Run one; it replaces the model's last."""
        name, version = stored.manifest.name, stored.manifest.version
        account = self._accounts.begin(name, version, self._now_s())
        self._shadows[name] = _Shadow(stored, account)
        self._changed.set()
        log.info("shadow_begins", model=name, version=version)

    async def stop(self, model: str) -> None:
        """End a model's, if there is one."""
        if self._shadows.pop(model, None) is not None:
            self._changed.set()

    @property
    def dropped(self) -> int:
        """Requests that the shadows of now had no time for."""
        return sum(each.dropped for each in self._shadows.values())

    def offer(self, request: DeviceRequest, answer: Answer) -> None:
        """A request that the active version has answered; never waits."""
        shadow = self._shadows.get(request.model)
        if shadow is None:
            return
        if shadow.waiting.full() or request.payload_bytes > MAX_INPUT_BYTES:
            shadow.dropped += 1
            return
        try:
            tensors, medium = to_wire_inputs(request)
        except NotAnArray:
            return
        key = (answer.device, answer.id)
        shadow.waiting.put_nowait(_Asked(key, answer.label, tensors, medium))

    def ended(self, spill: Spill, ending: Ending) -> None:
        """The cloud has spoken of a request: perhaps of one that the shadow saw."""
        shadow, edge = self._shadows.get(spill.model), spill.edge
        label = ending.answer.label
        if shadow is None or edge is None or label is None:
            return
        if ending.answer.source is not Source.CLOUD:
            return
        key, chosen = (edge.device, edge.id), spill.reason is Reason.AUDIT
        if key in shadow.said:
            _compare(shadow, shadow.said.pop(key), label, chosen=chosen)
        else:
            _remember(shadow.cloud, key, (label, chosen))

    async def run(self) -> None:
        """Keep what is wanted running, until cancelled."""
        running: dict[str, tuple[_Shadow, asyncio.Task[None]]] = {}
        async with asyncio.TaskGroup() as tasks:
            while True:
                for model, (shadow, task) in list(running.items()):
                    if self._shadows.get(model) is not shadow:
                        task.cancel()
                        del running[model]
                for model, shadow in self._shadows.items():
                    if model not in running:
                        task = tasks.create_task(self._keep(model, shadow))
                        running[model] = (shadow, task)
                self._changed.clear()
                await self._changed.wait()

    async def _keep(self, model: str, shadow: _Shadow) -> None:
        pauses, ends = Backoff(1.0, 30.0), 0
        while True:
            try:
                await self._show(shadow)
            except (ShadowEnded, OSError) as error:
                ends += 1
                shadow.account.errors += 1
                log.warning("shadow_ended", model=model, reason=str(error))
                if ends >= MAX_ENDS:
                    await self._refuse(model, shadow, str(error))
                    return
            await asyncio.sleep(pauses.next_s())

    async def _show(self, shadow: _Shadow) -> None:
        """Put requests to the candidate, one at a time, as long as it lives."""
        async with ShadowProcess(
            shadow.stored.folder, threads=self._threads, memory_mb=self._memory_mb
        ) as process:
            while True:
                asked = await shadow.waiting.get()
                _count(shadow, asked, await process.answer(asked.tensors, asked.medium))

    async def _refuse(self, model: str, shadow: _Shadow, why: str) -> None:
        async with self._slots.lock(model):
            if self._shadows.get(model) is not shadow:
                return
            slots = self._slots.of(model)
            if slots.state is State.SHADOW:
                reason = f"its shadow ended {MAX_ENDS} times, the last time: {why}"
                await self._note(slots.refused(reason))
            # Last: what runs the shadows ends this task then.
            del self._shadows[model]
            self._changed.set()

    async def _note(self, slots: Slots) -> None:
        try:
            await self._slots.save(slots)
        except OSError as error:
            # The other models' shadows run on; after a restart this is found anew.
            log.error("slots_not_written", model=slots.model, error=str(error))
            self._slots.put(slots)


def _count(shadow: _Shadow, asked: _Asked, shown: Shown) -> None:
    account = shadow.account
    account.requests += 1
    if shown.failed is not None:
        account.errors += 1
        return
    account.ran(shown.ms)
    if asked.label is not None and shown.label is not None:
        account.beside(agrees=asked.label == shown.label)
    if asked.key in shadow.cloud:
        label, chosen = shadow.cloud.pop(asked.key)
        _compare(shadow, shown.label, label, chosen=chosen)
    else:
        _remember(shadow.said, asked.key, shown.label)


def _compare(shadow: _Shadow, said: str | None, cloud: str, *, chosen: bool) -> None:
    if said is not None:
        shadow.account.heard(agrees=said == cloud, chosen=chosen)


def _remember(known: OrderedDict[_Key, T], key: _Key, what: T) -> None:
    known[key] = what
    while len(known) > REMEMBERED:
        known.popitem(last=False)
