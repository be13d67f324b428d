from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cloud_worker.core.prefetch import MOST, prefetch


@pytest.mark.parametrize(
    ("round_trip_s", "held"),
    [(0.0, 64), (0.001, 66), (0.025, 96), (0.1, 192), (60.0, 256)],
)
def test_what_is_served_during_a_round_trip_is_held_beside_two_batches(
    round_trip_s: float, held: int
) -> None:
    assert prefetch(32, round_trip_s=round_trip_s, cost_s=0.025) == held


@given(st.integers(1, 100_000), st.floats(0, 1e3), st.floats(1e-6, 1e3))
def test_it_is_within_bounds(
    max_batch: int, round_trip_s: float, cost_s: float
) -> None:
    held = prefetch(max_batch, round_trip_s=round_trip_s, cost_s=cost_s)
    assert min(2 * max_batch, MOST) <= held <= MOST
