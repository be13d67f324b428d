"""Converge from what the slots hold to what the fleet desires. The active model serves on.

Look at what is desired, learn who has signed it, check that it may be taken here and
now, pull, verify, try in a child process, and let it serve on probation or beside the
active one. Each model goes its own way: a pull that is stuck blocks no other, and a
newer desired state replaces an older one at once.
"""

from __future__ import annotations

import asyncio
import functools
import random
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Final

import structlog

from broker.link import LinkDown
from broker.messages import DesiredModel, UpdatePolicy
from bundle.pack import BundleRejected
from bundle.seal import Seal, SealRejected
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
from edge_agent.core.fit import ModelRefused, PutOff, check_fits, put_off_until
from edge_agent.core.slots import Slots, State
from edge_agent.loops.asking import PullInterrupted
from edge_agent.loops.desired import read_desired
from edge_agent.loops.probation import Probation
from edge_agent.loops.slot_book import SlotBook
from edge_agent.loops.update_ports import Here, Pulls, Shadows, Trust

log = structlog.get_logger(__name__)

RETRY_S: Final = 5.0
MAX_MODELS_AT_ONCE: Final = 4
# Nobody signs a desired state. An older generation that is told so long is no late
# message: the newer one was a lie, or the fleet has lost its state. Epochs keep their
# floor all the same.
LATE_S: Final = 600.0
# The packed bundle, the unpacked one, and room to breathe.
SPACE_FACTOR: Final = 3
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
        self._trust = trust
        self._pulls = pulls
        self._probation = probation
        self._shadows = shadows
        self._here = here
        self._settings = settings
        self._try_out = try_out
        self._rng = rng
        self._desired: dict[str, DesiredModel] = {}
        # Since when an older generation is desired than the slots answer.
        self._late_since_s: dict[str, float] = {}
        # Of the pulls under way: bytes that are here, and of all.
        self.progress: dict[str, tuple[int, int]] = {}
        self._busy: set[str] = set()
        self._at_once = asyncio.Semaphore(MAX_MODELS_AT_ONCE)
        self._trusting = asyncio.Lock()
        # Whether trust is newer than what is desired: it is refreshed once a look.
        self._refreshed = False
        self._look = asyncio.Event()
        self._again: asyncio.TimerHandle | None = None

    @property
    def slots(self) -> Mapping[str, Slots]:
        """What is active, previous and staged, by model."""
        return self._slots.all

    def look_now(self) -> None:
        """The desired state may have changed."""
        self._look.set()

    def link_changed(self, up: bool) -> None:
        """Look when the pool can be asked again; a thousand agents not all at once."""
        if up:
            delay_s = self._rng.uniform(0.0, self._settings.spread_s)
            asyncio.get_running_loop().call_later(delay_s, self._look.set)

    async def run(self) -> None:
        """Converge whenever something may have changed, until cancelled."""
        await self._begin_anew()
        try:
            async with asyncio.TaskGroup() as models:
                while True:
                    await self._wait()
                    await self._look_for_updates(models)
        finally:
            self._forget_timer()

    async def _look_for_updates(self, models: asyncio.TaskGroup) -> None:
        try:
            await self._learn_desired()
        except WAITS as error:
            self._put_off(error)
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

    async def _wait(self) -> None:
        every_s = self._settings.poll_every_s * self._rng.uniform(0.8, 1.2)
        try:
            async with asyncio.timeout(every_s):
                await self._look.wait()
        except TimeoutError:
            pass
        self._look.clear()
        self._forget_timer()

    def _put_off(self, error: BaseException) -> None:
        """Look again soon: whoever waits for the next look has begun to already."""
        asked_s = getattr(error, "retry_after_s", None) or RETRY_S
        # Other models may be desired before a budget is full again.
        wait_s = min(self._settings.poll_every_s, max(RETRY_S, asked_s))
        loop = asyncio.get_running_loop()
        at_s = loop.time() + wait_s * self._rng.uniform(0.8, 1.2)
        if self._again is not None:
            at_s = min(at_s, self._again.when())
        self._forget_timer()
        self._again = loop.call_at(at_s, self._look.set)

    def _forget_timer(self) -> None:
        if self._again is not None:
            self._again.cancel()
            self._again = None

    async def _learn_desired(self) -> None:
        desired = await read_desired(self._sources, self._agent)
        if desired is not None:
            self._desired = desired
            self._refreshed = False
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
        finally:
            self._busy.discard(model)

    async def _step(self, model: str) -> bool:
        """Do what is to be done next; False when that is nothing, for now."""
        desired = self._desired.get(model)
        slots = self._slots_now(model, desired)
        decision = decide(desired, slots)
        if desired is None or decision == Nothing():
            return False
        try:
            return await self._do(desired, slots, decision)
        except NotSigned as error:
            await self._refuse(desired, _why_refused(desired, error), signed=False)
        except WAITS as error:
            # The other models go on; this one is looked at again soon.
            if self._desired.get(model) != desired:
                return True  # Something newer came in between.
            self._put_off(error)
            await self._say_it_waits(desired, str(error))
        except Exception as error:  # noqa: BLE001 - no bundle ends the agent
            await self._refuse(desired, _why_refused(desired, error))
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
    ) -> bool:
        match decision:
            case Return(reason):
                return await self._probation.give_up(slots, reason)
            case Refuse(_, _, _, reason):
                await self._refuse(desired, reason)
            case Adopt(generation, epoch):
                await self._adopt(desired, slots, generation, epoch)
            case GoBack():
                return await self._go_back(desired, slots)
            case Pull():
                await self._pull(desired, slots)
            case Nothing():
                return False
        return True

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
        except OSError:
            self._slots.put(refused)
        await self._shadows.stop(desired.model)
        await asyncio.to_thread(self._store.collect, refused)
        await asyncio.to_thread(self._store.drop_parts, slots.model, desired.version)

    async def _seal(self, desired: DesiredModel) -> Seal:
        """What was signed of the desired version, if it may be taken here."""
        async with self._trusting:
            if not self._refreshed:
                # Said before: what is desired in the meantime may be signed since.
                self._refreshed = True
                try:
                    await self._trust.refresh()
                except BaseException:
                    self._refreshed = False
                    raise
            seal = await self._trust.seal_for(
                desired.model, desired.version, desired.epoch
            )
        signed = (seal.name, seal.version, seal.epoch)
        if signed != (desired.model, desired.version, desired.epoch):
            raise SealRejected(
                f"asked for {desired.model} {desired.version} in epoch {desired.epoch}, "
                f"sealed is {seal.name} {seal.version} in epoch {seal.epoch}"
            )
        name = f"{seal.name} {seal.version}"
        check_fits(name, seal.requires, self._here.device())
        return seal

    def _check_time(self, desired: DesiredModel) -> None:
        why = put_off_until(desired.policy.window, self._here.local_now())
        if why is not None:
            raise PutOff(why)

    async def _adopt(
        self, desired: DesiredModel, slots: Slots, generation: int, epoch: int
    ) -> None:
        if epoch != slots.epoch:
            # An epoch raises the floor: only one that was signed, of these very bytes.
            seal = await self._seal(desired)
            if await asyncio.to_thread(self._store.holds, seal) is None:
                raise ModelRefused(
                    f"{slots.model} {seal.version} serves, but what was signed for "
                    f"epoch {epoch} under that name is something else"
                )
        if slots.state is State.SHADOW:
            await self._shadows.stop(slots.model)
        adopted = slots.adopted(generation, epoch, desired.policy)
        await self._slots.save(adopted)
        await asyncio.to_thread(self._store.collect, adopted)

    async def _go_back(self, desired: DesiredModel, slots: Slots) -> bool:
        """Serve the previous version: signed anew, and on the disk already.

        Returns:
            False when all stays as it is: it cannot serve.
        """
        seal = await self._seal(desired)
        self._check_time(desired)
        stored = await asyncio.to_thread(self._store.holds, seal)
        if stored is None:
            # Damaged, or another bundle under that name: it comes like any other.
            if slots.state is State.PROBATION:
                return await self._probation.give_up(
                    slots, "another version is desired"
                )
            await self._slots.save(slots.without_previous())
            return True
        await self._try_out(stored, None, desired.policy)
        await self._probation.serve(stored)
        await self._shadows.stop(slots.model)
        after = slots.went_back(desired.generation, desired.epoch)
        await self._slots.save(after)
        await asyncio.to_thread(self._store.collect, after)
        log.info("update_went_back", model=slots.model, version=desired.version)
        return True

    async def _pull(self, desired: DesiredModel, slots: Slots) -> None:
        seal = await self._seal(desired)
        self._check_time(desired)
        if slots.state is State.SHADOW and slots.staged != desired.version:
            await self._shadows.stop(slots.model)
        slots = slots.pulling(desired.version, desired.generation, desired.epoch)
        # Pulls and trials do not outlive the process, so flash is spared the word of them.
        self._slots.put(slots)
        log.info("update_begins", model=slots.model, version=desired.version)
        stored = await asyncio.to_thread(self._store.holds, seal)
        if stored is None:
            # Of a version that was wanted before this one, the rest never comes.
            await asyncio.to_thread(self._store.keep_parts, seal)
            slots = await self._make_room(slots, seal)
            stored = await self._fetch(desired, slots, seal)
            # It may have taken hours.
            self._check_time(desired)
        slots = slots.pulled()
        self._slots.put(slots)
        await self._try_out(stored, await self._active(slots), desired.policy)
        await self._shadows.stop(slots.model)
        if desired.shadow:
            await self._slots.save(slots.shadowed())
            await self._shadows.start(stored)
        else:
            await self._probation.begin(slots, stored, desired.policy)

    async def _active(self, slots: Slots) -> StoredBundle | None:
        """What the candidate's latency is compared with."""
        if slots.active is None:
            return None
        try:
            return await asyncio.to_thread(
                self._store.bundle, slots.model, slots.active
            )
        except BundleRejected:
            return None

    async def _make_room(self, slots: Slots, seal: Seal) -> Slots:
        """See that the disk can take it; what nobody needs any more goes first."""
        await asyncio.to_thread(self._store.collect, slots)
        need = SPACE_FACTOR * seal.size_bytes + self._settings.disk_reserve_bytes
        if await asyncio.to_thread(self._store.free_bytes) >= need:
            return slots
        if slots.previous is not None:
            slots = slots.without_previous()
            await self._slots.save(slots)
            await asyncio.to_thread(self._store.collect, slots)
        free = await asyncio.to_thread(self._store.free_bytes)
        if free < need:
            raise PutOff(
                f"the disk has {free} bytes free; {seal.name} {seal.version} needs "
                f"{need}: make room"
            )
        return slots

    async def _fetch(
        self, desired: DesiredModel, slots: Slots, seal: Seal
    ) -> StoredBundle:
        base = await asyncio.to_thread(self._store.repacked, slots.model, slots.active)
        try:
            packed = await self._pulls.pull(
                seal,
                base,
                policy=desired.policy,
                superseded=lambda: self._desired.get(desired.model) != desired,
                progress=functools.partial(self._came, desired.model),
            )
        finally:
            self.progress.pop(desired.model, None)
            if base is not None:
                await asyncio.to_thread(base.unlink, missing_ok=True)
        stored = await asyncio.to_thread(self._store.install, packed, seal)
        await asyncio.to_thread(packed.unlink, missing_ok=True)
        return stored

    def _came(self, model: str, done: int, total: int) -> None:
        self.progress[model] = (done, total)


def _why_refused(desired: DesiredModel, error: Exception) -> str:
    model, version = desired.model, desired.version
    if isinstance(error, REFUSALS):
        log.error("update_refused", model=model, version=version, reason=str(error))
        return str(error)
    log.error("update_crashed", model=model, version=version, exc_info=error)
    return f"the agent failed on {model} {version}: {error!r}"
