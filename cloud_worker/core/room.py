"""Decide which versions leave the memory when not all can be in it. Pure.

Nothing leaves while a request waits for it, unless others have waited for a whole turn.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Final

from cloud_worker.core.copies import Copy, Standing, Use
from cloud_worker.core.shelf import Key
from cloud_worker.core.version_steps import Unload

# How long models that do not fit together, and are all in use, have the memory each.
TURN_S: Final = 10.0


@dataclass(frozen=True, slots=True)
class Room:
    """The memory as it is now.

    Attributes:
        limit_bytes: what all loaded versions may take together; None: no limit.
        copies: every version that was tried.
        answers: whether a version is on the route.
        missed_s: those in no memory that requests wait for, and since when.
        use: who uses what.
    """

    limit_bytes: int | None
    copies: Mapping[Key, Copy]
    answers: Callable[[Key], bool]
    missed_s: Mapping[Key, float]
    use: Use

    def has(self, need: int) -> bool:
        """Whether so many bytes can be had, once what is idle has left."""
        if self.limit_bytes is None:
            return True
        idle = sum(self.copies[key].memory_bytes for key in self._idle())
        left = self._taken() - idle
        return left + need <= self.limit_bytes or left == 0

    def make(self, need: int, keep: str | None = None) -> Iterator[Unload]:
        """Unload what is idle; but not model `keep`, which is to get a new version."""
        if self.limit_bytes is None:
            return
        taken = self._taken()
        for key in self._idle():
            if key.name == keep:
                continue
            over = taken + need - self.limit_bytes
            size = self.copies[key].memory_bytes
            alone = need == 0 and taken == size
            if over <= 0 or alone:
                return
            taken -= size
            yield Unload(
                key,
                f"the loaded models would take {over // 2**20 + 1} MiB more than "
                f"models_memory_mb, and it {self._why_it(key)}",
            )

    def _idle(self) -> list[Key]:
        """What answers, is in memory and may leave it: longest unused first.

        That is what has nothing to do; and, once a request has waited for a whole
        turn for a version that is not there, also what has been there for longer.
        """
        turn_ends_s = self.use.now_s - TURN_S
        in_turns = any(since_s <= turn_ends_s for since_s in self.missed_s.values())
        free = []
        for key, copy in self.copies.items():
            if copy.standing is not Standing.LOADED or not self.answers(key):
                continue
            busy = key in self.use.waiting
            if not busy or (in_turns and copy.since_s <= turn_ends_s):
                used_s = max(self.use.last_s.get(key, 0.0), copy.since_s)
                free.append((busy, copy.since_s if busy else used_s, key))
        return [key for _, _, key in sorted(free)]

    def _taken(self) -> int:
        return sum(
            copy.memory_bytes
            for copy in self.copies.values()
            if copy.standing in {Standing.LOADED, Standing.LOADING}
        )

    def _why_it(self, key: Key) -> str:
        if key in self.use.waiting:
            return "has had its turn, while requests wait for another"
        return "was unused for the longest time"
