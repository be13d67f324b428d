from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from edge_agent.core.pull_budget import BURST_S, DAY_S, DaySpent, Rate


@given(
    st.integers(1, 10**7),
    st.lists(
        st.tuples(st.integers(1, 2**20), st.floats(0, 100)), min_size=1, max_size=50
    ),
)
def test_who_waits_as_told_never_takes_more_than_the_rate_and_one_burst(
    bytes_per_s: int, pieces: list[tuple[int, float]]
) -> None:
    now_s = 1000.0
    rate = Rate.full(bytes_per_s, now_s)
    taken = 0
    for size, idle_s in pieces:
        now_s += idle_s
        rate = rate.taking(size, now_s)
        taken += size
        now_s += rate.wait_s(now_s)
        allowed = bytes_per_s * (now_s - 1000.0 + BURST_S)
        assert taken <= allowed * (1 + 1e-9) + 1


def test_bytes_that_did_not_come_are_no_longer_owed() -> None:
    rate = Rate.full(1000, 0.0).taking(5000, 0.0)
    assert rate.wait_s(0.0) == 4.0
    assert rate.taking(-5000, 0.0).wait_s(0.0) == 0.0


def test_a_clock_that_goes_back_brings_the_rate_nothing() -> None:
    rate = Rate.full(1000, 100.0).taking(3000, 100.0)
    assert rate.wait_s(50.0) == 2.0
    assert rate.taking(0, 50.0).wait_s(100.0) == 2.0


def test_a_days_budget_is_whole_again_on_the_next_day() -> None:
    spent = DaySpent().on(5 * DAY_S + 60).adding(900)
    assert not spent.has_room(200, 1000)
    assert spent.has_room(100, 1000)
    assert spent.has_room(10**9, None)
    assert spent.ends_in_s(5 * DAY_S + 60) == DAY_S - 60
    assert spent.on(6 * DAY_S).has_room(200, 1000)


def test_a_clock_that_goes_back_brings_no_new_budget() -> None:
    spent = DaySpent().on(5 * DAY_S).adding(1000)
    assert spent.on(3 * DAY_S) == spent
    assert not spent.on(3 * DAY_S).has_room(1, 1000)


def test_a_chunk_larger_than_the_budget_may_be_a_days_first() -> None:
    # Else a device with a small budget would never come to its model.
    today = DaySpent().on(DAY_S)
    assert today.has_room(128 * 1024, 1000)
    assert not today.adding(128 * 1024).has_room(1, 1000)
