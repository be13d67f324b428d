"""How long the pool makes a request wait, and how long its backlog takes to drain.

Nobody knows the whole pool: a worker sees the depth of its queues, how many consume
them, and how fast it serves by itself. It takes the others to be as fast. That is wrong
for a while when machines differ, and never by more than they differ.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Final

# Busy time in which half of what was learned fades: longer than a hiccup of the machine,
# shorter than a change that lasts.
HALF_LIFE_S: Final = 10.0
# Of the envelopes before, one more leaves this share: some ten are half of the memory.
KEPT: Final = 0.93
LEAST_RETRY_S: Final = 1.0
MOST_RETRY_S: Final = 300.0
SPREAD: Final = 0.5


@dataclass(frozen=True, slots=True)
class Depth:
    """One request queue as the broker counts it.

    `ready` are messages that wait for a worker, `consumers` the workers that take them.
    """

    model: str
    ready: int
    consumers: int


@dataclass(slots=True)
class _Decaying:
    """A quotient of two sums in which the past fades."""

    above: float = 0.0
    below: float = 0.0

    def add(self, above: float, below: float, kept: float) -> None:
        self.above = self.above * kept + above
        self.below = self.below * kept + below

    @property
    def quotient(self) -> float | None:
        return self.above / self.below if self.below > 0 else None


class ServedRate:
    """What a request costs this worker while it is busy, in seconds, for each model.

    Measured from the end of one batch to the end of the next while requests waited, so
    that decoding, publishing and the runner's hop are in it. A batch out of idleness
    says nothing: alone, a request costs many times its share of a full batch.
    """

    def __init__(self) -> None:
        self._seeds: dict[str, float] = {}
        self._each: dict[str, _Decaying] = {}
        self._all = _Decaying()
        self._ended_s = 0.0
        self._pressed = False

    def seed(self, model: str, costs_ms: Iterable[tuple[int, float]]) -> None:
        """Take a model's cost by batch size, from warm-up: its best is the first guess."""
        best = min((ms / size for size, ms in costs_ms if size > 0), default=None)
        if best is not None:
            self._seeds[model] = best / 1000

    def batch_ended(
        self, model: str, requests: int, ended_s: float, *, pressed: bool
    ) -> None:
        """A batch of so many is done; `pressed` if there is more to do at once."""
        if self._pressed and requests:
            took_s = max(ended_s - self._ended_s, 0.0)
            kept = 0.5 ** (took_s / HALF_LIFE_S)
            self._each.setdefault(model, _Decaying()).add(took_s, requests, kept)
            self._all.add(took_s, requests, kept)
        self._ended_s = ended_s
        self._pressed = pressed

    def seconds_each(self, model: str) -> float:
        """What one more request of a model costs; 0 while nothing is known."""
        learned = self._each.get(model)
        cost = None if learned is None else learned.quotient
        return self._seeds.get(model, 0.0) if cost is None else cost

    def seconds_any(self) -> float:
        """What one more request of any model costs, as they have come lately."""
        cost = self._all.quotient
        return max(self._seeds.values(), default=0.0) if cost is None else cost


class EnvelopeSize:
    """How many requests a message holds, for each model: 1, and more after an outage."""

    def __init__(self) -> None:
        self._each: dict[str, _Decaying] = {}

    def came(self, model: str, requests: int) -> None:
        """A message brought so many."""
        self._each.setdefault(model, _Decaying()).add(requests, 1, KEPT)

    def mean(self, model: str) -> float:
        """Requests in a message."""
        known = self._each.get(model)
        size = None if known is None else known.quotient
        return 1.0 if size is None else size


@dataclass(frozen=True, slots=True)
class Backlog:
    """What waits in the queues, as work.

    Attributes:
        work_s: for each model, how long one worker would need for what waits.
        share_s: the same for this worker's share of the pool: how long it will need.
    """

    work_s: Mapping[str, float] = field(default_factory=dict)
    share_s: Mapping[str, float] = field(default_factory=dict)

    @property
    def drain_s(self) -> float:
        """Seconds until the queues are empty with the present pool, if none came."""
        return sum(self.share_s.values())

    def wait_s(self, model: str | None = None) -> float:
        """How long a request that arrives now waits in its queue.

        Models take turns, so a short line is served before a long one ends: of each
        other model only as much goes first as of its own. None asks for the longest.
        """
        if model is None:
            return self.drain_s
        own = self.share_s.get(model, 0.0)
        return sum(min(own, other) for other in self.share_s.values())


def backlog(depths: Iterable[Depth], rate: ServedRate, sizes: EnvelopeSize) -> Backlog:
    """What the depths of all classes of all models mean."""
    work: dict[str, float] = {}
    pool: dict[str, int] = {}
    for depth in depths:
        requests = depth.ready * sizes.mean(depth.model)
        cost_s = requests * rate.seconds_each(depth.model)
        work[depth.model] = work.get(depth.model, 0.0) + cost_s
        pool[depth.model] = max(pool.get(depth.model, 1), depth.consumers)
    return Backlog(work, {model: each / pool[model] for model, each in work.items()})


def retry_after_s(wait_s: float, left_s: float, chance: float) -> float:
    """When a request that was shed should be sent again.

    By then the line has shrunk to what its deadline bears, if nothing else comes.

    Args:
        wait_s: the pool's wait now.
        left_s: the time it had until its deadline.
        chance: from 0 to 1, at random: those shed together come back apart.
    """
    soonest_s = max(wait_s - left_s, LEAST_RETRY_S)
    return min(soonest_s * (1 + SPREAD * chance), MOST_RETRY_S)
