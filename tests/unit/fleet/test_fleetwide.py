"""Which of many rollouts a look has to do with: no more for a longer history."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

import pytest
from typing_extensions import override

from fleet.core.devices import Device
from fleet.core.fleetwide import Fleet, advance_all, relevant
from fleet.core.following import Now
from fleet.core.rollouts import Course, Rollout, RolloutState, Told
from tests.rollouts import Small

AGENTS = [f"a{each}" for each in range(10)]
LABELS = {agent: {"site": str(place % 5)} for place, agent in enumerate(AGENTS)}
R = RolloutState


def done(generation: int, *targets: str, **more: Any) -> Rollout:
    named = frozenset(targets) if targets else None
    return Rollout(generation, "fashion", "2", 0, named, **more)


def kept(rollouts: list[Rollout], **states: RolloutState) -> list[int]:
    every = {each.generation: R.DONE for each in rollouts}
    every |= {int(name[1:]): state for name, state in states.items()}
    return [each.generation for each in relevant(rollouts, every)]


@pytest.mark.parametrize(
    ("rollouts", "left"),
    [
        ([done(1, "a", "b"), done(2, "a"), done(3, "b")], [3, 2]),
        ([done(1, "a", "b", "c"), done(2, "a"), done(3, "b")], [3, 2, 1]),
        ([done(1), done(2, "a"), done(3, "b")], [3, 2, 1]),
        ([done(1, "a"), done(2)], [2]),
        ([done(1, query="x"), done(2, query="y"), done(3, query="x")], [3, 2]),
        ([done(1, "a", query="x"), done(2, query="x")], [2]),
        ([done(1, "a", query="x"), done(2, query="y")], [2, 1]),
        # Whoever is named in both matches the same query.
        ([done(1, "a", "b", query="x"), done(2, "a", query="x"), done(3, "b")], [3, 2]),
        ([done(1, query="x"), done(2, "a", query="x")], [2, 1]),
    ],
)
def test_what_newer_ones_together_have_taken_is_looked_at_no_more(
    rollouts: list[Rollout], left: list[int]
) -> None:
    assert kept(rollouts) == left


def test_only_what_is_through_takes_from_what_has_ended() -> None:
    rollouts = [done(1, "a", "b"), done(2, "a"), done(3, "b")]
    assert kept(rollouts, _3=R.RUNNING) == [3, 2, 1]
    assert kept(rollouts, _3=R.ROLLED_BACK) == [3, 2, 1]
    assert kept(rollouts, _3=R.ABORTED) == [2, 1]
    assert kept(rollouts, _1=R.PAUSED) == [3, 2, 1]


def test_the_courses_of_rollouts_whose_agents_are_all_taken_are_not_read() -> None:
    """Five hundred are done, each to a query of its own."""
    rollouts = [
        done(each, query=f"site={each % 5} and not x={each}") for each in range(1, 501)
    ]
    states = {each.generation: R.DONE for each in rollouts}
    courses = Counted(rollouts)
    devices = {each: Device(each, 0, 0) for each in AGENTS}
    fleet = Fleet(devices, LABELS, {}, Now(0))
    came = advance_all(relevant(rollouts, states), states, courses, fleet)
    assert [each.rollout.generation for each in came] == [500, 499, 498, 497, 496]
    assert courses.read == {500, 499, 498, 497, 496}
    # One that is on its way is looked at whatever newer ones have.
    states[3] = R.PAUSED
    courses.paused = 3
    came = advance_all(relevant(rollouts, states), states, courses, fleet)
    assert [each.rollout.generation for each in came][-1] == 3


class Counted(Mapping[int, Course]):
    """The courses of rollouts that have told all of their sites, and which were read."""

    def __init__(self, rollouts: list[Rollout]) -> None:
        self._rollouts = {each.generation: each for each in rollouts}
        self.read: set[int] = set()
        self.paused = 0

    @override
    def __getitem__(self, generation: int) -> Course:
        self.read.add(generation)
        told = {
            agent: Told(agent, 0, 0)
            for agent in AGENTS
            if LABELS[agent]["site"] == str(generation % 5)
        }
        state = R.PAUSED if generation == self.paused else R.DONE
        return Course(state=state, told=told)

    @override
    def __iter__(self) -> Iterator[int]:
        return iter(self._rollouts)

    @override
    def __len__(self) -> int:
        return len(self._rollouts)


def test_who_joins_later_is_found_by_the_newest_that_is_for_it() -> None:
    fleet = Small(["a", "b"])
    old = fleet.start("2")
    fleet.run(looks=3)
    new = fleet.start("3", targets=frozenset({"a", "b"}))
    fleet.run(looks=3)
    assert (fleet.course(old).state, fleet.course(new).state) == (R.DONE, R.DONE)
    fleet.joins("c")
    fleet.run(looks=3)
    assert "c" in fleet.told(old)
    assert fleet.desired("c")["fashion"].version == "2"
