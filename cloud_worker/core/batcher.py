"""Decide what runs next, by expected goodput. Never waits and never reads a clock.

For each model and padded size, the score of a batch is what it answers in time, less
half of what it dooms, by class weight, over what it costs; the best one runs. Nothing
lingers while the accelerator is idle. While it is busy, requests gather, and the next
batch goes to the runner only when it is full and shortly before it is wanted, so that
the runner finds it the moment it is done and no late guest is shut out for long.

Scores alone would let a cheap model starve a dear one, and one device all others: who
is owed too much goes first (`fairness` between flows, weighted deficits between models
and shapes, shares by weight between classes).
"""

from __future__ import annotations

import heapq
import math
from bisect import bisect_left, bisect_right
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import lru_cache
from itertools import count, repeat
from typing import Final, Generic, TypeVar

from broker.messages import Priority
from cloud_worker.core.costs import Costs, Curve
from cloud_worker.core.fairness import Flow, Share, Shares
from cloud_worker.core.spec import padded_sizes

WEIGHTS: Final[Mapping[Priority, int]] = {
    Priority.HI: 16,
    Priority.NORM: 4,
    Priority.BULK: 1,
}
DEPTH: Final = 2
LEAD_S: Final = 0.003
EARLY_SHARE: Final = 0.5
PATIENT_BATCHES: Final = 8.0
OWED_BATCHES: Final = 2.0
DOOMED_SHARE: Final = 0.5
ALIKE: Final = 0.9
MANY_LINES: Final = 16
SHED_EVERY_S: Final = 0.05

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
class Flush(Generic[T]):
    """Run these as one batch; `done_s` is when it should be done, in the time of `now`."""

    items: tuple[Item[T], ...]
    done_s: float


@dataclass(frozen=True, slots=True)
class Expire(Generic[T]):
    """These can no longer be answered in time: say so, without work."""

    items: tuple[Item[T], ...]


@dataclass(frozen=True, slots=True)
class Shed(Generic[T]):
    """Not all that waits can be answered in time: these are the cheapest to lose.

    `wait_s` is how long what waits here will take.
    """

    items: tuple[Item[T], ...]
    wait_s: float


@dataclass(frozen=True, slots=True)
class WaitUntil:
    """Nothing to do before this time (monotonic seconds) unless something changes."""

    at_s: float


@dataclass(frozen=True, slots=True)
class Idle:
    """Nothing waits."""


Step = Flush[T] | Expire[T] | Shed[T] | WaitUntil | Idle
Ready = Callable[[str], bool]
_Entry = tuple[Item[T], Share]


def _always(_: str) -> bool:
    return True


