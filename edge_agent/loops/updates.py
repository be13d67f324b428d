"""Converge from what the slots hold to what the fleet desires. The active model serves on.

Look at what is desired, and take each model there step by step. Each goes its own way:
a pull that is stuck or a disk that fails blocks no other, and a newer desired state
replaces an older one at once.
"""

from __future__ import annotations

import asyncio
import random
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Final

import structlog

from broker.link import LinkDown
from broker.messages import DesiredModel, UpdatePolicy
from bundle.pack import BundleRejected
from bundle.seal import SealRejected
from bundle.source import Source, SourceUnavailable
from bundle.trust.errors import NotSigned, Untrusted
from edge_agent.adapters.model_store import ModelStore, StoredBundle
from edge_agent.adapters.trial import TrialFailed
from edge_agent.core.decisions import (
    Adopt,
    Decision,
    GoBack,
    Nothing,
    Pull,
    Refuse,
    Return,
    decide,
)
from edge_agent.core.fit import ModelRefused, PutOff
from edge_agent.core.slots import Slots, State
from edge_agent.loops.asking import PullInterrupted
from edge_agent.loops.desired import read_desired
from edge_agent.loops.installing import Installing
from edge_agent.loops.looks import Looks
from edge_agent.loops.probation import Probation
from edge_agent.loops.slot_book import SlotBook
from edge_agent.loops.update_ports import Here, Pulls, Shadows, Trust
from edge_agent.loops.vouching import Vouching

log = structlog.get_logger(__name__)

MAX_MODELS_AT_ONCE: Final = 4
# Nobody signs a desired state. An older generation that is told so long is no late
# message: the newer one was a lie, or the fleet has lost its state. Epochs keep their
# floor all the same.
LATE_S: Final = 600.0
# What says nothing of a version: it is tried again later. Metadata that is not what the
# keys signed is the source's fault, and another may come; a version that they do not
# name is refused.
WAITS: Final = (
    LinkDown,
    SourceUnavailable,
    PullInterrupted,
    PutOff,
    Untrusted,
    OSError,
)
REFUSALS: Final = (SealRejected, BundleRejected, ModelRefused, NotSigned, TrialFailed)


@dataclass(frozen=True, slots=True)
class UpdateSettings:
    """How the agent looks for updates.

    Attributes:
        poll_every_s: between two looks, give or take a fifth.
        spread_s: after an outage all agents look within so long, not at once.
        disk_reserve_bytes: that an update leaves free, for accepted requests.
    """

    poll_every_s: float
    spread_s: float = 0.0
    disk_reserve_bytes: int = 0


