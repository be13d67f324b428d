"""The requests that wait for a batch with each other, and the batches they could make.

Where no deadline is near the larger batch is taken; what would be late whatever runs
counts for nothing.
"""

from __future__ import annotations

import heapq
from bisect import bisect_left, bisect_right
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from itertools import count, repeat
from typing import Final, Generic, TypeVar

from broker.messages import Priority
from cloud_worker.core.costs import Curve
from cloud_worker.core.fairness import Flow, Share, Shares
from cloud_worker.core.spec import padded_sizes

PATIENT_BATCHES: Final = 8.0
DOOMED_SHARE: Final = 0.5
ALIKE: Final = 0.9

T = TypeVar("T")
Signature = tuple[tuple[str, str, tuple[int, ...]], ...]


@dataclass(frozen=True, slots=True)
class Group:
    """What may share a batch: one model version, and inputs of one dtype and shape.

    `max_rows` bounds the batch. `apart` is set on requests that run apart from all
    others, to a number that only those who may share a batch have. `size_bucket` is of
    `costs.size_bucket` where the shape of an item decides its cost.
    """

    model: str
    signature: Signature
    max_rows: int
    apart: int = 0
    version: str = ""
    size_bucket: int = 0

    @property
    def key(self) -> str:
        """The model version, as runners and costs know it."""
        return f"{self.model}/{self.version}"


# Not frozen: thousands are made in a second, and that trebles what each costs.
@dataclass(slots=True, eq=False)
class Item(Generic[T]):
    """One waiting request; `deadline_s` is in the monotonic clock of `now`."""

    group: Group
    priority: Priority
    deadline_s: float
    size_bytes: int
    work: T
    rows: int = 1
    flow: Flow = ()


@dataclass(frozen=True, slots=True)
class Choice(Generic[T]):
    """A batch that could run: `size` rows, of those who live until `done_s`."""

    line: Line[T]
    size: int
    done_s: float
    score: float
    charge: float


@lru_cache(maxsize=256)
def _sizes(max_rows: int) -> tuple[int, ...]:
    return padded_sizes(max_rows)


class _Queue(Generic[T]):
    """The waiting requests of one group and class, by deadline, and whose they are.

    Two sorted lists: moving a few thousand pointers is quicker than any tree.
    """

    __slots__ = ("deadlines", "entries", "rows", "shares", "size_bytes", "weight")

    def __init__(self, weight: int, burst: int) -> None:
        self.weight = weight
        self.deadlines: list[float] = []
        self.entries: list[tuple[Item[T], Share]] = []
        self.rows = 0
        self.size_bytes = 0
        self.shares = Shares(burst)

    def add(self, item: Item[T]) -> None:
        at = bisect_right(self.deadlines, item.deadline_s)
        self.deadlines.insert(at, item.deadline_s)
        self.entries.insert(at, (item, self.shares.arrive(item.flow)))
        self.rows += item.rows
        self.size_bytes += item.size_bytes

    def remove(self, places: Sequence[int]) -> list[Item[T]]:
        """Take out the entries at these places, which ascend."""
        first, last = places[0], places[-1] + 1
        gone = [self.entries[place] for place in places]
        if last - first == len(gone):
            del self.entries[first:last], self.deadlines[first:last]
        else:
            taken = set(places)
            kept = [at for at in range(first, last) if at not in taken]
            self.entries[first:last] = [self.entries[at] for at in kept]
            self.deadlines[first:last] = [self.deadlines[at] for at in kept]
        for item, share in gone:
            self.shares.leave(share)
            self.rows -= item.rows
            self.size_bytes -= item.size_bytes
        return [item for item, _ in gone]

    def turns(self, first: int) -> Iterator[int]:
        """Places from `first` on: by deadline, but who is too far ahead comes last.

        The caller charges each before it asks for the next.
        """
        places = range(first, len(self.entries))
        if self.shares.even():
            yield from places
            return
        ahead = self.shares.ahead
        later = []
        for place in places:
            if ahead(self.entries[place][1]):
                later.append(place)
            else:
                yield place
        yield from later


