from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from cascade.allowance import spill_allowance
from cascade.effective import (
    Change,
    ClassLadders,
    Conditions,
    Give,
    InForce,
    Ladder,
    in_force,
    ladder,
)

SCORES = np.random.default_rng(1).random(5_000)
BASE = ladder(SCORES, 0.4)
CALM = InForce(BASE.threshold)

shares = st.none() | st.floats(0, 1)
conditions = st.builds(
    Conditions,
    link_up=st.booleans(),
    wait_s=st.none() | st.floats(0, 100),
    deadline_s=st.none() | st.floats(0, 10),
    bytes_left=shares,
    spills_left=shares,
)


def test_a_share_of_what_is_spilled_becomes_the_threshold_that_spills_it() -> None:
    whole = np.mean(np.less(SCORES, BASE.at(1.0)))
    for share in (0.25, 0.5, 0.9):
        spilled = np.mean(np.less(SCORES, BASE.at(share)))
        assert spilled == pytest.approx(share * whole, abs=0.02)
    assert BASE.at(0.0) == -math.inf
    assert BASE.at(1.0) == 0.4


@pytest.mark.parametrize(
    ("given_conditions", "share", "said"),
    [
        (Conditions(), 1.0, "as calibrated"),
        (Conditions(link_up=False), 0.0, "link is down"),
        (Conditions(wait_s=0.4, deadline_s=1.0), 1.0, "as calibrated"),
        (Conditions(wait_s=0.75, deadline_s=1.0), 0.5, "waits 0.75 s of 1.00 s"),
        (Conditions(wait_s=3.0, deadline_s=1.0), 0.0, "waits"),
        (Conditions(wait_s=3.0, deadline_s=0.0), 0.0, "waits"),
        (Conditions(wait_s=3.0), 1.0, "as calibrated"),
        (Conditions(bytes_left=0.125), 0.5, "12% of the byte budget"),
        (Conditions(spills_left=0.0), 0.0, "0% of the spill quota"),
        (Conditions(bytes_left=0.9, spills_left=0.125), 0.5, "spill quota"),
    ],
)
def test_each_condition_gives_way_as_it_should_and_says_so(
    given_conditions: Conditions, share: float, said: str
) -> None:
    found, change = in_force(CALM, BASE, given_conditions)
    assert found.share == share
    assert said in found.why
    if share < 1:
        assert change == Change(0.4, BASE.at(share), found.why)
    else:
        assert change is None


@settings(deadline=None)
@given(steps=st.lists(conditions, max_size=20))
def test_the_threshold_never_passes_the_calibrated_one_and_every_change_is_told(
    steps: list[Conditions],
) -> None:
    now = CALM
    for each in steps:
        new, change = in_force(now, BASE, each)
        assert new.threshold <= BASE.threshold
        assert 0 <= new.share <= 1
        assert (change is None) == (new.threshold == now.threshold)
        if change is not None:
            assert (change.old, change.new) == (now.threshold, new.threshold)
            assert change.why
        assert in_force(now, BASE, each) == (new, change)
        now = new
    calm, _ = in_force(now, BASE, Conditions())
    assert calm.threshold == BASE.threshold


@settings(deadline=None)
@given(better=st.floats(0, 1), worse=st.floats(0, 1))
def test_a_longer_wait_never_spills_more(better: float, worse: float) -> None:
    short, long = sorted((better, worse))
    found = [
        in_force(CALM, BASE, Conditions(wait_s=wait, deadline_s=1.0))[0].threshold
        for wait in (short, long)
    ]
    assert found[1] <= found[0]


def test_a_wait_that_hovers_changes_the_threshold_once() -> None:
    now, changes = CALM, 0
    for i in range(100):
        wait_s = 0.75 + 0.01 * (-1) ** i
        now, change = in_force(now, BASE, Conditions(wait_s=wait_s, deadline_s=1.0))
        changes += change is not None
    assert changes <= 2


def test_only_a_given_ceiling_lets_it_rise_and_only_when_there_is_plenty() -> None:
    give = Give(ceiling=0.7)
    idle = Conditions(wait_s=0.01, deadline_s=1.0, bytes_left=0.9)
    found, change = in_force(CALM, BASE, idle, give)
    assert found.threshold == 0.7
    assert change is not None
    assert "idle" in change.why
    for less in (
        Conditions(wait_s=0.2, deadline_s=1.0),
        Conditions(wait_s=0.01, deadline_s=1.0, bytes_left=0.4),
        Conditions(),
    ):
        back, _ = in_force(found, BASE, less, give)
        assert back.threshold == 0.4


def test_without_known_scores_there_is_all_or_nothing() -> None:
    base = ladder(np.array([]), 0.4)
    assert base == Ladder(0.4)
    found, _ = in_force(InForce(0.4), base, Conditions(wait_s=0.75, deadline_s=1.0))
    assert found.threshold == -math.inf


def test_overload_costs_accuracy_and_not_latency() -> None:
    # 1,000 requests a second, of which 40 % are hard, for a pool that serves 100.
    rng = np.random.default_rng(2)
    now, queue, waits, spilled = CALM, 0.0, [], 0
    for _ in range(600):  # tenths of a second
        wait_s = queue / 100
        now, _ = in_force(now, BASE, Conditions(wait_s=wait_s, deadline_s=1.0))
        sent = int(np.count_nonzero(rng.random(100) < now.threshold))
        queue = max(0.0, queue + sent - 10)
        spilled += sent
        waits.append(wait_s)
    assert max(waits) <= 1.0
    assert spilled >= 0.9 * 10 * 600  # and the pool is used, not shunned


def test_a_spill_quota_is_kept_by_the_threshold_alone() -> None:
    rng = np.random.default_rng(3)
    purse, now, spilled = spill_allowance(0.1, burst=200), CALM, 0
    for request in range(6_000):
        now, _ = in_force(now, BASE, Conditions(spills_left=purse.left(request)))
        if rng.random() < now.threshold:
            purse = purse.spent(1, request)
            spilled += 1
    assert 0.09 <= spilled / 6_000 <= 0.105


@given(st.lists(conditions, max_size=20), st.floats(0.01, 0.99))
def test_no_class_is_spilled_more_than_calibrated_whatever_happens(
    happening: list[Conditions], own: float
) -> None:
    classes = ClassLadders({0: ladder(SCORES, own), 1: Ladder(own)})
    now = CALM
    for each in happening:
        now, _ = in_force(now, BASE, each)
        thresholds = classes.at(now)
        assert thresholds.common == now.threshold
        for index in (0, 1):
            assert thresholds.of(index) <= own
            if now.share >= 1:
                assert thresholds.of(index) == own
            if now.share == 0:
                assert thresholds.of(index) == -math.inf


def test_a_class_gives_way_by_the_same_share_as_all() -> None:
    classes = ClassLadders({0: ladder(SCORES, 0.8), 1: Ladder(0.8), 2: Ladder(0.1)})
    half = InForce(BASE.at(0.5), 0.5)
    thresholds = classes.at(half)
    spilled = np.mean(np.less(SCORES, thresholds.of(0)))
    assert spilled == pytest.approx(0.4, abs=0.02)
    # Without scores: until the common threshold is lower.
    assert thresholds.of(1) == half.threshold
    assert thresholds.of(2) == 0.1
    assert thresholds.of(9) == half.threshold
