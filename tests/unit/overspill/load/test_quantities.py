from __future__ import annotations

import pytest

from overspill.load.quantities import (
    BadQuantity,
    Weighted,
    duration_s,
    rate_per_s,
    size_bytes,
    weighted,
)


def test_quantities_are_read_with_their_units() -> None:
    assert duration_s("30ms") == pytest.approx(0.03)
    assert duration_s("2min") == 120
    assert duration_s("1.5") == 1.5
    assert rate_per_s("200/s") == 200
    assert rate_per_s("30/min") == pytest.approx(0.5)
    assert size_bytes("1KiB") == 1024
    assert size_bytes("2MB") == 2_000_000


@pytest.mark.parametrize("text", ["", "fast", "-1s", "0s", "30 parsecs", "1e999s"])
def test_what_is_no_duration_is_refused_with_an_example(text: str) -> None:
    with pytest.raises(BadQuantity, match="30ms"):
        duration_s(text)


def test_shares_are_relative_and_add_up_to_one() -> None:
    assert weighted("30ms:50%,150ms:50%", duration_s).shares == (0.5, 0.5)
    assert weighted("a:3,b:1", str) == Weighted(("a", "b"), (0.75, 0.25))
    assert weighted("a,b,c,d", str).shares == (0.25,) * 4


def test_a_point_falls_into_the_share_that_covers_it() -> None:
    mix = weighted("a:25%,b:0%,c:75%", str)

    assert [mix.at(point) for point in (0.0, 0.24, 0.25, 0.99)] == ["a", "a", "c", "c"]


@pytest.mark.parametrize("text", ["a:1,b", "a:much", "a:0,b:0", "a:-1"])
def test_shares_that_make_no_sense_are_refused(text: str) -> None:
    with pytest.raises(BadQuantity):
        weighted(text, str)
