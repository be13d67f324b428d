"""Whether the gates stop what is bad and let pass what is good, on a simulated clock.

Fleets are seeded: agents differ in how much they are asked, in how well any version does
on their pictures and in how fast they pull; some are away, have a full disk, hang, or
return by themselves though nothing is wrong. What decides is the real `fleet.core`;
the clock goes a minute or three at a time, and nothing else is simulated of the fleet.

A bad version has its labels shuffled: it is as sure and as fast as before, and agrees
with the cloud one time in ten. Its agents are not on probation here, so that it is the
fleet's gates alone that must find it.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import Executor, ProcessPoolExecutor
from dataclasses import dataclass
from multiprocessing import get_context
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from benchmarks.limits import Limit, median, progress, quantile, report
from broker.messages import HealthReport, SlotReport
from fleet.core.advancing import View, advance
from fleet.core.cohorts import in_order
from fleet.core.devices import Device
from fleet.core.following import Now
from fleet.core.gates import DEFAULT_GATES
from fleet.core.rollouts import (
    Course,
    Rollout,
    RolloutState,
    Wave,
    WayBack,
    begun,
    desired_of,
)

MODEL: Final = "fashion"
OLD, NEW = "1", "2"
AGENTS: Final = 1000
# A minute a tick while a bad version should be found, then three.
TICK_S: Final = 60.0
CLOSELY_S: Final = 1800.0
LATER_TICK_S: Final = 180.0
LONGEST_S: Final = 3 * 86_400.0
SOAK_S: Final = 600.0
AUDITED: Final = 0.01
SPILLED: Final = 0.12
GOOD_ROLLOUTS: Final = 100
BAD_ROLLOUTS: Final = 20
MOST_EXPOSED: Final = 10
MOST_PAUSED: Final = 5
OF_BEFORE: Final = SlotReport(model=MODEL, active=OLD)
NO_HEALTH: Final = HealthReport()
ENDED: Final = frozenset(
    {
        RolloutState.DONE,
        RolloutState.FAILED,
        RolloutState.ROLLED_BACK,
        RolloutState.PAUSED,
        RolloutState.AWAITING_APPROVAL,
    }
)
Numbers = NDArray[np.float64]
Counts = NDArray[np.int64]


@dataclass(frozen=True, slots=True)
class Version:
    """What a version does, beside the one before: all of it per request.

    Attributes:
        agreement: how much more (or less) it agrees with the cloud, on all pictures.
        fixed: where set, it agrees so much, whatever the picture.
        errors: how many it fails.
        slower: how many times as long it takes.
    """

    agreement: float = 0.0
    fixed: float | None = None
    errors: float = 0.0005
    slower: float = 1.0


GOOD: Final = Version()
BETTER: Final = Version(agreement=0.01)
SHUFFLED: Final = Version(fixed=0.1)
WORSE: Final = Version(agreement=-0.1)
CRASHING: Final = Version(errors=0.3)
SLOW: Final = Version(slower=3.0)


@dataclass(frozen=True, slots=True)
class Came:
    """How one rollout ended.

    Attributes:
        state: in which it ended or waits for a person.
        reason: why.
        exposed: how many agents ever served the version.
        left: how many of them still do, though it was rolled back.
        stopped_s: after how long it no longer went on by itself.
    """

    state: RolloutState
    reason: str
    exposed: int
    left: int
    stopped_s: float


class Agents:
    """A fleet that does what it is desired, as well as each agent can."""

    def __init__(self, count: int, version: Version, seed: int) -> None:
        self.rng = rng = np.random.default_rng(seed)
        self.version = version
        self.now_s = 0.0
        self.names = [f"agent-{each:04}" for each in range(count)]
        self.index = {name: at for at, name in enumerate(self.names)}
        self.per_s: Numbers = rng.lognormal(np.log(120 / 3600), 1.0, count)
        self.easy: Numbers = np.clip(rng.normal(0.92, 0.03, count), 0.7, 0.99)
        self.hard: Numbers = np.clip(self.easy - 0.3, 0, 1)
        self.p50_ms: Numbers = rng.lognormal(np.log(8), 0.4, count)
        self.pull_s: Numbers = rng.lognormal(np.log(60), 1.0, count)
        fate = rng.random(count)
        self.full: NDArray[np.bool_] = fate < 0.01
        self.hangs: NDArray[np.bool_] = (fate >= 0.01) & (fate < 0.02)
        self.returns: NDArray[np.bool_] = (fate >= 0.02) & (fate < 0.025)
        self.here: NDArray[np.bool_] = rng.random(count) > 0.03
        self.seen_ms: Counts = np.zeros(count, np.int64)
        self.serves: NDArray[np.int64] = np.zeros(count, np.int64)
        self.exposed: set[int] = set()
        self.slots: dict[int, SlotReport] = {}
        self.began_s: dict[int, float] = {}
        self.replaced: dict[int, HealthReport] = {}
        # A day of the version before, on each.
        asked = rng.poisson(self.per_s * 86_400)
        self.before = self._health(asked, np.zeros(count, np.int64), GOOD)
        self.counts = {key: np.zeros(count, np.int64) for key in self.before}

    def live(self, now_s: float) -> None:
        """Time goes by: some come and go, all that serve the version are asked."""
        spent_s, self.now_s = now_s - self.now_s, now_s
        away = self.rng.random(len(self.names))
        minutes = spent_s / 60
        self.here = np.where(self.here, away > 0.0005 * minutes, away < 0.015 * minutes)
        self.seen_ms[self.here] = int(now_s * 1000)
        asked = self.rng.poisson(self.per_s * spent_s) * (self.serves > 0)
        errors = self.rng.binomial(asked, self.version.errors)
        for key, more in self._health(asked, errors, self.version).items():
            self.counts[key] += more

    def obey(self, rollout: Rollout, course: Course, now_s: float) -> None:
        """Each does the next thing towards what is desired of it, if it is there."""
        for name in course.told:
            at = self.index[name]
            wanted = desired_of(rollout, course, name)
            if wanted is None or not self.here[at]:
                continue
            held = self.slots.get(at)
            if wanted.version == OLD:
                self.serves[at] = 0
                self.slots[at] = self._slot(at, OLD, "swapped", wanted.generation)
            elif held is None or held.generation < wanted.generation:
                self.began_s[at] = now_s
                self.slots[at] = self._slot(at, OLD, "pulling", wanted.generation)
            elif held.state == "pulling" or held.active == NEW:
                self.slots[at] = self._gone_on(at, now_s, wanted.generation)

    def _gone_on(self, at: int, now_s: float, generation: int) -> SlotReport:
        spent_s = now_s - self.began_s[at]
        if self.full[at]:
            reason = "the disk has 3 bytes free"
            return self._slot(at, OLD, "refused", generation, reason=reason)
        if not self.serves[at] and (self.hangs[at] or spent_s < self.pull_s[at]):
            pulled = int(min(1.0, spent_s / self.pull_s[at]) * 750_000)
            if self.hangs[at]:
                pulled = 131_072
            return self._slot(at, OLD, "pulling", generation, pulled=pulled)
        if self.returns[at]:
            reason = "ended the process"
            return self._slot(at, OLD, "returned", generation, reason=reason)
        self.serves[at] = 1
        self.exposed.add(at)
        return self._slot(at, NEW, "swapped", generation)

    def devices(self) -> dict[str, Device]:
        """As the inventory would have them."""
        return {
            name: Device(
                name,
                0,
                int(self.seen_ms[at]),
                (self.slots.get(at, OF_BEFORE),),
            )
            for name, at in self.index.items()
        }

    def _health(
        self, asked: Counts, errors: Counts, version: Version
    ) -> dict[str, Counts]:
        rng, answered = self.rng, asked - errors
        easy = self.easy + version.agreement if version.fixed is None else version.fixed
        hard = self.hard + version.agreement if version.fixed is None else version.fixed
        shape = len(asked)
        spilled = rng.binomial(answered, SPILLED)
        chosen = rng.binomial(answered - spilled, AUDITED)
        agreed = rng.binomial(chosen, np.clip(np.broadcast_to(easy, shape), 0, 1))
        alike = rng.binomial(spilled, np.clip(np.broadcast_to(hard, shape), 0, 1))
        return {
            "requests": asked,
            "errors": errors,
            "spilled": spilled,
            "chosen": chosen,
            "chosen_agreed": agreed,
            "compared": chosen + spilled,
            "agreed": agreed + alike,
        }

    def _slot(
        self,
        at: int,
        active: str,
        state: Any,  # noqa: ANN401 - one of the words of the wire
        generation: int,
        *,
        reason: str | None = None,
        pulled: int = 0,
    ) -> SlotReport:
        new = active == NEW
        return OF_BEFORE.model_copy(
            update={
                "active": active,
                "state": state,
                "generation": generation,
                "reason": reason,
                "pulled_bytes": pulled,
                "health": self._report(self.counts, at, self.version.slower)
                if new
                else None,
                "before": self._before(at) if new else None,
            }
        )

    def _before(self, at: int) -> HealthReport:
        if at not in self.replaced:
            self.replaced[at] = self._report(self.before, at, 1.0)
        return self.replaced[at]

    def _report(
        self, counts: Mapping[str, Counts], at: int, slower: float
    ) -> HealthReport:
        said: dict[str, float] = {key: int(each[at]) for key, each in counts.items()}
        jitter = 1 + 0.1 * float(self.rng.random())
        said["p50_ms"] = float(self.p50_ms[at]) * slower * jitter
        # A hundred thousand a rollout: validating each would be most of the time.
        return NO_HEALTH.model_copy(update=said)


def roll_out(version: Version, seed: int, count: int = AGENTS) -> Came:
    """One rollout by the default gates in waves of 1, 10, 50 and 100 %."""
    agents = Agents(count, version, seed)
    rollout = Rollout(
        generation=seed + 1,
        model=MODEL,
        version=NEW,
        started_at_ms=0,
        way_back=WayBack(OLD, 2),
        epoch=1,
        waves=tuple(Wave(share=each, soak_s=SOAK_S) for each in (0.01, 0.1, 0.5, 1.0)),
        gates=DEFAULT_GATES,
    )
    order = in_order(rollout, agents.names)
    course = begun(rollout)
    stopped_s: float | None = None
    for now_s in _ticks():
        agents.live(now_s)
        agents.obey(rollout, course, now_s)
        view = View(agents.devices(), order, Now(int(now_s * 1000)))
        course = advance(rollout, course, view).course
        if stopped_s is None and course.state is not RolloutState.RUNNING:
            stopped_s = now_s
        if course.state in ENDED:
            break
    if course.state is RolloutState.ROLLED_BACK:
        _come_back(agents, rollout, course, now_s)
    left = int(agents.serves[sorted(agents.exposed)].sum()) if agents.exposed else 0
    return Came(
        course.state,
        course.reason or "",
        exposed=len(agents.exposed),
        left=left if course.state is RolloutState.ROLLED_BACK else 0,
        stopped_s=now_s if stopped_s is None else stopped_s,
    )


def _come_back(agents: Agents, rollout: Rollout, course: Course, now_s: float) -> None:
    """Half a day more, for those who were away."""
    for tick in range(240):
        agents.live(now_s + tick * LATER_TICK_S)
        agents.obey(rollout, course, now_s + tick * LATER_TICK_S)


def _ticks() -> Iterator[float]:
    now_s = 0.0
    while now_s < LONGEST_S:
        now_s += TICK_S if now_s < CLOSELY_S else LATER_TICK_S
        yield now_s


def measure(
    good: int = GOOD_ROLLOUTS, bad: int = BAD_ROLLOUTS
) -> tuple[dict[str, object], list[Limit]]:
    """Figures and limits of the gates.

    Args:
        good: how many rollouts of versions that are as good or a little better.
        bad: how many of a version with shuffled labels; a quarter of other kinds.
    """
    # Each rollout is a world of its own, so one runs on every core.
    with ProcessPoolExecutor(mp_context=get_context("spawn")) as pool:
        return _measure(pool, good, bad)


def _measure(
    pool: Executor, good: int, bad: int
) -> tuple[dict[str, object], list[Limit]]:
    figures: dict[str, object] = {}
    passed = _came(
        pool,
        "good rollouts",
        [(GOOD if each % 2 else BETTER, each) for each in range(good)],
    )
    wrong = [each for each in passed if each.state is not RolloutState.DONE]
    figures["good rollouts"] = good
    figures["good: paused wrongly"] = len(wrong)
    figures["good: why"] = sorted({each.reason for each in wrong})
    figures["good: hours to all, median"] = round(_hours(passed, 0.5), 1)
    figures["good: hours to all, slowest"] = round(_hours(passed, 1.0), 1)
    kinds = {
        "shuffled labels": SHUFFLED,
        "10 points worse": WORSE,
        "fails 30 %": CRASHING,
        "3 times slower": SLOW,
    }
    limits = [
        Limit(
            "good rollouts paused wrongly, of 100", len(wrong) * 100 / good, MOST_PAUSED
        )
    ]
    for name, version in kinds.items():
        # Only the first has a limit; of the others a few show what to expect.
        tried = bad if version is SHUFFLED else max(1, bad // 4)
        seeds = range(1000, 1000 + tried)
        came = _came(pool, f"rollouts of {name}", [(version, each) for each in seeds])
        exposed = max(each.exposed for each in came)
        figures[f"{name}: rolled back"] = sum(
            each.state is RolloutState.ROLLED_BACK for each in came
        )
        figures[f"{name}: exposed at most"] = exposed
        figures[f"{name}: minutes to stop, median"] = round(60 * _hours(came, 0.5))
        figures[f"{name}: minutes to stop, slowest"] = round(60 * _hours(came, 1.0))
        if version is SHUFFLED:
            missed = sum(each.state is not RolloutState.ROLLED_BACK for each in came)
            left = sum(each.left for each in came)
            limits += [
                Limit("bad version: agents exposed, of 1,000", exposed, MOST_EXPOSED),
                Limit("bad version: rollouts not stopped", missed, 0),
                Limit("bad version: agents not rolled back", left, 0),
            ]
    return figures, limits


def _came(
    pool: Executor, what: str, rollouts: Sequence[tuple[Version, int]]
) -> list[Came]:
    """How each of them ended, in their order; says how far it is."""
    under_way = [pool.submit(roll_out, *each) for each in rollouts]
    came: list[Came] = []
    for each in under_way:
        came.append(each.result())
        if len(came) % 10 == 0 or len(came) == len(rollouts):
            progress(f"{what}, {AGENTS:,} agents: {len(came)} of {len(rollouts)}")
    return came


def _hours(came: list[Came], share: float) -> float:
    times = [each.stopped_s / 3600 for each in came]
    return median(times) if share == 0.5 else quantile(times, share)


def main() -> int:
    """Measure, print, and fail when a limit does not hold."""
    figures, limits = measure()
    return report(figures, limits, as_json="--json" in sys.argv)


if __name__ == "__main__":
    sys.exit(main())