class Batcher(Generic[T]):
    """Waiting requests, and the order in which they leave.

    Args:
        costs: what batches cost; learned by the caller, who sees them run.
        max_batch_bytes: the inputs of one batch stay under this, except that a
            single request always fits.
        depth: how many batches the runners may hold, the running one included.
        weights: what an answer is worth, by class.
    """

    def __init__(
        self,
        *,
        costs: Costs | None = None,
        max_batch_bytes: int = 64 * 1024 * 1024,
        depth: int = DEPTH,
        weights: Mapping[Priority, int] = WEIGHTS,
    ) -> None:
        self._costs = costs or Costs()
        self._max_batch_bytes = max_batch_bytes
        self._depth = depth
        self._weights = weights
        self._lines: dict[Group, _Line[T]] = {}
        self._full: dict[_Line[T], None] = {}
        self._models = _Accounts()
        self._running = _Running()
        self._count = 0
        self._set_apart = 0
        self._look_at_s = math.inf
        self._shed_at_s = -math.inf

    def __len__(self) -> int:
        return self._count

    @property
    def keys(self) -> set[str]:
        """The model versions that something waits for."""
        return {line.key for line in self._lines.values()}

    def add(self, item: Item[T]) -> None:
        """Let a request wait."""
        group = item.group
        line = self._lines.get(group)
        if line is None:
            curve = self._costs.curve(group.key, group.size_bucket)
            served = self._models.arrive(group.model)
            line = self._lines[group] = _Line(group, curve, self._weights, served)
        line.add(item)
        self._count += 1
        if line.rows >= group.max_rows:
            self._full[line] = None
        look_at_s = item.deadline_s - line.curve.least_s()
        self._look_at_s = min(self._look_at_s, look_at_s)

    def add_apart(self, items: Iterable[Item[T]]) -> None:
        """Let requests wait that may share a batch with each other and no others."""
        self._set_apart += 1
        for item in items:
            self.add(replace(item, group=replace(item.group, apart=self._set_apart)))

    def next_step(
        self, now: float, *, running: int, ready: Callable[[str], bool] = _always
    ) -> Step[T]:
        """Say what to do at `now`.

        Args:
            now: monotonic seconds.
            running: how many batches the runners hold, but for those that are so late
                that the others should not wait for them.
            ready: whether a model version ("name/version") can run now; one that
                cannot waits without holding up the others.
        """
        free_at_s = self._running.free_at_s(now, running)
        if now >= self._look_at_s and (expired := self._take_expired(now)):
            return Expire(expired)
        if not self._lines:
            return Idle()
        if self._full and now >= self._shed_at_s:
            shed = self._take_surplus(now, free_at_s)
            if shed is not None:
                return shed
        wake_at_s = self._look_at_s
        if running == 0 or (running < self._depth and self._any_full(ready)):
            wanted_at_s = free_at_s - self._lead_s(free_at_s)
            if now < wanted_at_s:
                wake_at_s = min(wake_at_s, wanted_at_s)
            else:
                choice = self._choose(free_at_s, ready, idle=running == 0)
                if choice is not None:
                    return self._flush(choice, now)
        return WaitUntil(wake_at_s)

    def _lead_s(self, free_at_s: float) -> float:
        """How long before it is wanted the next batch is handed over.

        Where no deadline is near, an early choice harms nobody, and a consumer that
        is busy with deliveries does not keep the accelerator waiting.
        """
        if not all(line.is_patient(free_at_s) for line in self._full):
            return LEAD_S
        return max(LEAD_S, EARLY_SHARE * self._running.last_s)

    def _any_full(self, ready: Callable[[str], bool]) -> bool:
        return any(ready(line.key) for line in self._full)

    def _take_expired(self, now: float) -> tuple[Item[T], ...]:
        """All that cannot make it even alone, were it to start now."""
        expired: list[Item[T]] = []
        look_at_s = math.inf
        for line in list(self._lines.values()):
            least_s = line.curve.least_s()
            for priority, queue in list(line.queues.items()):
                late = bisect_right(queue.deadlines, now + least_s)
                if late:
                    in_time = late - bisect_right(queue.deadlines, now)
                    line.curve.doubt(in_time)
                    expired.extend(self._remove(line, priority, range(late)))
                if queue.deadlines:
                    look_at_s = min(look_at_s, queue.deadlines[0] - least_s)
        self._look_at_s = max(look_at_s, math.nextafter(now, math.inf))
        return tuple(expired)

    def _choose(
        self, start_s: float, ready: Callable[[str], bool], *, idle: bool
    ) -> _Choice[T] | None:
        """The batch to run at `start_s`: of whom is owed too much, or the best one."""
        lines = [line for line in self._lines.values() if ready(line.key)]
        if len(lines) > 2 * MANY_LINES:
            # Looking at each of very many shapes would cost more than it gains.
            urgent = heapq.nsmallest(MANY_LINES, lines, key=_Line.head_s)
            behind = heapq.nsmallest(MANY_LINES, lines, key=_Line.served_so_far)
            lines = list(dict.fromkeys((*urgent, *behind)))
        choices: dict[str, list[_Choice[T]]] = {}
        for line in lines:
            choice = line.best(start_s, self._max_batch_bytes)
            if choice is not None:
                choices.setdefault(line.group.model, []).append(choice)
        if not choices:
            if not lines or not idle:
                return None
            return min(lines, key=_Line.served_so_far).last_hope(start_s)
        each_model = [
            _fairest(several, lambda choice: choice.line.served)
            for several in choices.values()
        ]
        served = self._models.served
        return _fairest(each_model, lambda choice: served[choice.line.group.model])

    def _flush(self, choice: _Choice[T], now: float) -> Flush[T]:
        line = choice.line
        self._running.began(now, line.curve.typical_s(choice.size))
        self._models.charge(line.group.model, choice.charge)
        line.served += choice.charge
        items: list[Item[T]] = []
        for priority, places in line.pick(choice, self._max_batch_bytes):
            items.extend(self._remove(line, priority, places))
        return Flush(tuple(items), choice.done_s)

    def _take_surplus(self, now: float, free_at_s: float) -> Shed[T] | None:
        """What cannot be answered whatever else runs: the cheapest of it to lose."""
        self._shed_at_s = now + SHED_EVERY_S
        shed: list[Item[T]] = []
        drain_s = free_at_s - now
        for line in list(self._full):
            drain_s += line.rows * line.row_s()
            for priority, places in line.surplus(free_at_s):
                shed.extend(self._remove(line, priority, places))
        if not shed:
            return None
        return Shed(tuple(shed), drain_s)

    def _remove(
        self, line: _Line[T], priority: Priority, places: Sequence[int]
    ) -> list[Item[T]]:
        items = line.remove(priority, places)
        self._count -= len(items)
        if line.rows < line.group.max_rows:
            self._full.pop(line, None)
        if not line.queues:
            del self._lines[line.group]
            self._models.leave(line.group.model)
        return items


