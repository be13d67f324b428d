"""The slots of every model as they stand: in memory as on the disk, the disk first."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Collection, Mapping

import structlog

from edge_agent.adapters.model_store import ModelStore
from edge_agent.core.slots import Slots

log = structlog.get_logger(__name__)


class SlotBook:
    """Slots by model; whoever changes those of a model holds its lock.

    Args:
        store: where they are kept.
        changed: called after each change.
    """

    def __init__(
        self, store: ModelStore, changed: Callable[[], None] = lambda: None
    ) -> None:
        self._store = store
        self.changed = changed
        self._slots: dict[str, Slots] = {}
        self._locks: dict[str, asyncio.Lock] = {}

    @property
    def all(self) -> Mapping[str, Slots]:
        """What is active, previous and staged, by model."""
        return self._slots

    def of(self, model: str) -> Slots:
        """Those of one model; empty ones when nothing is known of it."""
        return self._slots.get(model) or Slots(model)

    def lock(self, model: str) -> asyncio.Lock:
        """To be held while they are changed."""
        return self._locks.setdefault(model, asyncio.Lock())

    def start_with(self, slots: Mapping[str, Slots]) -> None:
        """Begin from what is on the disk."""
        self._slots = dict(slots)

    async def save(self, slots: Slots) -> None:
        """Note them on the disk, then here.

        Raises:
            OSError: the disk does not take them; nothing has changed then.
        """
        if self._slots.get(slots.model) == slots:
            return
        await asyncio.to_thread(self._store.save, slots)
        self.put(slots)

    def put(self, slots: Slots) -> None:
        """Take them as they are, without the disk."""
        self._slots[slots.model] = slots
        self.changed()

    async def tidy(self, slots: Slots, *, refused: str | None = None) -> None:
        """Delete what no slot of a model names; what stays is found the next time.

        Args:
            slots: of the model.
            refused: a version of which what was pulled goes too.
        """
        try:
            await asyncio.to_thread(self._store.collect, slots)
            if refused is not None:
                await asyncio.to_thread(self._store.drop_parts, slots.model, refused)
        except OSError as error:
            # Room that is not won is no reason to stop anything.
            log.warning("files_not_deleted", model=slots.model, error=str(error))

    def forget_empty(self, *, keep: Collection[str]) -> None:
        """Forget models of which nothing is here, but for those to `keep`."""
        for model in [name for name, each in self._slots.items() if each.is_empty]:
            if model not in keep:
                del self._slots[model]
                self._locks.pop(model, None)
