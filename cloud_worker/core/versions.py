"""Decide which versions of which models are in memory, and which of them answer.

A model that answers goes on doing so until another version of it can: nothing is
taken from the route before its successor is there, and nothing leaves the memory
while a request waits for it, unless others have waited for a whole turn. One version
loads at a time, but one that takes long keeps no others waiting.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from enum import Enum, auto
from typing import Final

from typing_extensions import override

from cloud_worker.core.policy import LATEST, Policy, Shares, summing_to_one

# How long models that do not fit together, and are all in use, have the memory each.
TURN_S: Final = 10.0
# Whether it hangs nobody can say yet, but another load may begin beside it.
SLOW_LOAD_S: Final = 20.0
MOST_LOADS: Final = 3


@dataclass(frozen=True, slots=True, order=True)
class Key:
    """One version of one model."""

    name: str
    version: str

    @override
    def __str__(self) -> str:
        return f"{self.name}/{self.version}"

    @classmethod
    def read(cls, text: str) -> Key:
        """The key of "name/version"."""
        return cls(*text.split("/"))


@dataclass(frozen=True, slots=True)
class Stored:
    """A version as it lies in the repository; `files` differs when a file does."""

    version: str
    files: str
    size_bytes: int


@dataclass(frozen=True, slots=True)
class Shelf:
    """What the repository holds of one model: its versions, newest first."""

    versions: tuple[Stored, ...]
    policy: Policy = LATEST


@dataclass(frozen=True, slots=True)
class Load:
    """Load this version, in the background, and say how it went."""

    key: Key
    files: str


@dataclass(frozen=True, slots=True)
class Unload:
    """Take this version out of the memory; a request for it brings it back."""

    key: Key
    why: str


@dataclass(frozen=True, slots=True)
class Retire:
    """Take this version out of the memory and forget it: it answers no more."""

    key: Key
    why: str


@dataclass(frozen=True, slots=True)
class Route:
    """From now on these versions answer; none: the model is served no more."""

    name: str
    shares: Shares


@dataclass(frozen=True, slots=True)
class GiveUp:
    """Answer those that wait for this version: it will not come."""

    key: Key
    why: str


Step = Load | Unload | Retire | Route | GiveUp


@dataclass(frozen=True, slots=True)
class Use:
    """Who uses what: the keys that requests wait for, and when each was last asked.

    All times are in the monotonic clock of `now_s`.
    """

    waiting: Collection[Key] = ()
    last_s: Mapping[Key, float] = field(default_factory=dict)
    now_s: float = 0.0


class Standing(Enum):
    """Where a version stands; one that nobody has tried has no standing."""

    LOADING = auto()
    LOADED = auto()
    UNLOADED = auto()  # known and warm once, and not in memory
    FAILED = auto()


@dataclass(frozen=True, slots=True)
class _Copy:
    standing: Standing
    files: str
    memory_bytes: int = 0
    since_s: float = 0.0
    reason: str = ""


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
        self._copies: dict[Key, _Copy] = {}
        self._routes: dict[str, Shares] = {}
        # Those in no memory that requests wait for, and since when.
        self._missed_s: dict[Key, float] = {}
        # The last route of each model on which all that was wanted answered.
        self._whole: dict[str, Shares] = {}

    @property
    def routes(self) -> Mapping[str, Shares]:
        """Who answers now, by model."""
        return self._routes

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
            if name not in self._routes and not self._wanted(name)
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
        for name in sorted(self._shelves.keys() | self._routes.keys()):
            steps.extend(self._reroute(name))
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
        self._copies[key] = _Copy(
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
        self._copies[key] = replace(copy, standing=standing, **known)  # type: ignore[arg-type] # fields of _Copy
        if standing is Standing.FAILED and self._files(key) != copy.files:
            del self._copies[key]

    def _may_load(self, use: Use) -> bool:
        return len(self._loading) < MOST_LOADS and not self.loads_in_time(use.now_s)

    @property
    def _loading(self) -> list[_Copy]:
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
                return self._is_routed(key) or not self._is_stale(key)
            case Standing.LOADING:
                return self._is_routed(key)  # known, and on its way back
            case Standing.UNLOADED:
                return self._stored(key) is not None
            case Standing.FAILED:
                return False

    def _is_routed(self, key: Key) -> bool:
        return key.version in self._routes.get(key.name, {})

    def _reroute(self, name: str) -> Iterator[Route]:
        wanted = self._wanted(name)
        shares = self._next_route(name, wanted)
        if not shares:
            self._whole.pop(name, None)
        elif shares == wanted or name not in self._whole:
            self._whole[name] = shares
        if shares != self._routes.get(name, {}):
            if shares:
                self._routes[name] = shares
            else:
                del self._routes[name]
            yield Route(name, shares)

    def _next_route(self, name: str, wanted: Shares) -> Shares:
        able = self._able(name, wanted)
        if len(able) == len(wanted) > 0:
            return wanted
        # The share of those that are still to come stays with who answers now.
        stay = self._staying(name, wanted)
        missing = 1 - sum(able.values())
        return summing_to_one(
            {
                version: able.get(version, 0.0) + missing * stay.get(version, 0.0)
                for version in {**able, **stay}
            }
        )

    def _able(self, name: str, shares: Shares) -> Shares:
        return {
            version: share
            for version, share in shares.items()
            if self._can_answer(Key(name, version))
        }

    def _staying(self, name: str, wanted: Shares) -> Shares:
        """Who answered before and may go on, while what is wanted is not there."""
        for shares in (self._whole.get(name, {}), self._routes.get(name, {})):
            able = {
                version: share
                for version, share in self._able(name, shares).items()
                # A deleted one goes on only for as long as another is to come.
                if wanted or self._stored(Key(name, version)) is not None
            }
            if able:
                return summing_to_one(able)
        return {}

    def _retire(self, use: Use) -> Iterator[Retire]:
        for key, copy in list(self._copies.items()):
            if (
                copy.standing in {Standing.LOADED, Standing.UNLOADED}
                and not self._is_routed(key)
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
        others = ", ".join(self._routes.get(key.name, {}))
        return f"{others} answers instead" if others else "nothing asks for it"

    def _give_up(self, use: Use) -> Iterator[GiveUp]:
        for key in sorted(use.waiting):
            match self._copies.get(key):
                case None:
                    yield GiveUp(key, f"version {key.version} is gone")
                case _Copy(standing=Standing.FAILED) as copy:
                    yield GiveUp(key, copy.reason)
                case _Copy(standing=Standing.UNLOADED) if self._stored(key) is None:
                    yield GiveUp(key, f"version {key.version} was deleted")
                case _:
                    pass

    def _next_load(self, use: Use) -> Key | None:
        for key in self._loads_in_order():
            replaces = bool(self._routes.get(key.name)) and not self._is_routed(key)
            if replaces or self._has_room(self._need(key), use):
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
                if (name in self._routes) is served:
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

    def _taken(self) -> int:
        return sum(
            copy.memory_bytes
            for copy in self._copies.values()
            if copy.standing in {Standing.LOADED, Standing.LOADING}
        )

    def _note_missed(self, use: Use) -> None:
        self._missed_s = {
            key: self._missed_s.get(key, use.now_s)
            for key in use.waiting
            if self.standing(key) is Standing.UNLOADED
        }

    def _idle(self, use: Use) -> list[Key]:
        """What answers, is in memory and may leave it: longest unused first.

        That is what has nothing to do; and, once a request has waited for a whole
        turn for a version that is not there, also what has been there for longer.
        """
        turn_ends_s = use.now_s - TURN_S
        in_turns = any(since_s <= turn_ends_s for since_s in self._missed_s.values())
        free = []
        for key, copy in self._copies.items():
            if copy.standing is not Standing.LOADED or not self._is_routed(key):
                continue
            busy = key in use.waiting
            if not busy or (in_turns and copy.since_s <= turn_ends_s):
                used_s = max(use.last_s.get(key, 0.0), copy.since_s)
                free.append((busy, copy.since_s if busy else used_s, key))
        return [key for _, _, key in sorted(free)]

    def _has_room(self, need: int, use: Use) -> bool:
        if self._limit_bytes is None:
            return True
        idle = sum(self._copies[key].memory_bytes for key in self._idle(use))
        left = self._taken() - idle
        return left + need <= self._limit_bytes or left == 0

    def _make_room(
        self, need: int, use: Use, keep: str | None = None
    ) -> Iterator[Unload]:
        """Unload what is idle; but not model `keep`, which is to get a new version."""
        if self._limit_bytes is None:
            return
        for key in self._idle(use):
            if key.name == keep:
                continue
            over = self._taken() + need - self._limit_bytes
            copy = self._copies[key]
            alone = need == 0 and self._taken() == copy.memory_bytes
            if over <= 0 or alone:
                return
            self._copies[key] = replace(copy, standing=Standing.UNLOADED)
            yield Unload(
                key,
                f"the loaded models would take {over // 2**20 + 1} MiB more than "
                f"models_memory_mb, and it {self._why_it(key, use)}",
            )

    def _why_it(self, key: Key, use: Use) -> str:
        if key in use.waiting:
            return "has had its turn, while requests wait for another"
        return "was unused for the longest time"
