from __future__ import annotations

from datetime import UTC, datetime
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from broker.dead_letters import (
    ANSWERED,
    MAX_MISHAPS,
    POISON,
    Death,
    Mishap,
    headers_of,
    read_death,
    times_retried,
)

MISHAP = Mishap(at_ms=5, requests=8, crashed=True, error="it died")
DEATH = Death(
    cause=POISON,
    reason="it died",
    at_ms=7,
    model="fashion",
    version="3",
    worker="w-1",
    history=(MISHAP,),
    answered=True,
)


def test_what_a_worker_writes_is_read_back() -> None:
    assert read_death(headers_of(DEATH)) == DEATH


def test_a_long_history_keeps_its_end() -> None:
    history = tuple(Mishap(n, 1, False, "x" * 9999) for n in range(1, 100))
    read = read_death(headers_of(Death(POISON, "y" * 9999, history=history)))
    assert len(read.history) == MAX_MISHAPS
    assert read.history[-1].at_ms == 99
    assert len(read.history[0].error) < 1000
    assert len(read.reason) < 2000


@pytest.mark.parametrize(
    ("cause", "expired", "words"),
    [
        ("expired", True, "longer than"),
        ("maxlen", False, "queue full"),
        ("delivery_limit", False, "too many deliveries"),
        ("rejected", False, "could not read"),
        ("quota", False, "quota"),
    ],
)
def test_dead_letters_say_why_they_died(cause: str, expired: bool, words: str) -> None:
    at = datetime(2026, 1, 1, tzinfo=UTC)
    entry = {"reason": cause, "queue": "infer.m.norm", "time": at}
    death = read_death({"x-death": [entry]})
    assert (death.cause, death.expired, death.answered) == (cause, expired, False)
    assert words in death.reason
    assert death.at_ms == at.timestamp() * 1000


def test_a_sender_cannot_have_its_dead_letter_taken_for_answered() -> None:
    entry = {"reason": "rejected", "queue": "infer.m.norm"}
    assert not read_death({"x-death": [entry], ANSWERED: True}).answered


HEADERS = st.dictionaries(
    st.sampled_from([*headers_of(DEATH), "x-death", "x-overspill-retried"]),
    st.recursive(
        st.none() | st.booleans() | st.integers() | st.text() | st.binary(),
        lambda inner: st.lists(inner) | st.dictionaries(st.text(), inner),
        max_leaves=5,
    ),
)


@given(HEADERS)
def test_whatever_stands_in_the_headers_a_dead_letter_has_a_reason(
    headers: dict[str, Any],
) -> None:
    assert read_death(headers).reason
    assert times_retried(headers) >= 0