class Updates:
    """Keeps the models of one agent as desired.

    Args:
        sources: where the desired state is read.
        try_out: runs a stored bundle in a child process, perhaps beside the one that
            serves; raises TrialFailed.
    """

    def __init__(  # noqa: PLR0913 - wiring
        self,
        *,
        agent: str,
        sources: Sequence[Source],
        store: ModelStore,
        slots: SlotBook,
        trust: Trust,
        pulls: Pulls,
        probation: Probation,
        shadows: Shadows,
        here: Here,
        settings: UpdateSettings,
        try_out: Callable[
            [StoredBundle, StoredBundle | None, UpdatePolicy], Awaitable[object]
        ],
        rng: random.Random,
    ) -> None:
        self._agent = agent
        self._sources = sources
        self._store = store
        self._slots = slots
        self._probation = probation
        self._shadows = shadows
        self._looks = Looks(
            poll_every_s=settings.poll_every_s, spread_s=settings.spread_s, rng=rng
        )
        self._vouching = Vouching(trust, here)
        self._installing = Installing(
            store=store,
            slots=slots,
            vouching=self._vouching,
            pulls=pulls,
            probation=probation,
            shadows=shadows,
            try_out=try_out,
            disk_reserve_bytes=settings.disk_reserve_bytes,
            superseded=self._is_superseded,
        )
        self._desired: dict[str, DesiredModel] = {}
        # Since when an older generation is desired than the slots answer.
        self._late_since_s: dict[str, float] = {}
        self._busy: set[str] = set()
        self._at_once = asyncio.Semaphore(MAX_MODELS_AT_ONCE)

    @property
    def slots(self) -> Mapping[str, Slots]:
        """What is active, previous and staged, by model."""
        return self._slots.all

    @property
    def progress(self) -> Mapping[str, tuple[int, int]]:
        """Of the pulls under way: bytes that are here, and of all."""
        return self._installing.progress

    def look_now(self) -> None:
        """The desired state may have changed."""
        self._looks.now()

    def link_changed(self, up: bool) -> None:
        """Look when the pool can be asked again."""
        if up:
            self._looks.within_spread()

    async def run(self) -> None:
        """Converge whenever something may have changed, until cancelled."""
        await self._begin_anew()
        try:
            async with asyncio.TaskGroup() as models:
                while True:
                    await self._looks.next()
                    await self._look_for_updates(models)
        finally:
            self._looks.forget_timer()

    async def _look_for_updates(self, models: asyncio.TaskGroup) -> None:
        try:
            await self._learn_desired()
        except WAITS as error:
            self._looks.soon(error)
            log.info("update_waits", reason=str(error))
        for model in self._desired:
            # One that is under way sees for itself that it was replaced.
            if model not in self._busy:
                self._busy.add(model)
                models.create_task(self._bring(model))

    async def _begin_anew(self) -> None:
        # A run that failed may have left a pull or a trial that nobody would finish.
        self._busy.clear()
        for slots in list(self._slots.all.values()):
            self._slots.put(slots.interrupted())
            if slots.state is State.SHADOW and slots.staged is not None:
                await self._shadow_again(slots, slots.staged)

    async def _shadow_again(self, slots: Slots, version: str) -> None:
        try:
            stored = await asyncio.to_thread(self._store.bundle, slots.model, version)
            await self._shadows.start(stored)
        except (BundleRejected, OSError) as error:
            log.warning("shadow_not_restored", model=slots.model, reason=str(error))
            why = f"its shadow cannot be started again: {error}"
            self._slots.put(
                slots.waiting(why, version, slots.generation, slots.staged_epoch)
            )

    async def _learn_desired(self) -> None:
        desired = await read_desired(self._sources, self._agent)
        if desired is not None:
            self._desired = desired
            self._vouching.desired_anew()
            self._slots.forget_empty(keep=desired.keys() | self._busy)

    # --- one model ------------------------------------------------------------------

    async def _bring(self, model: str) -> None:
        """Go on until there is nothing left to do for what is desired of it by now."""
        try:
            async with self._at_once, self._slots.lock(model):
                again = True
                while again:
                    desired = self._desired.get(model)
                    again = await self._step(model)
                    # It may have changed while the step came to its end.
                    again |= self._desired.get(model) != desired
        except Exception as error:
            log.error("update_crashed", model=model, exc_info=error)
            self._looks.soon(error)
        finally:
            self._busy.discard(model)

    def _is_superseded(self, desired: DesiredModel) -> bool:
        return self._desired.get(desired.model) != desired

    async def _step(self, model: str) -> bool:
        """Do what is to be done next; False when that is nothing, for now."""
        desired = self._desired.get(model)
        slots = self._slots_now(model, desired)
        decision = decide(desired, slots)
        if desired is None or decision == Nothing():
            return False
        try:
            await self._do(desired, slots, decision)
        except NotSigned as error:
            await self._refuse(desired, _why_refused(desired, error), signed=False)
        except WAITS as error:
            # The other models go on; this one is looked at again soon.
            if self._is_superseded(desired):
                return True  # Something newer came in between.
            self._looks.soon(error)
            await self._say_it_waits(desired, str(error))
        except Exception as error:  # noqa: BLE001 - no bundle ends the agent
            await self._refuse(desired, _why_refused(desired, error))
        else:
            return True
        return False

    def _slots_now(self, model: str, desired: DesiredModel | None) -> Slots:
        """The slots to decide on; the lock is held."""
        slots = self._slots.of(model)
        if slots.state in (State.PULLING, State.TESTING):
            # The step before left off: nobody goes on with it.
            slots = slots.interrupted()
            self._slots.put(slots)
        if desired is not None and self._is_late_no_more(desired, slots):
            slots = slots.turned_back(desired.generation)
            self._slots.put(slots)
        return slots

    def _is_late_no_more(self, desired: DesiredModel, slots: Slots) -> bool:
        if desired.generation >= slots.generation:
            self._late_since_s.pop(slots.model, None)
            return False
        now_s = asyncio.get_running_loop().time()
        return now_s - self._late_since_s.setdefault(slots.model, now_s) >= LATE_S

    async def _do(
        self, desired: DesiredModel, slots: Slots, decision: Decision
    ) -> None:
        match decision:
            case Return(reason):
                await self._installing.make_way(desired, slots, reason)
            case Refuse(_, _, _, reason):
                await self._refuse(desired, reason)
            case Adopt(generation, epoch):
                await self._installing.adopt(desired, slots, generation, epoch)
            case GoBack():
                await self._installing.go_back(desired, slots)
            case Pull():
                await self._installing.pull(desired, slots)
            case Nothing():
                pass

    async def _say_it_waits(self, desired: DesiredModel, why: str) -> None:
        slots = self._slots.of(desired.model)
        log.info("update_waits", model=desired.model, reason=why)
        if slots.state is State.PROBATION:
            return
        if slots.state is State.SHADOW and slots.staged != desired.version:
            await self._shadows.stop(slots.model)
        waits = slots.waiting(why, desired.version, desired.generation, desired.epoch)
        # Not on the disk, which it may wait for: after a restart it is decided anew.
        self._slots.put(waits)

    async def _refuse(
        self, desired: DesiredModel, reason: str, *, signed: bool = True
    ) -> None:
        slots = self._slots.of(desired.model)
        if slots.state is State.PROBATION:
            log.error("update_refused", model=slots.model, reason=reason)
            return
        refused = slots.refused(
            reason, desired.version, desired.generation, desired.epoch
        )
        if not signed and slots.is_empty:
            # Whoever may publish a desired state can make up names without end: no
            # disk is spent on them.
            self._slots.put(refused)
            return
        try:
            await self._slots.save(refused)
        except OSError as error:
            # Nothing was taken, so the disk may as well not know: it is refused anew.
            log.error("slots_not_written", model=slots.model, error=str(error))
            self._slots.put(refused)
        await self._shadows.stop(desired.model)
        await self._slots.tidy(refused, refused=desired.version)


def _why_refused(desired: DesiredModel, error: Exception) -> str:
    model, version = desired.model, desired.version
    if isinstance(error, REFUSALS):
        log.error("update_refused", model=model, version=version, reason=str(error))
        return str(error)
    log.error("update_crashed", model=model, version=version, exc_info=error)
    return f"the agent failed on {model} {version}: {error!r}"
