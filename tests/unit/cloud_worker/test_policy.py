"""Which versions a policy wants, and which of them a request gets."""

from __future__ import annotations

from collections import Counter

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError

from cloud_worker.core.policy import LATEST, Policy, choose

THREE = ["3", "2", "1"]


@pytest.mark.parametrize(
    ("policy", "usable", "wanted"),
    [
        (LATEST, {"1", "2", "3"}, {"3": 1}),
        (LATEST, {"1", "2"}, {"2": 1}),
        (LATEST, set(), {}),
        (Policy(pinned="2"), {"1", "2", "3"}, {"2": 1}),
        (Policy(pinned="2"), {"1", "3"}, {}),
        (Policy(pinned="9"), {"1", "2", "3"}, {}),
        (Policy(canary={"2": 0.9, "3": 0.1}), {"2", "3"}, {"2": 0.9, "3": 0.1}),
        (Policy(canary={"2": 0.9, "3": 0.1}), {"1", "2"}, {"2": 1}),
        (Policy(canary={"8": 0.9, "9": 0.1}), {"1", "2", "3"}, {}),
    ],
)
def test_a_policy_wants_what_it_names_and_can_be_used(
    policy: Policy, usable: set[str], wanted: dict[str, float]
) -> None:
    assert policy.wanted(THREE, usable) == wanted


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("{}", "say one of"),
        ('{"latest": false}', "latest"),
        ('{"latest": true, "pinned": "3"}', "say one of"),
        ('{"pinned": "a/b"}', "pinned"),
        ('{"pined": "3"}', "pined"),
        ('{"canary": {}}', "say one of"),
        ('{"canary": {"2": 0.9, "3": 0.2}}', "sum to 1.1: make it 1"),
        ('{"canary": {"2": 1.5, "3": -0.5}}', "canary"),
        ("[]", "object"),
    ],
)
def test_a_wrong_policy_says_what_is_wrong(text: str, words: str) -> None:
    with pytest.raises(ValidationError, match=words):
        Policy.model_validate_json(text)


def test_requests_spread_over_a_canary_by_its_shares() -> None:
    shares = {"2": 0.9, "3": 0.1}
    counts = Counter(choose(shares, f"request-{number}") for number in range(10_000))
    assert counts["3"] == pytest.approx(1000, abs=150)
    assert counts.total() == counts["2"] + counts["3"]


@given(st.text(max_size=64))
def test_a_request_that_is_sent_again_gets_the_same_version(request_id: str) -> None:
    there = choose({"2": 0.5, "3": 0.3, "4": 0.2}, request_id)
    assert choose({"4": 0.2, "3": 0.3, "2": 0.5}, request_id) == there
    assert choose({"7": 1.0}, request_id) == "7"
