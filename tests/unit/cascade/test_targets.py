from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from cascade.targets import (
    MaxError,
    MaxExcess,
    MaxSpill,
    Target,
    parse_target,
    rounded_up,
)

percents = st.integers(1, 990).map(lambda tenths: tenths / 1000)
surely = st.sampled_from([0.5, 0.9, 0.95, 0.99, 0.999])
each = st.none() | percents
targets = st.one_of(
    st.builds(MaxSpill, percents, st.none() | surely),
    st.builds(MaxExcess, percents, st.none() | surely, each),
    st.builds(MaxError, percents, surely, each),
)


def numbers(target: Target) -> list[float | None]:
    limit = {
        MaxSpill: "share",
        MaxExcess: "excess",
        MaxError: "error",
    }[type(target)]
    return [
        getattr(target, limit),
        target.confidence,
        getattr(target, "per_class", None),
    ]


@settings(deadline=None)
@given(target=targets)
def test_a_target_reads_back_as_it_describes_itself(target: Target) -> None:
    again = parse_target(target.describe())
    assert type(again) is type(target)
    assert numbers(again) == [
        None if number is None else pytest.approx(number) for number in numbers(target)
    ]


@pytest.mark.parametrize(
    ("text", "target"),
    [
        ("2 points worse", MaxExcess(0.02)),
        (
            "At most 2 points worse than the cloud, with 95 % confidence",
            MaxExcess(0.02),
        ),
        ("spill at most 15 %", MaxSpill(0.15)),
        ("15% spilled on average", MaxSpill(0.15, None)),
        ("5% wrong, 8% of each class, with 99% confidence", MaxError(0.05, 0.99, 0.08)),
        ("1 point worse, 3 points a class", MaxExcess(0.01, 0.95, 0.03)),
    ],
)
def test_a_target_is_read_as_a_person_writes_it(text: str, target: Target) -> None:
    assert parse_target(text) == target


@pytest.mark.parametrize(
    "text",
    [
        "",
        "good",
        "worse",
        "2 points",
        "2 points worse and 15% spilled",
        "5% wrong on average",
        "100% wrong",
        "15% spilled, 3% a class",
        "-2% spilled than worse",
    ],
)
def test_what_is_no_target_is_refused_with_an_example_or_its_range(text: str) -> None:
    with pytest.raises(ValueError, match=r"got|confidence"):
        parse_target(text)


@settings(deadline=None)
@given(share=st.floats(1e-6, 0.98))
def test_a_share_rounded_up_is_no_less_and_hardly_more(share: float) -> None:
    said = rounded_up(share)
    assert share * (1 - 1e-8) <= said <= share * 1.0101
    assert MaxSpill(said).describe() == MaxSpill(rounded_up(said)).describe()