class Line(Generic[T]):
    """The waiting items of one group: a queue for each class that has any."""

    __slots__ = (
        "_front",
        "_served_by",
        "_weights",
        "curve",
        "group",
        "key",
        "queues",
        "rows",
        "served",
    )

    def __init__(
        self,
        group: Group,
        curve: Curve,
        weights: Mapping[Priority, int],
        served: float,
    ) -> None:
        self.group = group
        self.key = group.key
        self.curve = curve
        self.queues: dict[Priority, _Queue[T]] = {}
        self.rows = 0
        # This line's account among those of its model, in seconds over weight.
        self.served = served
        self._weights = weights
        # Each class's account in this line, in rows over weight.
        self._served_by: dict[Priority, float] = {}
        self._front = 0.0

    def add(self, item: Item[T]) -> None:
        """Let a request wait in the queue of its class."""
        queue = self.queues.get(item.priority)
        if queue is None:
            queue = _Queue(self._weights[item.priority], self.group.max_rows)
            self.queues[item.priority] = queue
            served = self._served_by.get(item.priority, 0.0)
            # A class that was away has not saved up turns.
            self._served_by[item.priority] = max(served, self._front)
        queue.add(item)
        self.rows += item.rows

    def remove(self, priority: Priority, places: Sequence[int]) -> list[Item[T]]:
        """Take out the entries at these places, which ascend."""
        queue = self.queues[priority]
        items = queue.remove(places)
        self.rows -= sum(item.rows for item in items)
        if not queue.entries:
            del self.queues[priority]
        return items

    def head_s(self) -> float:
        """The earliest deadline."""
        return min(queue.deadlines[0] for queue in self.queues.values())

    def served_so_far(self) -> float:
        """Where its account stands."""
        return self.served

    def is_patient(self, start_s: float) -> bool:
        """Whether some batches may run first, and all of these still be in time."""
        most_s = self.curve.cost_s(self.group.max_rows)
        return self.head_s() > start_s + PATIENT_BATCHES * most_s

    def row_s(self) -> float:
        """What a row costs in the largest batch, the cheapest way; 0: not known yet."""
        most = self.group.max_rows
        return self.curve.typical_s(most) / most if self.curve.known else 0.0

    def best(self, start_s: float, max_batch_bytes: int) -> Choice[T] | None:
        """The batch with the best score, were it to start at `start_s`.

        Where no deadline is near, the larger of two that score almost alike: costs are
        noisy, and what a batch costs beside the accelerator is in none of them.
        """
        best: Choice[T] | None = None
        top = 0.0
        alike = ALIKE if self.is_patient(start_s) else 1.0
        curve = self.curve
        one_s = curve.cost_s(1)
        most = self._rows_within(max_batch_bytes)
        for size in _sizes(self.group.max_rows):
            cost_s = curve.cost_s(size)
            done_s = start_s + cost_s
            plan = self._plan(min(size, most), done_s, start_s + one_s, one_s)
            if not plan.answered:
                break
            score = plan.worth / cost_s
            if best is None or score > alike * top:
                charge = cost_s * plan.answered / plan.gain
                best = Choice(self, size, done_s, score, charge)
            top = max(top, score)
            if plan.all_of_them or size >= most:
                break
        return best

    def last_hope(self, start_s: float) -> Choice[T]:
        """One request that may make it if it runs as fast as it ever did."""
        last_s = max(queue.deadlines[-1] for queue in self.queues.values())
        done_s = min(start_s + self.curve.least_s(), last_s)
        return Choice(self, 1, done_s, 0.0, self.curve.cost_s(1))

    def pick(
        self, choice: Choice[T], room_bytes: int
    ) -> list[tuple[Priority, list[int]]]:
        """The places of those who run, charged to their accounts."""
        rows = choice.size
        picked: dict[Priority, list[int]] = {}
        turns = {
            priority: queue.turns(bisect_left(queue.deadlines, choice.done_s))
            for priority, queue in self.queues.items()
        }
        while turns and rows > 0:
            priority = (
                min(turns, key=self._turn) if len(turns) > 1 else next(iter(turns))
            )
            place = next(turns[priority], None)
            if place is None:
                del turns[priority]
                continue
            queue = self.queues[priority]
            item, share = queue.entries[place]
            if picked and (item.rows > rows or item.size_bytes > room_bytes):
                break
            picked.setdefault(priority, []).append(place)
            rows -= item.rows
            room_bytes -= item.size_bytes
            queue.shares.serve(share, item.rows)
            self._front = self._served_by[priority]
            self._served_by[priority] += item.rows / queue.weight
        return [(priority, sorted(places)) for priority, places in picked.items()]

    def _turn(self, priority: Priority) -> tuple[float, int]:
        return self._served_by[priority], -self._weights[priority]

    def _rows_within(self, max_batch_bytes: int) -> int:
        """How many rows fit the bytes of a batch, by the size of those that wait."""
        size_bytes = sum(queue.size_bytes for queue in self.queues.values())
        if size_bytes <= max_batch_bytes:
            return self.group.max_rows
        return max(int(max_batch_bytes * self.rows / size_bytes), 1)

    def _plan(self, size: int, done_s: float, alone_s: float, one_s: float) -> _Plan:
        """What a batch of `size` rows that is done at `done_s` answers and dooms.

        Who could not even live until `alone_s`, when one that ran alone would be
        done, is lost whatever runs, and counts for nothing.
        """
        alive = {
            queue: len(queue.deadlines) - bisect_left(queue.deadlines, done_s)
            for queue in self.queues.values()
        }
        room = _shared_out(size, alive)
        answered = 0
        gain = loss = 0.0
        for queue, left in alive.items():
            deadlines = queue.deadlines
            taken = room[queue]
            first = len(deadlines) - left
            late = bisect_left(deadlines, done_s + one_s, first + taken) - taken
            answered += taken
            gain += queue.weight * taken
            loss += queue.weight * (late - bisect_left(deadlines, alone_s))
        worth = gain - DOOMED_SHARE * loss
        return _Plan(answered, gain, worth, answered == sum(alive.values()))

    def surplus(self, start_s: float) -> list[tuple[Priority, list[int]]]:
        """Who cannot be answered even if nothing else ran from `start_s` on.

        Of those who stand before one that would be late, the cheapest to lose go:
        the lowest class, then whose flow has most waiting, then the earliest
        deadline. After Moore, "An n Job, One Machine Sequencing Algorithm for
        Minimizing the Number of Late Jobs" (1968).
        """
        row_s = self.row_s()
        one_batch = self.rows <= self.group.max_rows
        if one_batch or start_s + self.rows * row_s <= self.head_s():
            return []
        lost: dict[Priority, list[int]] = {}
        done_s = start_s
        cheapest: list[tuple[int, int, int, Priority]] = []
        for deadline_s, priority, place in heapq.merge(
            *(
                zip(queue.deadlines, repeat(priority), count())
                for priority, queue in self.queues.items()
            )
        ):
            queue = self.queues[priority]
            item, share = queue.entries[place]
            heapq.heappush(cheapest, (queue.weight, -share.waiting, place, priority))
            done_s += item.rows * row_s
            while done_s > deadline_s and cheapest:
                _, _, which, of = heapq.heappop(cheapest)
                lost.setdefault(of, []).append(which)
                done_s -= self.queues[of].entries[which][0].rows * row_s
        return [(priority, sorted(places)) for priority, places in lost.items()]


