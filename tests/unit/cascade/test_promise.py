from __future__ import annotations

import json

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from cascade.promise import Promise, Standing, believed_excess


def run(
    promise: Promise, rates: np.ndarray, chance: float, rng: np.random.Generator
) -> bool:
    """Feed requests whose chances are `rates`; whether an interval ever missed them."""
    missed = False
    happened = rng.random(len(rates)) < rates
    looked = rng.random(len(rates)) < chance
    truth = np.cumsum(rates) / np.arange(1, len(rates) + 1)
    for i in range(len(rates)):
        if looked[i]:
            promise.known(float(happened[i]), chance=chance)
        else:
            promise.unknown()
        if i % 97 == 0:
            found = promise.realised()
            missed |= not found.low <= truth[i] <= found.high
    return missed


@pytest.mark.parametrize("chance", [1.0, 0.1])
def test_the_interval_holds_at_all_times_at_once_though_rates_change(
    chance: float,
) -> None:
    rates = np.concatenate([np.full(800, 0.02), np.full(800, 0.15), np.zeros(800)])
    missed = sum(
        run(
            Promise(0.05, least_chance=chance, confidence=0.8),
            rates,
            chance,
            np.random.default_rng(seed),
        )
        for seed in range(25)
    )
    assert missed <= 9  # 5 expected at most; more than 9 has a chance under 2 %


@pytest.mark.parametrize("chance", [1.0, 0.2, 0.02])
def test_what_is_realised_is_right_on_average_whoever_is_looked_at(
    chance: float,
) -> None:
    rng = np.random.default_rng(2)
    values = []
    for _ in range(30):
        promise = Promise(0.1, least_chance=chance)
        for happened in rng.random(400) < 0.1:
            if rng.random() < chance:
                promise.known(float(happened), chance=chance)
            else:
                promise.unknown()
        values.append(promise.realised().value)
    spread = np.std(values) / np.sqrt(len(values))
    assert abs(np.mean(values) - 0.1) < 3 * spread + 1e-9


def test_chances_may_differ_from_request_to_request() -> None:
    rng = np.random.default_rng(3)
    promise = Promise(0.1, least_chance=0.05)
    for i in range(20_000):
        # What happens most is looked at least: a plain mean would be far too low.
        rate, chance = ((0.2, 0.05), (0.0, 0.5))[i % 2]
        if rng.random() < chance:
            promise.known(float(rng.random() < rate), chance=chance)
        else:
            promise.unknown()
    found = promise.realised()
    assert found.value == pytest.approx(0.1, abs=0.04)
    assert found.low < 0.1 < found.high


def test_a_promise_kept_is_shown_to_be_and_one_broken_is_told() -> None:
    for rate, standing in ((0.02, Standing.KEPT), (0.12, Standing.BROKEN)):
        promise = Promise(0.05, least_chance=0.1)
        run(promise, np.full(20_000, rate), 0.1, np.random.default_rng(4))
        found = promise.realised()
        assert found.standing == standing
        assert found.shown == (standing == Standing.KEPT)
        assert found.target == 0.05
        assert found.low <= found.value <= found.high


def test_a_promise_is_at_risk_before_it_is_broken_and_kept_before_anything_is_known() -> (
    None
):
    promise = Promise(0.05)
    assert promise.realised().standing == Standing.KEPT
    assert (promise.realised().low, promise.realised().high) == (0.0, 1.0)
    seen = []
    for _ in range(40):
        promise.known(1.0)
        seen.append(promise.realised().standing)
    assert Standing.AT_RISK in seen
    assert seen[-1] == Standing.BROKEN
    assert seen == sorted(seen, key=list(Standing).index)


def test_one_bad_request_breaks_no_promise() -> None:
    promise = Promise(0.05)
    promise.known(1.0)
    assert promise.realised().standing != Standing.BROKEN


@settings(deadline=None, max_examples=30)
@given(
    happened=st.lists(st.sampled_from([True, False, None]), max_size=60),
    cut=st.integers(0, 60),
)
def test_a_promise_that_was_stored_goes_on_as_if_it_had_not_been(
    happened: list[bool | None], cut: int
) -> None:
    def take(promise: Promise, each: bool | None) -> None:
        if each is None:
            promise.unknown(3)
        else:
            promise.known(float(each), chance=0.25)

    whole = Promise(0.1, least_chance=0.25)
    parts = Promise(0.1, least_chance=0.25)
    for i, each in enumerate(happened):
        if i == cut:
            parts = Promise.from_state(json.loads(json.dumps(parts.to_state())))
        take(whole, each)
        take(parts, each)
    assert parts.realised() == whole.realised()
    found = whole.realised()
    assert 0 <= found.low <= found.high <= 1
    assert found.low <= max(found.value, 0)


def test_the_cloud_believes_its_own_answer_more_by_the_excess_it_expects() -> None:
    rng = np.random.default_rng(7)
    cloud = rng.dirichlet(np.ones(3), 4_000)
    truth = (rng.random((4_000, 1)) > cloud.cumsum(axis=-1)[:, :2]).sum(axis=-1)
    edge = rng.integers(0, 3, 4_000)  # knows nothing that the cloud does not
    believed = [believed_excess(*each) for each in zip(cloud, edge, strict=True)]
    excess = np.mean(cloud.argmax(axis=-1) == truth) - np.mean(edge == truth)
    assert np.mean(believed) == pytest.approx(excess, abs=0.03)
    assert believed_excess(np.array([[0.2, 0.8]]), 1) == 0
    for label in (-1, 2):
        with pytest.raises(ValueError, match="2 classes"):
            believed_excess(np.array([0.2, 0.8]), label)


def test_a_part_of_a_request_counts_in_part() -> None:
    rng = np.random.default_rng(8)
    promise = Promise(0.2, least_chance=0.5)
    for amount in rng.random(8_000) * 0.2:
        if rng.random() < 0.5:
            promise.known(float(amount), chance=0.5)
        else:
            promise.unknown()
    found = promise.realised()
    assert found.low < 0.1 < found.high < 0.2
    assert found.shown


def test_what_is_no_promise_is_refused() -> None:
    for target, chance, confidence in ((1.5, 1, 0.9), (0.1, 0, 0.9), (0.1, 1, 1.0)):
        with pytest.raises(ValueError, match="got"):
            Promise(target, least_chance=chance, confidence=confidence)
    promise = Promise(0.1, least_chance=0.5)
    with pytest.raises(ValueError, match=r"0\.5\.\.1"):
        promise.known(1.0, chance=0.1)
    with pytest.raises(ValueError, match="amount"):
        promise.known(1.5)
    with pytest.raises(ValueError, match="none to count"):
        promise.unknown(-1)
    with pytest.raises(ValueError, match="not the state"):
        Promise.from_state({})
    with pytest.raises(ValueError, match="other bets"):
        Promise.from_state({**promise.to_state(), "ups": []})
