"""What is counted of a version, within fixed memory."""

from __future__ import annotations

import statistics

import pytest
from hypothesis import given
from hypothesis import strategies as st

from broker.messages import HealthReport
from edge_agent.core.accounts import Accounts
from edge_agent.core.health import BUCKETS, Account, BadHealth, Latencies
from edge_agent.core.slots import Slots, State

times = st.lists(st.floats(0.002, 1e5), min_size=1, max_size=200)


@given(times)
def test_a_median_is_known_to_within_a_bucket(ms: list[float]) -> None:
    seen = Latencies()
    for each in ms:
        seen.add(each)
    low = sorted(ms)[(len(ms) - 1) // 2]
    found = seen.quantile(0.5)
    assert found is not None
    assert low / 1.2 <= found <= max(low, statistics.median(ms)) * 1.2
    assert len(seen.counts) == BUCKETS


@pytest.mark.parametrize("ms", [0.0, -1.0, 1e-9, 1e300])
def test_a_time_that_no_clock_gives_has_its_bucket_too(ms: float) -> None:
    seen = Latencies()
    seen.add(ms)
    assert seen.runs == 1
    assert seen.quantile(0.99) is not None


def test_the_median_of_few_runs_lies_anywhere_and_of_many_in_a_narrow_band() -> None:
    few, many = Latencies(), Latencies()
    assert few.median_between(3.0) is None
    for _ in range(5):
        few.add(1.0)
    assert few.median_between(3.0) is None
    for number in range(10_000):
        many.add(1.0 + number / 10_000)
    low, high = many.median_between(3.0) or (0.0, 0.0)
    assert 1.2 < low < high < 1.9


counts = st.integers(0, 2**40)
COUNTS = (
    "requests",
    "errors",
    "spilled",
    "compared",
    "agreed",
    "chosen",
    "chosen_agreed",
    "with_active",
    "with_active_agreed",
)


@given(st.lists(counts, min_size=9, max_size=9), times, st.floats(0, 1e6))
def test_an_account_goes_on_after_a_restart_where_it_was(
    numbers: list[int], ms: list[float], for_s: float
) -> None:
    account = Account()
    for name, number in zip(COUNTS, numbers, strict=True):
        setattr(account, name, number)
    for each in ms:
        account.ran(each)
    again = Account.from_state(account.to_state(for_s), 1e7)
    assert again.report(1e7) == account.report(for_s).model_copy(
        update={"for_s": again.report(1e7).for_s}
    )
    assert again.report(1e7).for_s == pytest.approx(for_s, abs=1e-6)


@pytest.mark.parametrize(
    "state",
    [
        {},
        {"latencies": [1]},
        {"latencies": [1] * 500, "for_s": 1.0},
        {"latencies": [-1], "for_s": 1.0},
        {"latencies": [1], "for_s": float("nan")},
        {"latencies": [1], "for_s": 1.0, "requests": "many"},
        {"latencies": [1], "for_s": 1.0, "requests": True},
    ],
)
def test_an_account_that_is_damaged_is_an_error(state: dict[str, object]) -> None:
    with pytest.raises(BadHealth):
        Account.from_state(state, 0.0)


def test_the_report_is_of_the_version_in_question_and_of_the_one_before() -> None:
    accounts = Accounts()
    for number, version in enumerate("123", start=1):
        accounts.begin("m", version, 0.0)
        for _ in range(number):
            accounts.asked("m", version, failed=version == "3")
        accounts.ran("m", version, 1.0)
    slots = Slots("m", active="2", previous="1", staged="3")
    assert counted(accounts, slots) == (2, 1)
    shadow = Slots("m", active="2", previous="1", staged="3", state=State.SHADOW)
    assert counted(accounts, shadow) == (3, 2)
    accounts.keep("m", {"2"})
    assert counted(accounts, slots) == (2, None)
    accounts.asked("m", "1", failed=False)  # A late answer of what is gone.


def counted(accounts: Accounts, slots: Slots) -> tuple[int | None, int | None]:
    now, before = accounts.report(slots, 60.0)
    assert now is None or (now.for_s, isinstance(now, HealthReport)) == (60.0, True)
    return (
        None if now is None else now.requests,
        None if before is None else before.requests,
    )
