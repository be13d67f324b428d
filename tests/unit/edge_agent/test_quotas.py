from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from edge_agent.core.quotas import DrainRate, Full, Held, QuotaLimits, Quotas

LIMITS = QuotaLimits(
    max_rows=4, max_bytes=1000, device_max_rows=2, device_max_bytes=600
)


def full(quotas: Quotas, device: str, size: int) -> Full | None:
    refusal = quotas.refusal(device, size)
    return None if refusal is None else refusal.full


def test_each_limit_refuses_by_name() -> None:
    quotas = Quotas(LIMITS)
    assert full(quotas, "a", 600) is None
    assert full(quotas, "a", 601) is Full.DEVICE_BYTES
    quotas.take("a", 100)
    quotas.take("a", 100)
    assert full(quotas, "a", 1) is Full.DEVICE_ROWS
    quotas.take("b", 500)
    assert full(quotas, "c", 301) is Full.BYTES
    quotas.take("c", 300)
    assert full(quotas, "d", 0) is Full.ROWS
    quotas.give_back("a", 100)
    assert full(quotas, "d", 100) is None


def test_what_an_earlier_process_accepted_counts() -> None:
    quotas = Quotas(LIMITS)
    quotas.restore({"a": Held(2, 300), "b": Held(1, 10)})
    assert (quotas.total.rows, quotas.total.bytes) == (3, 310)
    assert full(quotas, "a", 1) is Full.DEVICE_ROWS
    assert full(quotas, "b", 1) is None


@given(st.lists(st.tuples(st.sampled_from("abc"), st.integers(0, 400)), max_size=50))
def test_no_limit_is_ever_passed_and_all_comes_back(
    offers: list[tuple[str, int]],
) -> None:
    quotas = Quotas(LIMITS)
    taken = []
    for device, size in offers:
        if quotas.refusal(device, size) is None:
            quotas.take(device, size)
            taken.append((device, size))
        assert quotas.total.rows == len(taken) <= LIMITS.max_rows
        assert quotas.total.bytes <= LIMITS.max_bytes
        assert quotas.of(device).rows <= LIMITS.device_max_rows
        assert quotas.of(device).bytes <= LIMITS.device_max_bytes
    for device, size in taken:
        quotas.give_back(device, size)
    assert quotas.total == Held(0, 0)


def test_without_anything_ended_it_says_five_seconds() -> None:
    assert DrainRate(0.0).retry_after_s(100.0, rows=1) == 5.0


@pytest.mark.parametrize("a_second", [0.5, 10.0, 400.0])
def test_it_learns_how_fast_room_comes_back(a_second: float) -> None:
    rate = DrainRate(0.0)
    for number in range(int(60 * a_second)):
        rate.ended(number / a_second, 100)
    wait_s = rate.retry_after_s(60.0, rows=100)
    assert wait_s == pytest.approx(max(1.0, 100 / a_second), rel=0.1)
    by_bytes = rate.retry_after_s(60.0, size=12_000)
    assert by_bytes == pytest.approx(max(1.0, 120 / a_second), rel=0.1)
    # A device that owns half of what waits gets half of what comes free.
    half = rate.retry_after_s(60.0, rows=50, share=0.5)
    assert half == pytest.approx(max(1.0, 100 / a_second), rel=0.1)


def test_it_is_bounded_and_forgets() -> None:
    rate = DrainRate(0.0)
    for number in range(100):
        rate.ended(number / 2, 10)
    assert rate.retry_after_s(50.0, rows=10**6) == 300.0
    assert rate.retry_after_s(50.0, rows=1) == 1.0
    assert rate.retry_after_s(1000.0, rows=1) == 5.0
