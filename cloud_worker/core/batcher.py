"""Decide what runs next. Never waits and never reads a clock; the caller does both.

Nothing lingers while the runner is idle. While it is busy, requests gather, and a
second batch goes to it early only when it is full, so that the runner finds it the
moment it is done. Classes share by weight, so `bulk` never starves; within a class
the earliest deadline goes first.
"""

from __future__ import annotations

import heapq
import math
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from typing import Final, Generic, TypeVar

from broker.messages import Priority

WEIGHTS: Final[Mapping[Priority, int]] = {
    Priority.HI: 16,
    Priority.NORM: 4,
    Priority.BULK: 1,
}
RANK: Final = {priority: rank for rank, priority in enumerate(Priority)}
DEPTH: Final = 2

T = TypeVar("T")
Signature = tuple[tuple[str, str, tuple[int, ...]], ...]


@dataclass(frozen=True, slots=True)
class Group:
    """What may share a batch: one model, and inputs of one dtype and shape.

    `max_rows` bounds the batch. `alone` is set on a request that must run by
    itself, to a number that no other has.
    """

    model: str
    signature: Signature
    max_rows: int
    alone: int = 0


@dataclass(frozen=True, slots=True, eq=False)
class Item(Generic[T]):
    """One waiting request; `deadline_s` is in the monotonic clock of `now`."""

    group: Group
    priority: Priority
    deadline_s: float
    size_bytes: int
    work: T
    rows: int = 1


@dataclass(frozen=True, slots=True)
class Flush(Generic[T]):
    """Run these as one batch."""

    items: tuple[Item[T], ...]


@dataclass(frozen=True, slots=True)
class Expire(Generic[T]):
    """These can no longer be answered in time: say so, without work."""

    items: tuple[Item[T], ...]


@dataclass(frozen=True, slots=True)
class WaitUntil:
    """Nothing to do before this time (monotonic seconds) unless something changes."""

    at_s: float


@dataclass(frozen=True, slots=True)
class Idle:
    """Nothing waits."""


Step = Flush[T] | Expire[T] | WaitUntil | Idle


@dataclass(slots=True)
class _Line(Generic[T]):
    """The waiting items of one group: a heap by deadline for each class."""

    heaps: dict[Priority, list[tuple[float, int, Item[T]]]] = field(
        default_factory=lambda: {priority: [] for priority in Priority}
    )
    rows: int = 0

    def any_work(self) -> T:
        """One of them: they share a model."""
        return next(heap[0][2].work for heap in self.heaps.values() if heap)


class Batcher(Generic[T]):
    """Waiting requests, and the order in which they leave.

    Args:
        max_batch_bytes: the inputs of one batch stay under this, except that a
            single request always fits.
        depth: how many batches the runner may hold, the running one included.
        weights: the share of each class while all of them have work.
    """

    def __init__(
        self,
        *,
        max_batch_bytes: int = 64 * 1024 * 1024,
        depth: int = DEPTH,
        weights: Mapping[Priority, int] = WEIGHTS,
    ) -> None:
        self._max_batch_bytes = max_batch_bytes
        self._depth = depth
        self._weights = weights
        self._lines: dict[Group, _Line[T]] = {}
        self._waiting = dict.fromkeys(Priority, 0)
        # Stride scheduling: each class advances by rows / weight as it is served,
        # and the one that is furthest behind goes next.
        self._served = dict.fromkeys(Priority, 0.0)
        self._front = 0.0
        self._count = 0
        self._alone = 0

    def __len__(self) -> int:
        return sum(self._waiting.values())

    def add(self, item: Item[T]) -> None:
        """Let a request wait."""
        self._count += 1
        if self._waiting[item.priority] == 0:
            # A class that was away has not saved up turns.
            self._served[item.priority] = max(self._served[item.priority], self._front)
        self._waiting[item.priority] += 1
        line = self._lines.setdefault(item.group, _Line())
        line.rows += item.rows
        heapq.heappush(line.heaps[item.priority], (item.deadline_s, self._count, item))

    def add_alone(self, item: Item[T]) -> None:
        """Let a request wait that must not share its batch, as its last one broke."""
        self._alone += 1
        self.add(replace(item, group=replace(item.group, alone=self._alone)))

    def next_step(
        self,
        now: float,
        *,
        running: int,
        ready: Callable[[T], bool] = lambda _: True,
    ) -> Step[T]:
        """Say what to do at `now` while the runners hold `running` batches.

        Work whose model is not `ready` waits, and holds no other up.
        """
        expired = tuple(self._take_expired(now))
        if expired:
            return Expire(expired)
        if not self._lines:
            return Idle()
        if running < self._depth:
            group = self._next_group(ready)
            if group is not None and (
                running == 0 or self._lines[group].rows >= group.max_rows
            ):
                return Flush(tuple(self._take_batch(group)))
        return WaitUntil(self._next_expiry())

    def _take_expired(self, now: float) -> Iterator[Item[T]]:
        for group in list(self._lines):
            for heap in self._lines[group].heaps.values():
                while heap and heap[0][0] <= now:
                    yield self._pop(group, heap)
            self._forget_if_empty(group)

    def _next_expiry(self) -> float:
        return min(
            (
                heap[0][0]
                for line in self._lines.values()
                for heap in line.heaps.values()
                if heap
            ),
            default=math.inf,
        )

    def _next_group(self, ready: Callable[[T], bool]) -> Group | None:
        lines = [line for line in self._lines.values() if ready(line.any_work())]
        waiting = {
            priority for line in lines for priority, heap in line.heaps.items() if heap
        }
        if not waiting:
            return None
        turn = self._turn(each for each in Priority if each in waiting)
        _, _, head = min(line.heaps[turn][0] for line in lines if line.heaps[turn])
        return head.group

    def _take_batch(self, group: Group) -> Iterator[Item[T]]:
        # Later, which padded size pays best (cost learned per size) is decided here.
        heaps = self._lines[group].heaps
        rows = size_bytes = 0
        while any(heaps.values()):
            turn = self._turn(priority for priority, heap in heaps.items() if heap)
            item = heaps[turn][0][2]
            if rows and (
                rows + item.rows > group.max_rows
                or size_bytes + item.size_bytes > self._max_batch_bytes
            ):
                break
            rows += item.rows
            size_bytes += item.size_bytes
            self._front = self._served[turn]
            self._served[turn] += item.rows / self._weights[turn]
            yield self._pop(group, heaps[turn])
        self._forget_if_empty(group)

    def _turn(self, candidates: Iterator[Priority]) -> Priority:
        return min(candidates, key=lambda each: (self._served[each], RANK[each]))

    def _pop(self, group: Group, heap: list[tuple[float, int, Item[T]]]) -> Item[T]:
        item = heapq.heappop(heap)[2]
        self._waiting[item.priority] -= 1
        self._lines[group].rows -= item.rows
        return item

    def _forget_if_empty(self, group: Group) -> None:
        if not any(self._lines[group].heaps.values()):
            del self._lines[group]
