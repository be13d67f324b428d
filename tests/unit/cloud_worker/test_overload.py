"""What the depth of queues means in seconds."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cloud_worker.core.overload import (
    HALF_LIFE_S,
    LEAST_RETRY_S,
    MOST_RETRY_S,
    Backlog,
    Depth,
    EnvelopeSize,
    ServedRate,
    backlog,
    retry_after_s,
)


def busy(rate: ServedRate, model: str, requests: int, each_s: float) -> None:
    """Ten batches, one right after the other."""
    for number in range(10):
        rate.batch_ended(model, requests, number * requests * each_s, pressed=True)


def test_before_anything_ran_the_best_of_the_warm_up_counts() -> None:
    rate = ServedRate()
    assert rate.seconds_each("a") == 0
    rate.seed("a", [(1, 6.6), (8, 10.8), (32, 25.6)])
    assert rate.seconds_each("a") == pytest.approx(0.0008)
    assert rate.seconds_any() == pytest.approx(0.0008)


def test_the_rate_is_learned_while_there_is_more_to_do() -> None:
    rate = ServedRate()
    rate.seed("a", [(1, 50.0)])
    busy(rate, "a", 32, 0.001)
    assert rate.seconds_each("a") == pytest.approx(0.001)
    assert rate.seconds_any() == pytest.approx(0.001)


def test_idleness_says_nothing_about_the_rate() -> None:
    rate = ServedRate()
    rate.seed("a", [(1, 2.0)])
    for now in (10.0, 100.0, 1000.0):
        rate.batch_ended("a", 1, now, pressed=False)
    assert rate.seconds_each("a") == pytest.approx(0.002)


def test_a_rate_that_changes_is_learned_anew() -> None:
    rate = ServedRate()
    busy(rate, "a", 8, 0.001)
    batches = round(6 * HALF_LIFE_S / 0.08)
    for number in range(1, batches):
        rate.batch_ended("a", 8, 0.072 + number * 8 * 0.01, pressed=True)
    assert rate.seconds_each("a") == pytest.approx(0.01, rel=0.05)


def test_the_pool_shares_the_line() -> None:
    rate = ServedRate()
    rate.seed("a", [(1, 10.0)])
    depths = [Depth("a", 100, 4), Depth("a", 300, 4), Depth("a", 0, 3)]
    now = backlog(depths, rate, EnvelopeSize())
    assert now.work_s["a"] == pytest.approx(4.0)
    assert now.drain_s == pytest.approx(1.0)
    assert now.wait_s("a") == pytest.approx(1.0)


def test_messages_that_hold_many_requests_make_a_longer_line() -> None:
    rate, sizes = ServedRate(), EnvelopeSize()
    rate.seed("a", [(1, 10.0)])
    assert sizes.mean("a") == 1
    for _ in range(50):
        sizes.came("a", 32)
    now = backlog([Depth("a", 10, 1)], rate, sizes)
    assert now.drain_s == pytest.approx(3.2)


def test_a_short_line_does_not_wait_for_the_end_of_a_long_one() -> None:
    now = Backlog(share_s={"long": 10.0, "short": 1.0})
    assert now.wait_s("short") == pytest.approx(2.0)
    assert now.wait_s("long") == pytest.approx(11.0)
    assert now.wait_s("unknown") == 0
    assert now.wait_s() == now.drain_s == pytest.approx(11.0)


def test_a_queue_without_consumers_counts_as_ours() -> None:
    rate = ServedRate()
    rate.seed("a", [(1, 10.0)])
    assert backlog([Depth("a", 10, 0)], rate, EnvelopeSize()).drain_s == pytest.approx(
        0.1
    )


@given(
    st.dictionaries(st.sampled_from("abcd"), st.floats(0, 1e6)),
    st.sampled_from("abcd"),
)
def test_no_line_is_longer_than_all_of_them(share: dict[str, float], one: str) -> None:
    now = Backlog(share_s=share)
    wait_s = now.wait_s(one)
    assert share.get(one, 0) <= wait_s * (1 + 1e-9)
    assert wait_s <= now.wait_s() * (1 + 1e-9)


@given(st.floats(0, 1e6), st.floats(0, 1e6), st.floats(0, 1))
def test_what_was_shed_comes_back_within_bounds(
    wait_s: float, left_s: float, chance: float
) -> None:
    again_s = retry_after_s(wait_s, left_s, chance)
    assert LEAST_RETRY_S <= again_s <= MOST_RETRY_S
    assert again_s <= retry_after_s(wait_s + 1, left_s, chance)


def test_it_comes_back_when_the_line_is_as_short_as_its_deadline_bears() -> None:
    assert retry_after_s(30.0, 10.0, 0.0) == 20.0
    assert retry_after_s(30.0, 10.0, 1.0) == 30.0