class _Running:
    """When the batches that were handed over should be done."""

    def __init__(self) -> None:
        self._costs_s: deque[float] = deque()
        self._began_s = 0.0
        self.last_s = 0.0

    def began(self, now: float, cost_s: float) -> None:
        if not self._costs_s:
            self._began_s = now
        self._costs_s.append(cost_s)
        self.last_s = cost_s

    def free_at_s(self, now: float, running: int) -> float:
        """When the accelerator is free, as far as can be told."""
        while len(self._costs_s) > running:
            self._costs_s.popleft()
            self._began_s = now
        return max(now, self._began_s + sum(self._costs_s)) if self._costs_s else now


class _Accounts:
    """What each model was served, in seconds over weight."""

    def __init__(self) -> None:
        self.served: dict[str, float] = {}
        self._lines: dict[str, int] = {}
        self._front = 0.0

    def arrive(self, model: str) -> float:
        """One more line of this model; where its account stands."""
        lines = self._lines.get(model, 0)
        if not lines:
            # Who was away has not saved up turns, but still owes what it took.
            self.served[model] = max(self.served.get(model, 0.0), self._front)
        self._lines[model] = lines + 1
        return self.served[model]

    def leave(self, model: str) -> None:
        """One line of this model is empty."""
        self._lines[model] -= 1
        if not self._lines[model]:
            del self._lines[model]
        if len(self.served) > 2 * len(self._lines) + MANY_LINES:
            self.served = {
                each: served
                for each, served in self.served.items()
                if each in self._lines or served > self._front
            }

    def charge(self, model: str, charge: float) -> None:
        self._front = max(self._front, min(map(self.served.__getitem__, self._lines)))
        self.served[model] += charge


@dataclass(frozen=True, slots=True)
class _Choice(Generic[T]):
    """A batch that could run: `size` rows, of those who live until `done_s`."""

    line: _Line[T]
    size: int
    done_s: float
    score: float
    charge: float


def _fairest(
    choices: list[_Choice[T]], served: Callable[[_Choice[T]], float]
) -> _Choice[T]:
    """The best one, unless another is owed: then the one that is furthest behind."""
    best = max(choices, key=_score)
    if len(choices) == 1:
        return best
    bound = served(best)
    owed = [
        choice
        for choice in choices
        if bound - served(choice) >= OWED_BATCHES * choice.charge and choice is not best
    ]
    return min(owed, key=served) if owed else best


def _score(choice: _Choice[T]) -> float:
    return choice.score


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


class _Line(Generic[T]):
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
        return min(queue.deadlines[0] for queue in self.queues.values())

    def served_so_far(self) -> float:
        return self.served

    def is_patient(self, start_s: float) -> bool:
        """Whether some batches may run first, and all of these still be in time."""
        most_s = self.curve.cost_s(self.group.max_rows)
        return self.head_s() > start_s + PATIENT_BATCHES * most_s

    def row_s(self) -> float:
        """What a row costs in the largest batch, the cheapest way; 0: not known yet."""
        most = self.group.max_rows
        return self.curve.typical_s(most) / most if self.curve.known else 0.0

    def best(self, start_s: float, max_batch_bytes: int) -> _Choice[T] | None:
        """The batch with the best score, were it to start at `start_s`.

        Where no deadline is near, the larger of two that score almost alike: costs are
        noisy, and what a batch costs beside the accelerator is in none of them.
        """
        best: _Choice[T] | None = None
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
                best = _Choice(self, size, done_s, score, charge)
            top = max(top, score)
            if plan.all_of_them or size >= most:
                break
        return best

    def last_hope(self, start_s: float) -> _Choice[T]:
        """One request that may make it if it runs as fast as it ever did."""
        last_s = max(queue.deadlines[-1] for queue in self.queues.values())
        done_s = min(start_s + self.curve.least_s(), last_s)
        return _Choice(self, 1, done_s, 0.0, self.curve.cost_s(1))

    def pick(
        self, choice: _Choice[T], room_bytes: int
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
