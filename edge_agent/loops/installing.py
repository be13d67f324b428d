"""Carry out what was decided for one model. What serves is touched last.

Pull, verify, try in a child process, and let it serve on probation or beside the
active one; or serve again what is on the disk; or note that what serves is desired.
"""

from __future__ import annotations

import asyncio
import functools
from collections.abc import Awaitable, Callable
from typing import Final

import structlog

from broker.messages import DesiredModel, UpdatePolicy
from bundle.pack import BundleRejected
from bundle.seal import Seal
from edge_agent.adapters.model_store import ModelStore, StoredBundle
from edge_agent.core.fit import ModelRefused, PutOff
from edge_agent.core.slots import Slots, State
from edge_agent.loops.probation import Probation
from edge_agent.loops.slot_book import SlotBook
from edge_agent.loops.update_ports import Pulls, Shadows
from edge_agent.loops.vouching import Vouching

log = structlog.get_logger(__name__)

# The packed bundle, the unpacked one, and room to breathe.
SPACE_FACTOR: Final = 3


class Installing:
    """Takes steps; whoever asks for one holds the model's lock.

    Args:
        store: of the agent's bundles.
        slots: of its models.
        vouching: who signed a version, and whether it may be taken now.
        pulls: how bundles get here.
        probation: where new versions serve.
        shadows: where candidates run beside the active version.
        try_out: runs a stored bundle in a child process, perhaps beside the one that
            serves; raises TrialFailed.
        disk_reserve_bytes: that an update leaves free, for accepted requests.
        superseded: whether something else is desired by now.
    """

    def __init__(  # noqa: PLR0913 - wiring
        self,
        *,
        store: ModelStore,
        slots: SlotBook,
        vouching: Vouching,
        pulls: Pulls,
        probation: Probation,
        shadows: Shadows,
        try_out: Callable[
            [StoredBundle, StoredBundle | None, UpdatePolicy], Awaitable[object]
        ],
        disk_reserve_bytes: int,
        superseded: Callable[[DesiredModel], bool],
    ) -> None:
        self._store = store
        self._slots = slots
        self._vouching = vouching
        self._pulls = pulls
        self._probation = probation
        self._shadows = shadows
        self._try_out = try_out
        self._disk_reserve_bytes = disk_reserve_bytes
        self._superseded = superseded
        # Of the pulls under way: bytes that are here, and of all.
        self.progress: dict[str, tuple[int, int]] = {}

    async def adopt(
        self, desired: DesiredModel, slots: Slots, generation: int, epoch: int
    ) -> None:
        """Note that what serves is desired, in an epoch that was signed for it."""
        way_back = False
        if epoch != slots.epoch:
            # An epoch raises the floor: only one that was signed, of these very bytes.
            seal = await self._vouching.seal(desired)
            if await asyncio.to_thread(self._store.holds, seal) is None:
                raise ModelRefused(
                    f"{slots.model} {seal.version} serves, but what was signed for "
                    f"epoch {epoch} under that name is something else"
                )
            way_back = seal.way_back
        if slots.state is State.SHADOW:
            await self._shadows.stop(slots.model)
        adopted = slots.adopted(generation, epoch, desired.policy, way_back=way_back)
        await self._slots.save(adopted)
        await self._slots.tidy(adopted)

    async def make_way(self, desired: DesiredModel, slots: Slots, reason: str) -> None:
        """End a probation for another version, if that may come here and now."""
        # What nobody signed, or a window keeps away, ends nothing.
        await self._vouching.seal(desired)
        self._vouching.check_time(desired)
        await self._probation.leave(slots, reason)

    async def go_back(self, desired: DesiredModel, slots: Slots) -> None:
        """Serve the previous version: signed anew, and on the disk already."""
        seal = await self._vouching.seal(desired)
        self._vouching.check_time(desired)
        stored = await asyncio.to_thread(self._store.holds, seal)
        if stored is None:
            # Damaged, or another bundle under that name: it comes like any other.
            if slots.state is State.PROBATION:
                await self._probation.leave(slots, "another version is desired")
            else:
                await self._slots.save(slots.without_previous())
            return
        await self._try_out(stored, None, desired.policy)
        after = slots.went_back(
            desired.generation, desired.epoch, way_back=seal.way_back
        )
        await self._probation.serve(stored, after)
        await self._shadows.stop(slots.model)
        await self._slots.tidy(after)
        log.info("update_went_back", model=slots.model, version=desired.version)

    async def pull(self, desired: DesiredModel, slots: Slots) -> None:
        """Fetch a version, try it, and let it serve on probation or run beside."""
        seal = await self._vouching.seal(desired)
        self._vouching.check_time(desired)
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
            self._vouching.check_time(desired)
        slots = slots.pulled()
        self._slots.put(slots)
        await self._try_out(stored, await self._active(slots), desired.policy)
        await self._shadows.stop(slots.model)
        if desired.shadow:
            await self._slots.save(slots.shadowed())
            await self._shadows.start(stored)
        else:
            await self._probation.begin(
                slots, stored, desired.policy, way_back=seal.way_back
            )

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
        await self._slots.tidy(slots)
        need = SPACE_FACTOR * seal.size_bytes + self._disk_reserve_bytes
        if await asyncio.to_thread(self._store.free_bytes) >= need:
            return slots
        if slots.previous is not None:
            slots = slots.without_previous()
            await self._slots.save(slots)
            await self._slots.tidy(slots)
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
                superseded=lambda: self._superseded(desired),
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
