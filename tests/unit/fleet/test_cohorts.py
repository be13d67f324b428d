"""Who comes first, and how far each wave reaches."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fleet.core.cohorts import BadWaves, cut, in_order, is_last, place, read_waves
from fleet.core.rollouts import Rate, Rollout, Wave

AGENTS = [f"a{each}" for each in range(200)]


def rollout(
    *waves: Wave, rate: Rate | None = None, generation: int = 1, seed: int = 0
) -> Rollout:
    return Rollout(generation, "fashion", "2", 0, waves=waves, rate=rate, seed=seed)


def cuts(one: Rollout, population: int) -> list[int]:
    reached = []
    for index in range(100):
        reached.append(cut(one, index, population))
        if is_last(one, index, population):
            return reached
    raise AssertionError("no last wave")


@given(st.permutations(AGENTS[:50]))
def test_the_order_depends_on_names_and_seed_alone(agents: list[str]) -> None:
    assert in_order(rollout(Wave()), agents) == in_order(rollout(Wave()), AGENTS[:50])


def test_each_rollout_has_an_order_of_its_own_unless_they_share_a_seed() -> None:
    first = in_order(rollout(Wave(), generation=1), AGENTS)
    assert in_order(rollout(Wave(), generation=2), AGENTS) != first
    assert in_order(rollout(Wave(), generation=2, seed=1), AGENTS) == first


def test_who_comes_and_goes_changes_nobody_elses_place_in_the_order() -> None:
    every = in_order(rollout(Wave()), AGENTS)
    some = set(AGENTS[::3])
    assert in_order(rollout(Wave()), some) == [each for each in every if each in some]


def test_places_are_spread_evenly() -> None:
    early = sum(place(7, f"agent-{each}") < 0.1 for each in range(10_000))
    assert 900 < early < 1100


@pytest.mark.parametrize(
    ("text", "population", "reaches"),
    [
        ("1%,10%,50%,100%", 1000, [10, 100, 500, 1000]),
        ("1%, 10%, 50%", 1000, [10, 100, 500, 1000]),
        # A share is rounded up: no wave is of nobody.
        ("1%,10%", 30, [1, 3, 30]),
        # A small fleet is through before its waves are.
        ("10, 100, all", 5, [5]),
        ("10,100", 1000, [10, 100, 1000]),
        ("1, 50%", 4, [1, 2, 4]),
        ("all", 7, [7]),
        ("100%", 7, [7]),
        ("10x2", 100, [10, 30, 70, 100]),
        ("5x1", 12, [5, 10, 12]),
        ("10x1.5", 60, [10, 25, 47, 60]),
    ],
)
def test_waves_reach_as_far_as_was_written(
    text: str, population: int, reaches: list[int]
) -> None:
    waves, rate = read_waves(text)
    assert cuts(rollout(*waves, rate=rate), population) == reaches


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("", "no wave is named"),
        ("some", "wave 'some' is neither a number, a percentage nor `all`"),
        ("0%", "above 0 and at most 100"),
        ("101%", "above 0 and at most 100"),
        ("0", "a whole number from 1 on"),
        ("1.5", "a whole number from 1 on"),
        ("10%,5%", "do not grow"),
        ("10,10", "do not grow"),
        ("all,5", "nothing can follow a wave of all"),
        ("0x2", "the base is at least 1"),
        ("10x0.5", "the base is at least 1"),
        (",".join(str(each) for each in range(1, 200)), "more than 100"),
    ],
)
def test_waves_that_cannot_be_are_refused_by_name(text: str, says: str) -> None:
    with pytest.raises(BadWaves) as refused:
        read_waves(text)
    assert says in str(refused.value)


def test_a_shadow_comes_first_and_is_never_the_last_wave() -> None:
    one = rollout(Wave(shadow=True), Wave())
    assert (one.generation, one.deploy_generation, one.back_generation) == (1, 2, 3)
    assert not is_last(one, 0, 5)
    assert is_last(one, 1, 5)


def test_a_rate_may_follow_a_shadow() -> None:
    one = rollout(Wave(count=2, shadow=True), rate=Rate(3))
    assert cuts(one, 20) == [2, 3, 9, 20]


@given(
    st.integers(1, 40),
    st.floats(1, 5),
    st.integers(0, 500),
)
def test_a_rate_never_shrinks_and_ends_with_all(
    base: int, factor: float, population: int
) -> None:
    one = rollout(rate=Rate(base, factor))
    reached = [cut(one, index, population) for index in range(501)]
    assert reached == sorted(reached)
    assert reached[-1] == population
