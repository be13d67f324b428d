from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from edge_agent.core.pool_clock import PoolClock

YEAR = 365 * 86_400_000.0
KNOWN = PoolClock(1_000.0, known=True)


def test_the_first_short_round_trip_is_believed_at_once() -> None:
    assert PoolClock().after(90.0, 20.0) == PoolClock(100.0, known=True)


def test_small_differences_are_smoothed() -> None:
    assert KNOWN.after(1_090.0, 20.0).offset_ms == pytest.approx(1_020.0)
    assert KNOWN.after(-3_000.0, 0.0).offset_ms == pytest.approx(200.0)


@pytest.mark.parametrize("jump", [YEAR, -YEAR, 6_000.0, -6_000.0])
def test_a_clock_that_jumped_is_followed_at_once(jump: float) -> None:
    jumped = KNOWN.after(990.0 + jump, 20.0)
    assert jumped == PoolClock(1_000.0 + jump, known=True)


def test_a_result_that_waited_for_hours_moves_nothing_that_may_be_true() -> None:
    hours = 6 * 3_600_000.0
    assert KNOWN.after(1_000.0 - hours, hours + 10.0) == KNOWN
    assert KNOWN.after(1_000.0 - hours, None) == KNOWN


def test_even_a_long_round_trip_says_what_cannot_be() -> None:
    minute = 60_000.0
    # The pool's clock showed this already, and can only be later by now.
    assert KNOWN.after(YEAR, minute).offset_ms == YEAR
    assert KNOWN.after(YEAR, None).offset_ms == YEAR
    # The result is not older than its request.
    assert KNOWN.after(-YEAR, minute).offset_ms == minute - YEAR


def test_a_guess_is_not_taken_for_knowledge() -> None:
    guess = PoolClock().after(YEAR, None)
    assert not guess.known
    assert guess.after(50.0, 0.0) == PoolClock(50.0, known=True)


@given(
    true=st.floats(-1e11, 1e11),
    start=st.floats(-1e11, 1e11),
    trips=st.lists(st.tuples(st.floats(0, 1e7), st.floats(0, 1)), max_size=20),
)
def test_whatever_comes_it_is_no_further_off_than_the_longest_short_trip(
    true: float, start: float, trips: list[tuple[float, float]]
) -> None:
    clock = PoolClock(start)
    for trip_ms, part in trips:
        clock = clock.after(true - trip_ms * part, trip_ms)
        if clock.known:
            assert abs(clock.offset_ms - true) <= 5_000.0 + 2_000.0


@given(true=st.floats(-1e11, 1e11), start=st.floats(-1e11, 1e11))
def test_after_any_result_nothing_expires_before_the_result_was_made(
    true: float, start: float
) -> None:
    for trip_ms in (None, 0.0, 3_000.0, 1e9):
        late_by_ms = min(trip_ms or 0.0, 100.0)
        seen_ms = true - late_by_ms
        assert PoolClock(start).after(seen_ms, trip_ms).offset_ms >= seen_ms