@dataclass(frozen=True, slots=True)
class _Plan:
    answered: int
    gain: float
    worth: float
    all_of_them: bool


def _shared_out(size: int, alive: dict[_Queue[T], int]) -> dict[_Queue[T], int]:
    """How many requests of each class a batch of `size` rows takes."""
    if len(alive) == 1:
        ((only, left),) = alive.items()
        return {only: min(left, max(size * len(only.entries) // only.rows, 1))}
    rows_each = {queue: queue.rows / len(queue.entries) for queue in alive}
    if sum(left * rows_each[queue] for queue, left in alive.items()) <= size:
        return alive
    room: dict[_Queue[T], int] = {}
    rows_left = float(size)
    weights_left = sum(queue.weight for queue in alive)
    # Who needs less than its share leaves the rest to the others.
    for queue in sorted(
        alive, key=lambda each: alive[each] * rows_each[each] / each.weight
    ):
        share = rows_left * queue.weight / weights_left
        room[queue] = min(alive[queue], int(share / rows_each[queue]))
        rows_left -= room[queue] * rows_each[queue]
        weights_left -= queue.weight
    if not any(room.values()):
        # The rows of one request are more than are asked for: it still goes.
        dearest = max(alive, key=lambda each: (alive[each] > 0, each.weight))
        room[dearest] = min(alive[dearest], 1)
    return room
