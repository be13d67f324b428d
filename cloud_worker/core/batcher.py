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
from bisect import bisect_right
from collections import deque
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Final, Generic, TypeVar

from broker.messages import Priority
from cloud_worker.core.costs import Costs
from cloud_worker.core.line import Choice, Group, Item, Line

WEIGHTS: Final[Mapping[Priority, int]] = {
    Priority.HI: 16,
    Priority.NORM: 4,
    Priority.BULK: 1,
}
DEPTH: Final = 2
LEAD_S: Final = 0.003
EARLY_SHARE: Final = 0.5
OWED_BATCHES: Final = 2.0
MANY_LINES: Final = 16
SHED_EVERY_S: Final = 0.05

T = TypeVar("T")


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
        self._lines: dict[Group, Line[T]] = {}
        self._full: dict[Line[T], None] = {}
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
            line = self._lines[group] = Line(group, curve, self._weights, served)
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
    ) -> Choice[T] | None:
        """The batch to run at `start_s`: of whom is owed too much, or the best one."""
        lines = [line for line in self._lines.values() if ready(line.key)]
        if len(lines) > 2 * MANY_LINES:
            # Looking at each of very many shapes would cost more than it gains.
            urgent = heapq.nsmallest(MANY_LINES, lines, key=Line.head_s)
            behind = heapq.nsmallest(MANY_LINES, lines, key=Line.served_so_far)
            lines = list(dict.fromkeys((*urgent, *behind)))
        choices: dict[str, list[Choice[T]]] = {}
        for line in lines:
            choice = line.best(start_s, self._max_batch_bytes)
            if choice is not None:
                choices.setdefault(line.group.model, []).append(choice)
        if not choices:
            if not lines or not idle:
                return None
            return min(lines, key=Line.served_so_far).last_hope(start_s)
        each_model = [
            _fairest(several, lambda choice: choice.line.served)
            for several in choices.values()
        ]
        served = self._models.served
        return _fairest(each_model, lambda choice: served[choice.line.group.model])

    def _flush(self, choice: Choice[T], now: float) -> Flush[T]:
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
        self, line: Line[T], priority: Priority, places: Sequence[int]
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


def _fairest(
    choices: list[Choice[T]], served: Callable[[Choice[T]], float]
) -> Choice[T]:
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


def _score(choice: Choice[T]) -> float:
    return choice.score
