"""A probation ends by intervals: neither by bad luck nor by patience without end."""

from __future__ import annotations

import random

import pytest

from broker.messages import UpdatePolicy
from edge_agent.core.health import Account
from edge_agent.core.probation import (
    LONGEST_S,
    Commit,
    GiveUp,
    Watching,
    between,
    drop_at_least,
    ended_too_often,
    judge_probation,
)

POLICY = UpdatePolicy(probation_s=60.0, probation_requests=50)


def account(**counts: int) -> Account:
    made = Account()
    for name, count in counts.items():
        setattr(made, name, count)
    return made


def with_runs(made: Account, ms: float, runs: int = 200) -> Account:
    for _ in range(runs):
        made.ran(ms)
    return made


@pytest.mark.parametrize(
    ("requests", "served_s", "found"),
    [
        (50, 60.0, Commit()),
        (49, 60.0, Watching()),
        (50, 59.9, Watching()),
        (0, LONGEST_S - 1, Watching()),
        # Nobody asks it so much: a day without harm ends it.
        (0, LONGEST_S, Commit()),
        (49, 1e9, Commit()),
    ],
)
def test_time_and_count_both_must_pass_within_a_day(
    requests: int, served_s: float, found: object
) -> None:
    assert judge_probation(POLICY, account(requests=requests), None, served_s) == found


def test_the_day_cuts_short_neither_a_longer_probation_nor_a_bad_one() -> None:
    week = UpdatePolicy(probation_s=7 * LONGEST_S, probation_requests=50)
    assert judge_probation(week, Account(), None, 2 * LONGEST_S) == Watching()
    bad = account(requests=49, errors=40)
    assert isinstance(judge_probation(POLICY, bad, None, 2 * LONGEST_S), GiveUp)


def test_without_a_probation_a_version_is_committed_at_once() -> None:
    assert judge_probation(UpdatePolicy(), Account(), None, 0.0) == Commit()


@pytest.mark.parametrize(
    ("errors", "requests", "returns"),
    [(2, 2, False), (3, 3, True), (3, 60, False), (1, 50, False), (400, 10_000, True)],
)
def test_errors_are_judged_by_what_is_believable(
    errors: int, requests: int, returns: bool
) -> None:
    found = judge_probation(
        POLICY, account(errors=errors, requests=requests), None, 1.0
    )
    assert isinstance(found, GiveUp) is returns
    if isinstance(found, GiveUp):
        assert f"{errors} of {requests} requests failed" in found.reason


@pytest.mark.parametrize(
    ("before", "now", "returns"),
    [
        ((900, 1000), (100, 1000), True),
        ((40, 50), (4, 50), True),  # Shuffled labels are seen at once.
        ((900, 1000), (880, 1000), False),
        ((8, 10), (0, 10), False),  # Too few to say anything.
        ((900, 1000), (15, 20), False),
        ((500, 1000), (900, 1000), False),
    ],
)
def test_agreement_is_compared_with_the_version_before(
    before: tuple[int, int], now: tuple[int, int], returns: bool
) -> None:
    found = judge_probation(
        POLICY,
        account(requests=1, agreed=now[0], compared=now[1]),
        account(requests=1, agreed=before[0], compared=before[1]),
        1.0,
    )
    assert isinstance(found, GiveUp) is returns


def test_enough_audits_are_believed_before_what_was_merely_hard() -> None:
    # It is surer, so that only the hardest are spilled: on those it looks worse.
    audits = {"chosen": 200, "chosen_agreed": 190}
    before = account(requests=1, compared=1000, agreed=800, **audits)
    now = account(requests=1, compared=1000, agreed=500, **audits)
    assert judge_probation(POLICY, now, before, 1.0) == Watching()


@pytest.mark.parametrize(
    ("was_ms", "is_ms", "returns"),
    [(10.0, 20.0, False), (10.0, 50.0, True), (0.01, 0.3, False), (0.1, 5.0, True)],
)
def test_a_much_slower_version_returns_unless_it_is_fast_all_the_same(
    was_ms: float, is_ms: float, returns: bool
) -> None:
    found = judge_probation(
        POLICY, with_runs(Account(), is_ms), with_runs(Account(), was_ms), 1.0
    )
    assert isinstance(found, GiveUp) is returns
    if isinstance(found, GiveUp):
        assert "3 times that is allowed" in found.reason


def test_a_good_version_hardly_ever_returns_however_often_it_is_looked_at() -> None:
    rng = random.Random(5)
    returned = 0
    for _ in range(200):
        before = account(requests=1, compared=400, agreed=360)
        now = account()
        for _ in range(300):
            now.requests += 1
            now.errors += rng.random() < 0.01
            now.heard(agrees=rng.random() < 0.9, chosen=False)
            returned += isinstance(
                found := judge_probation(POLICY, now, before, 1.0), GiveUp
            )
            if isinstance(found, GiveUp):
                break
    assert returned <= 2


def test_intervals_hold_the_share_and_narrow() -> None:
    assert between(0, 0) == (0.0, 1.0)
    for agreed, of in ((0, 10), (5, 10), (10, 10), (900, 1000)):
        low, high = between(agreed, of)
        assert 0.0 <= low <= agreed / of <= high <= 1.0
    assert drop_at_least((90, 100), (90, 100)) < 0
    assert drop_at_least((9_000, 10_000), (5_000, 10_000)) == pytest.approx(
        0.4, abs=0.03
    )


def test_a_version_that_ends_the_process_is_not_started_for_ever() -> None:
    assert ended_too_often(2) is None
    assert "ended 3 times" in (ended_too_often(3) or "")
