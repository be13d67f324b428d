"""Decide which versions of which models are in memory, and which of them answer.

A model that answers goes on doing so until another version of it can: nothing is
taken from the route before its successor is there, and nothing leaves the memory
while a request waits for it, unless others have waited for a whole turn. One version
loads at a time, but one that takes long keeps no others waiting.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import replace
from typing import Final

from cloud_worker.core.copies import Copy, Standing, Use
from cloud_worker.core.policy import Shares
from cloud_worker.core.room import Room
from cloud_worker.core.routes import Routes
from cloud_worker.core.shelf import Key, Shelf, Stored
from cloud_worker.core.version_steps import (
    GiveUp,
    Load,
    Retire,
    Step,
    Unload,
)

# Whether it hangs nobody can say yet, but another load may begin beside it.
SLOW_LOAD_S: Final = 20.0
MOST_LOADS: Final = 3


class Versions:
    """What is known of each version, and what follows from it.

    Args:
        limit_bytes: what all loaded versions may take together; None: no limit. One
            that replaces another may exceed it until the other is gone, and so may
            one that is alone.
    """

    def __init__(self, *, limit_bytes: int | None = None) -> None:
        self._limit_bytes = limit_bytes
        self._shelves: Mapping[str, Shelf] = {}
        self._copies: dict[Key, Copy] = {}
        self._routes = Routes(
            can_answer=self._can_answer,
            stored=lambda key: self._stored(key) is not None,
        )
        # Those in no memory that requests wait for, and since when.
        self._missed_s: dict[Key, float] = {}

    @property
    def routes(self) -> Mapping[str, Shares]:
        """Who answers now, by model."""
        return self._routes.now

    def standing(self, key: Key) -> Standing | None:
        """Where a version stands; None when it was not tried or is forgotten."""
        copy = self._copies.get(key)
        return copy.standing if copy is not None else None

    def why_failed(self, key: Key) -> str | None:
        """Why a version cannot be loaded, if it cannot."""
        copy = self._copies.get(key)
        return copy.reason if copy and copy.standing is Standing.FAILED else None

    def found(self, shelves: Mapping[str, Shelf]) -> None:
        """The repository now holds this."""
        self._shelves = shelves
        for key, copy in list(self._copies.items()):
            # It is tried again when its files have changed, and not before.
            if copy.standing is Standing.FAILED and self._files(key) != copy.files:
                del self._copies[key]

    def changed_in_place(self) -> tuple[Key, ...]:
        """The loaded versions whose files are no longer those that were loaded."""
        return tuple(
            key
            for key, copy in self._copies.items()
            if copy.standing is Standing.LOADED
            and self._files(key) not in {None, copy.files}
        )

    def loaded(self, key: Key, memory_bytes: int, now_s: float) -> None:
        """A load that was asked for is done."""
        self._end_load(key, Standing.LOADED, memory_bytes=memory_bytes, since_s=now_s)

    def failed(self, key: Key, reason: str) -> None:
        """A load that was asked for has failed."""
        self._end_load(key, Standing.FAILED, reason=reason)

    def broke(self, key: Key, reason: str) -> bool:
        """A version that was loaded works no more; says whether another may answer.

        If none may, nothing changes: it goes on being tried.
        """
        shelf = self._shelves.get(key.name)
        if self.standing(key) is not Standing.LOADED or shelf is None:
            return False
        others = self._usable(shelf, key.name) - {key.version}
        versions = [each.version for each in shelf.versions]
        if not shelf.policy.wanted(versions, others):
            return False
        self._copies[key] = replace(
            self._copies[key],
            standing=Standing.FAILED,
            memory_bytes=0,
            reason=reason,
        )
        return True

    def abandoned(self, key: Key) -> None:
        """A load that was asked for was broken off."""
        if self.standing(key) is Standing.LOADING:
            del self._copies[key]

    def unserved(self) -> tuple[str, ...]:
        """The models of which nothing answers and nothing is to come."""
        return tuple(
            name
            for name in sorted(self._shelves)
            if name not in self._routes.now and not self._wanted(name)
        )

    @property
    def loads(self) -> bool:
        """Whether any version is loading."""
        return bool(self._loading)

    def loads_in_time(self, now_s: float) -> bool:
        """Whether a version is loading that has not taken long yet."""
        return any(now_s - copy.since_s < SLOW_LOAD_S for copy in self._loading)

    def measured(self, memory_bytes: Mapping[Key, int]) -> None:
        """What the loaded versions take now."""
        for key, size in memory_bytes.items():
            copy = self._copies.get(key)
            if copy is not None and copy.standing is Standing.LOADED:
                self._copies[key] = replace(copy, memory_bytes=size)

    def next_steps(self, use: Use) -> tuple[Step, ...]:
        """What to do now, in this order; each is taken as done but a load.

        Ask again when it is done, until nothing is left.
        """
        steps: list[Step] = []
        self._note_missed(use)
        for name in sorted(self._shelves.keys() | self._routes.now.keys()):
            route = self._routes.follow(name, self._wanted(name))
            if route is not None:
                steps.append(route)
        if steps:
            # The old route may get requests until this one is in force.
            return tuple(steps)
        steps.extend(self._retire(use))
        if self._may_load(use) and (key := self._next_load(use)) is not None:
            steps.append(self._begin_load(key, steps, use))
        else:
            steps.extend(self._make_room(0, use))
        steps.extend(self._give_up(use))
        return tuple(steps)

    def _begin_load(self, key: Key, steps: list[Step], use: Use) -> Load:
        need = self._need(key)
        steps.extend(self._make_room(need, use, keep=key.name))
        files = self._files(key) or ""
        self._copies[key] = Copy(
            Standing.LOADING, files, memory_bytes=need, since_s=use.now_s
        )
        return Load(key, files)

    def _files(self, key: Key) -> str | None:
        stored = self._stored(key)
        return stored.files if stored is not None else None

    def _stored(self, key: Key) -> Stored | None:
        shelf = self._shelves.get(key.name)
        versions = shelf.versions if shelf is not None else ()
        return next((each for each in versions if each.version == key.version), None)

    def _end_load(self, key: Key, standing: Standing, **known: object) -> None:
        copy = self._copies.get(key)
        if copy is None or copy.standing is not Standing.LOADING:
            raise ValueError(f"{key} was not loading")
        self._copies[key] = replace(copy, standing=standing, **known)  # type: ignore[arg-type] # fields of Copy
        if standing is Standing.FAILED and self._files(key) != copy.files:
            del self._copies[key]

    def _may_load(self, use: Use) -> bool:
        return len(self._loading) < MOST_LOADS and not self.loads_in_time(use.now_s)

    @property
    def _loading(self) -> list[Copy]:
        return [
            copy for copy in self._copies.values() if copy.standing is Standing.LOADING
        ]

    def _wanted(self, name: str) -> Shares:
        shelf = self._shelves.get(name)
        if shelf is None:
            return {}
        versions = [each.version for each in shelf.versions]
        return shelf.policy.wanted(versions, self._usable(shelf, name))

    def _usable(self, shelf: Shelf, name: str) -> set[str]:
        """The versions that have not failed."""
        return {
            each.version
            for each in shelf.versions
            if self.standing(Key(name, each.version)) is not Standing.FAILED
        }

    def _can_answer(self, key: Key) -> bool:
        """Whether it is in memory, or known and could be at any time."""
        copy = self._copies.get(key)
        if copy is None:
            return False
        match copy.standing:
            case Standing.LOADED:
                # What changed while it was loaded was half copied, perhaps.
                return self._routes.has(key) or not self._is_stale(key)
            case Standing.LOADING:
                return self._routes.has(key)  # known, and on its way back
            case Standing.UNLOADED:
                return self._stored(key) is not None
            case Standing.FAILED:
                return False

    def _retire(self, use: Use) -> Iterator[Retire]:
        for key, copy in list(self._copies.items()):
            if (
                copy.standing in {Standing.LOADED, Standing.UNLOADED}
                and not self._routes.has(key)
                and (key.version not in self._wanted(key.name) or self._is_stale(key))
                and key not in use.waiting
            ):
                yield Retire(key, self._why_retired(key))
                del self._copies[key]

    def _is_stale(self, key: Key) -> bool:
        """Whether what was loaded is no longer what lies there."""
        return self._files(key) != self._copies[key].files

    def _why_retired(self, key: Key) -> str:
        if self._stored(key) is None:
            return "it was deleted from the repository"
        if key.version in self._wanted(key.name):
            return "its files changed while it was loaded"
        others = ", ".join(self._routes.of(key.name))
        return f"{others} answers instead" if others else "nothing asks for it"

    def _give_up(self, use: Use) -> Iterator[GiveUp]:
        for key in sorted(use.waiting):
            match self._copies.get(key):
                case None:
                    yield GiveUp(key, f"version {key.version} is gone")
                case Copy(standing=Standing.FAILED) as copy:
                    yield GiveUp(key, copy.reason)
                case Copy(standing=Standing.UNLOADED) if self._stored(key) is None:
                    yield GiveUp(key, f"version {key.version} was deleted")
                case _:
                    pass

    def _next_load(self, use: Use) -> Key | None:
        room = self._room(use)
        for key in self._loads_in_order():
            replaces = bool(self._routes.of(key.name)) and not self._routes.has(key)
            if replaces or room.has(self._need(key)):
                return key
        return None

    def _loads_in_order(self) -> Iterator[Key]:
        """What requests wait for, then models that nobody serves, then new versions."""
        yield from sorted(
            (key for key in self._missed_s if self._stored(key) is not None),
            key=lambda key: (self._missed_s[key], key),
        )
        for served in (False, True):
            for name in sorted(self._shelves):
                if (name in self._routes.now) is served:
                    yield from self._untried(name)

    def _untried(self, name: str) -> Iterable[Key]:
        wanted = self._wanted(name)
        keys = (
            Key(name, version)
            for version in sorted(wanted, key=lambda each: (-wanted[each], each))
        )
        return [key for key in keys if self.standing(key) is None]

    def _need(self, key: Key) -> int:
        """What a version will take: as last time, or at the least what its files do."""
        copy, stored = self._copies.get(key), self._stored(key)
        if copy is not None and copy.memory_bytes:
            return copy.memory_bytes
        return stored.size_bytes if stored is not None else 0

    def _note_missed(self, use: Use) -> None:
        self._missed_s = {
            key: self._missed_s.get(key, use.now_s)
            for key in use.waiting
            if self.standing(key) is Standing.UNLOADED
        }

    def _room(self, use: Use) -> Room:
        return Room(
            self._limit_bytes, self._copies, self._routes.has, self._missed_s, use
        )

    def _make_room(
        self, need: int, use: Use, keep: str | None = None
    ) -> Iterator[Unload]:
        for step in list(self._room(use).make(need, keep)):
            copy = self._copies[step.key]
            self._copies[step.key] = replace(copy, standing=Standing.UNLOADED)
            yield step
