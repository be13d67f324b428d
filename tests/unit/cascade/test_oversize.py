from __future__ import annotations

import pytest

from cascade.oversize import (
    larger_than_model,
    too_many_bytes,
    too_many_pixels,
    too_slow,
)


@pytest.mark.parametrize(
    ("shapes", "accepted", "oversized"),
    [
        ({"x": (1, 28, 28, 1)}, {"x": (1, 28, 28, 1)}, False),
        ({"x": (1, 29, 28, 1)}, {"x": (1, 28, 28, 1)}, True),
        ({"x": (8, 28, 28, 1)}, {"x": (1, 28, 28, 1)}, True),
        ({"x": (8, 28, 28, 1)}, {"x": (-1, 28, 28, 1)}, False),
        ({"x": (8, 30, 28, 1)}, {"x": (-1, 28, 28, 1)}, True),
        ({"x": (1, 4)}, {"x": (1, 8)}, False),  # too short is a mistake, not size
        ({"x": (1, 99)}, {"x": (1, 8, 1)}, False),  # so is another rank
        ({"y": (1, 99)}, {"x": (1, 8)}, False),  # and another name
        ({"a": (1,), "b": (3,)}, {"a": (1,), "b": (2,)}, True),
        ({}, {"x": (1, 8)}, False),
        ({"x": ()}, {"x": ()}, False),
    ],
)
def test_an_input_is_oversized_only_where_a_side_is_longer_than_a_fixed_one(
    shapes: dict[str, tuple[int, ...]],
    accepted: dict[str, tuple[int, ...]],
    oversized: bool,
) -> None:
    assert (larger_than_model(shapes, accepted) is not None) == oversized


@pytest.mark.parametrize(
    ("said", "oversized"),
    [
        (too_many_bytes(100, 100), False),
        (too_many_bytes(101, 100), True),
        (too_many_pixels(None, 1), False),
        (too_many_pixels(4, 4), False),
        (too_many_pixels(5, 4), True),
        (too_slow(10.0, None), False),
        (too_slow(10.0, 10.0), False),
        (too_slow(10.0, 9.9), True),
        (too_slow(0.1, -5.0), True),
    ],
)
def test_a_limit_may_be_reached_and_not_passed(
    said: str | None, oversized: bool
) -> None:
    assert (said is not None) == oversized
