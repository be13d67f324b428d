"""The name of a span, by https://www.w3.org/TR/trace-context/."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from broker.traceparent import read_traceparent, sampled

TRACE, SPAN = "4bf92f3577b34da6a3ce929d0e0e4736", "00f067aa0ba902b7"


@pytest.mark.parametrize(
    ("value", "is_sampled"),
    [
        (f"00-{TRACE}-{SPAN}-01", True),
        (f"00-{TRACE}-{SPAN}-00", False),
        (f"00-{TRACE}-{SPAN}-03", True),
        (f"cc-{TRACE}-{SPAN}-01", True),
    ],
)
def test_what_is_one_is_kept(value: str, is_sampled: bool) -> None:
    assert read_traceparent(value) == value
    assert sampled(value) is is_sampled


@pytest.mark.parametrize(
    "value",
    [
        None,
        7,
        b"00",
        "",
        f"ff-{TRACE}-{SPAN}-01",
        f"00-{'0' * 32}-{SPAN}-01",
        f"00-{TRACE}-{'0' * 16}-01",
        f"00-{TRACE.upper()}-{SPAN}-01",
        f"00-{TRACE}-{SPAN}-01\n",
        f"00-{TRACE}-{SPAN}",
    ],
)
def test_what_is_none_begins_anew(value: object) -> None:
    assert read_traceparent(value) is None


@given(st.text())
def test_no_text_is_an_error(value: str) -> None:
    assert sampled(value) in {True, False}
