"""A new version serves on probation: it is committed, or the one before serves again.

Nothing here needs the cloud or a person. The disk knows of the probation before the
model is in this process, and each start is counted there first: a version that ends
the process returns by itself, and a power cut never commits one.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from typing import Final

import structlog

from broker.messages import UpdatePolicy
from bundle.pack import BundleRejected
from edge_agent.adapters.model_store import ModelStore, StoredBundle
from edge_agent.core.accounts import Accounts
from edge_agent.core.fit import ModelRefused
from edge_agent.core.health import Account, BadHealth
from edge_agent.core.probation import Commit, GiveUp, judge_probation
from edge_agent.core.served import Served
from edge_agent.core.slots import Slots, State
from edge_agent.loops.slot_book import SlotBook

log = structlog.get_logger(__name__)

LOOK_EVERY_S: Final = 0.5
SAVE_EVERY_S: Final = 30.0
# A disk may fail to read once and not be damaged.
MAX_TRIES_BACK: Final = 3
WAY_BACK_DAMAGED: Final = (BundleRejected, ModelRefused, OSError)


class Probation:
    """Watches what is on probation.

    Args:
        slots: of the agent's models.
        store: of its bundles.
        accounts: of what its versions do.
        load: makes a bundle ready to serve in this process.
        swap: puts it in service.
        remove: takes a model out of service that has no version to return to.
        now_s: the agent's clock, which never goes back.
    """

    def __init__(  # noqa: PLR0913 - wiring
        self,
        *,
        slots: SlotBook,
        store: ModelStore,
        accounts: Accounts,
        load: Callable[[StoredBundle], Awaitable[Served]],
        swap: Callable[[Served], Awaitable[None]],
        remove: Callable[[str], Awaitable[None]],
        now_s: Callable[[], float],
    ) -> None:
        self._slots = slots
        self._store = store
        self._accounts = accounts
        self._load = load
        self._swap = swap
        self._remove = remove
        self._now_s = now_s
        self._saved_s: dict[str, float] = {}
        self._unsaved: set[str] = set()
        # How often in a row the way back of a version that failed could not be loaded.
        self._tries_back: dict[str, int] = {}
        # What went wrong with a model when it was last looked at.
        self._faults: dict[str, str] = {}

    async def begin(
        self,
        slots: Slots,
        stored: StoredBundle,
        policy: UpdatePolicy,
        *,
        way_back: bool = False,
    ) -> None:
        """Put the staged version in service; the caller holds the model's lock.

        Args:
            slots: of its model; it has passed its trial.
            stored: the version.
            policy: says when it is proved.
            way_back: its epoch was signed as the way back from the one before.

        Raises:
            OSError: the disk does not take it; the active version serves on.
        """
        # An earlier probation that was ended by a wish may have left its counts there.
        await asyncio.to_thread(self._store.forget_account, slots.model)
        self._saved_s.pop(slots.model, None)
        self._tries_back.pop(slots.model, None)
        # Before the model is in this process: whatever it does here is counted.
        slots = slots.passed(policy, way_back=way_back)
        await self._slots.save(slots)
        version = stored.manifest.version
        if slots.previous is not None:
            self._accounts.ensure(slots.model, slots.previous, self._now_s())
        self._accounts.begin(slots.model, version, self._now_s())
        try:
            served = await self._load(stored)
        except Exception as error:  # noqa: BLE001 - no bundle ends the agent
            # The version before has not left its place.
            log.error("model_not_loaded", model=slots.model, reason=str(error))
            await self._note(slots.returned(f"it does not load: {error}"))
            return
        await self._swap(served)
        log.info("update_serves", model=slots.model, version=version)
        await self._judge(slots)

    async def serve(self, stored: StoredBundle, slots: Slots) -> None:
        """Put a version in service again that was committed before.

        Args:
            stored: the version.
            slots: as they are then.

        Raises:
            OSError: the disk does not take them; what serves has not changed.
        """
        served = await self._load(stored)
        try:
            await self._slots.save(slots)
        except OSError:
            await served.runner.close()
            raise
        self._accounts.begin(slots.model, stored.manifest.version, self._now_s())
        await self._swap(served)

    async def run(self) -> None:
        """Look at every probation, until cancelled."""
        while True:
            await asyncio.sleep(LOOK_EVERY_S)
            for slots in list(self._slots.all.values()):
                if slots.state is State.PROBATION or slots.model in self._unsaved:
                    await self._look_safely(slots.model)

    async def _look_safely(self, model: str) -> None:
        """One model's fault is not the others': it is told once and looked at again."""
        try:
            await self.look(model)
        except Exception as error:
            if self._faults.get(model) != repr(error):
                log.error("probation_not_judged", model=model, exc_info=error)
            self._faults[model] = repr(error)
        else:
            self._faults.pop(model, None)

    async def look(self, model: str) -> None:
        """Judge a model's probation now, if it is on one."""
        async with self._slots.lock(model):
            slots = self._slots.of(model)
            if model in self._unsaved:
                await self._note(slots)
            if slots.state is State.PROBATION:
                await self._judge(slots)

    async def _judge(self, slots: Slots) -> None:
        now_s = self._now_s()
        account = self._accounts.ensure(slots.model, slots.active or "", now_s)
        found = judge_probation(
            slots.policy or UpdatePolicy(),
            account,
            self._accounts.of(slots.model, slots.previous),
            now_s - account.began_s,
        )
        match found:
            case Commit():
                await self._commit(slots)
            case GiveUp(reason):
                await self._give_up(slots, reason)
            case _:
                await self._save_accounts(slots, now_s)

    async def _commit(self, slots: Slots) -> None:
        try:
            await self._slots.save(slots.committed())
        except OSError as error:
            # It stays on probation: nothing is committed that is not written down.
            log.warning("commit_waits", model=slots.model, reason=str(error))
            return
        log.info("update_done", model=slots.model, version=slots.active)
        await self._tidy(slots.model)

    async def _give_up(self, slots: Slots, reason: str) -> None:
        """It failed: the version before serves again, or none when there is none."""
        before = None
        if slots.previous is not None:
            try:
                before = await self._load_previous(slots)
            except WAY_BACK_DAMAGED as error:
                tries = self._tries_back.get(slots.model, 0) + 1
                self._tries_back[slots.model] = tries
                if tries < MAX_TRIES_BACK:
                    return
                # What is known to be bad answers nobody: the cloud is asked instead,
                # and whatever is desired next may come.
                reason = (
                    f"{reason}; and {slots.previous}, which served before, cannot "
                    f"serve: {error}"
                )
        self._tries_back.pop(slots.model, None)
        log.error(
            "update_returns",
            model=slots.model,
            version=slots.active,
            to=None if before is None else slots.previous,
            reason=reason,
        )
        if before is None:
            await self._remove(slots.model)
        else:
            await self._swap(before)
        await self._note(slots.returned(reason, to_none=before is None))

    async def leave(self, slots: Slots, reason: str) -> None:
        """End a probation for a newer wish; the caller holds the model's lock.

        The version before serves again. When there is none that can, the one that was on
        probation serves until the newer one is there: nothing was found against it.
        """
        try:
            before = await self._load_previous(slots)
        except WAY_BACK_DAMAGED as error:
            why = f"{reason}; it serves until then, as nothing can be returned to"
            log.error("probation_left", model=slots.model, reason=f"{why}: {error}")
            await self._note(slots.stranded(f"{why}: {error}"))
            return
        log.info("probation_left", model=slots.model, reason=reason)
        await self._swap(before)
        await self._note(slots.returned(reason))

    async def _load_previous(self, slots: Slots) -> Served:
        """The way back, ready to serve.

        Raises:
            BundleRejected, ModelRefused, OSError: it cannot serve, or there is none.
        """
        if slots.previous is None:
            raise BundleRejected("no version served before")
        try:
            stored = await asyncio.to_thread(
                self._store.bundle, slots.model, slots.previous
            )
            return await self._load(stored)
        except WAY_BACK_DAMAGED as error:
            log.error(
                "way_back_is_damaged",
                model=slots.model,
                version=slots.previous,
                reason=str(error),
            )
            raise

    async def _note(self, slots: Slots) -> None:
        """What serves has changed already: the disk may follow when it can."""
        try:
            await asyncio.to_thread(self._store.save, slots)
        except OSError as error:
            if slots.model not in self._unsaved:
                log.error("slots_not_written", model=slots.model, error=str(error))
            self._unsaved.add(slots.model)
            if self._slots.of(slots.model) != slots:
                self._slots.put(slots)
            return
        self._unsaved.discard(slots.model)
        self._slots.put(slots)
        await self._tidy(slots.model)

    async def _tidy(self, model: str) -> None:
        slots = self._slots.of(model)
        self._accounts.keep(model, {slots.active, slots.previous, slots.staged})
        await asyncio.to_thread(self._store.forget_account, model)
        await self._slots.tidy(slots)

    # --- over restarts --------------------------------------------------------------

    async def restore(self) -> None:
        """Go on with the books of an earlier process."""
        now_s = self._now_s()
        for slots in self._slots.all.values():
            if slots.active is not None:
                self._accounts.ensure(slots.model, slots.active, now_s)
            if slots.state is not State.PROBATION:
                continue
            stored = await asyncio.to_thread(self._store.account, slots.model)
            for version in (slots.active, slots.previous):
                state = stored.get(version or "")
                if version is None or not isinstance(state, dict):
                    continue
                try:
                    account = Account.from_state(state, now_s)
                except BadHealth as error:
                    log.warning("health_begins_anew", version=version, why=str(error))
                else:
                    self._accounts.put(slots.model, version, account)

    async def close(self) -> None:
        """The process ends in good order: its end is no crash."""
        for slots in list(self._slots.all.values()):
            if slots.state is not State.PROBATION:
                continue
            await self._save_accounts(slots, self._now_s(), at_once=True)
            try:
                await self._slots.save(slots.stopped())
            except OSError as error:
                log.error("slots_not_written", model=slots.model, error=str(error))

    async def _save_accounts(
        self, slots: Slots, now_s: float, *, at_once: bool = False
    ) -> None:
        saved_s = self._saved_s.setdefault(slots.model, now_s)
        if not at_once and now_s - saved_s < SAVE_EVERY_S:
            return
        self._saved_s[slots.model] = now_s
        state = {
            version: account.to_state(now_s)
            for version in (slots.active, slots.previous)
            if version is not None
            and (account := self._accounts.of(slots.model, version)) is not None
        }
        try:
            await asyncio.to_thread(self._store.save_account, slots.model, state)
        except OSError as error:
            log.warning("health_not_written", model=slots.model, error=str(error))
