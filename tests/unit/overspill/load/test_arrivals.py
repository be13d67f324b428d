from __future__ import annotations

import itertools
from random import Random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from overspill.load.arrivals import Phase, Replay, Spacing, Steady, read_bursts
from overspill.load.quantities import BadQuantity


def until(arrivals: Steady, end_s: float, seed: int = 1) -> list[float]:
    times = arrivals.offsets_s(Random(seed))
    return list(itertools.takewhile(lambda at: at < end_s, times))


def test_constant_arrivals_are_evenly_spaced() -> None:
    times = until(Steady.at(50, Spacing.CONSTANT), 2.0)

    assert len(times) == 100
    assert times == pytest.approx([n / 50 for n in range(100)])


def test_poisson_arrivals_have_the_rate_and_the_spread_of_a_poisson_process() -> None:
    times = until(Steady.at(1000), 20.0)
    gaps = [after - before for before, after in itertools.pairwise(times)]
    mean = sum(gaps) / len(gaps)
    variance = sum((gap - mean) ** 2 for gap in gaps) / len(gaps)

    # 20,000 arrivals: four standard errors are 2.8 % of the mean.
    assert mean == pytest.approx(1 / 1000, rel=0.03)
    # An exponential's standard deviation is its mean.
    assert variance**0.5 == pytest.approx(mean, rel=0.05)


def test_bursts_keep_each_phase_to_its_rate() -> None:
    bursts = Steady(read_bursts("200/s:1s,0/s:0.5s,20/s:2s"), Spacing.CONSTANT)
    times = until(bursts, 7.0)

    assert bursts.rate_per_s == pytest.approx(240 / 3.5)
    for round_s in (0.0, 3.5):
        counts = [
            sum(round_s + low <= at < round_s + high for at in times)
            for low, high in ((0.0, 1.0), (1.0, 1.5), (1.5, 3.5))
        ]
        assert counts == pytest.approx([200, 0, 40], abs=1)


def test_the_same_seed_gives_the_same_arrivals_and_another_seed_others() -> None:
    schedule = Steady.at(100)

    assert until(schedule, 1.0, seed=7) == until(schedule, 1.0, seed=7)
    assert until(schedule, 1.0, seed=7) != until(schedule, 1.0, seed=8)


def test_a_scaled_schedule_is_the_same_pattern_at_another_rate() -> None:
    schedule = Steady.at(100)

    twice = until(schedule.scaled(2), 1.0)

    assert twice == pytest.approx([at / 2 for at in until(schedule, 2.0)])


def test_a_trace_is_replayed_once_and_at_the_speed_asked() -> None:
    trace = Replay((0.0, 0.5, 2.0))

    assert trace.rate_per_s == pytest.approx(1.0)
    assert list(trace.scaled(2).offsets_s(Random(0))) == [0.0, 0.25, 1.0]


@given(
    phases=st.lists(
        st.builds(Phase, st.floats(0.5, 500), st.floats(0.05, 3)),
        min_size=1,
        max_size=4,
    ),
    spacing=st.sampled_from(Spacing),
)
def test_arrivals_never_go_back_in_time(phases: list[Phase], spacing: Spacing) -> None:
    times = list(
        itertools.islice(Steady(tuple(phases), spacing).offsets_s(Random(3)), 200)
    )

    assert times == sorted(times)
    assert times[0] >= 0


@pytest.mark.parametrize("text", ["200/s", "200/s:", "fast:1s", "200/s:0s", ""])
def test_a_burst_that_cannot_be_read_says_how_to_write_one(text: str) -> None:
    with pytest.raises(BadQuantity, match="write"):
        read_bursts(text)


def test_a_rate_of_nothing_is_refused() -> None:
    with pytest.raises(BadQuantity, match="over 0"):
        Steady.at(0)
