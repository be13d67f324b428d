"""Rollouts as values: who should serve what, and what reports make of a told agent."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from broker.messages import SlotReport
from fleet.core.devices import Device
from fleet.core.fleetwide import relevant
from fleet.core.following import Now, follow, follow_back, standing
from fleet.core.rollouts import (
    AgentState,
    Course,
    Rollout,
    RolloutState,
    Told,
    Wave,
    WayBack,
    begun,
    desired_for,
    desired_of,
    next_generation,
)

NOW_MS = 1_700_000_000_000
TOLD = Told("a", 0, NOW_MS - 1000, since_ms=NOW_MS - 1000, before="1", before_epoch=3)
BACK = WayBack("1", 9)


def rollout(
    generation: int, version: str, *targets: str, model: str = "fashion", **more: Any
) -> Rollout:
    named = frozenset(targets) if targets else None
    return Rollout(generation, model, version, NOW_MS, named, **more)


def course(*told: Told, state: RolloutState = RolloutState.RUNNING) -> Course:
    return Course(state=state, told={each.agent: each for each in told})


def slot(
    active: str | None, state: Any = "idle", generation: int = 0, **more: Any
) -> SlotReport:
    return SlotReport(
        model="fashion", active=active, state=state, generation=generation, **more
    )


def device(agent: str, *slots: SlotReport, age_s: float = 0) -> Device:
    return Device(agent, NOW_MS - 10**6, round(NOW_MS - age_s * 1000), slots)


def wanted(one: Rollout, its: Course, agent: str = "a") -> tuple[Any, ...] | None:
    desired = desired_of(one, its, agent)
    if desired is None:
        return None
    return desired.version, desired.epoch, desired.generation, desired.shadow


def test_only_who_was_told_should_serve_the_version() -> None:
    one = rollout(7, "2", epoch=8)
    assert wanted(one, course(TOLD)) == ("2", 8, 7, False)
    assert wanted(one, course(TOLD), "b") is None


@pytest.mark.parametrize("state", [RolloutState.ROLLING_BACK, RolloutState.ROLLED_BACK])
def test_a_rollback_is_a_newer_generation_of_the_signed_way_back(
    state: RolloutState,
) -> None:
    one = rollout(7, "2", epoch=8, way_back=BACK)
    assert wanted(one, course(TOLD, state=state)) == ("1", 9, 8, False)


@pytest.mark.parametrize(
    "state",
    [
        RolloutState.PAUSED,
        RolloutState.DONE,
        RolloutState.FAILED,
        RolloutState.ABORTED,
        RolloutState.SUPERSEDED,
    ],
)
def test_who_has_the_version_keeps_it_however_else_a_rollout_ends(
    state: RolloutState,
) -> None:
    one = rollout(7, "2", epoch=8, way_back=BACK)
    assert wanted(one, course(TOLD, state=state)) == ("2", 8, 7, False)


def test_a_shadow_is_an_earlier_generation_and_ends_with_its_rollout() -> None:
    one = rollout(7, "2", epoch=8, way_back=BACK, waves=(Wave(shadow=True), Wave()))
    shadow = replace(TOLD, shadow=True)
    assert wanted(one, course(shadow)) == ("2", 8, 7, True)
    assert wanted(one, course(TOLD)) == ("2", 8, 8, False)
    # It never served the version, so there is nothing to go back from.
    for state in (RolloutState.ABORTED, RolloutState.ROLLED_BACK):
        assert wanted(one, course(shadow, state=state)) == ("1", 3, 9, False)


def test_the_newest_rollout_that_has_told_an_agent_decides() -> None:
    old, new = rollout(2, "1"), rollout(4, "2")
    other = rollout(3, "9", model="boots")
    both = [(old, course(TOLD)), (other, course(TOLD)), (new, course())]
    assert [each.version for each in desired_for("a", both)] == ["9", "1"]
    both = [(new, course(TOLD)), *both[:2]]
    assert [each.version for each in desired_for("a", both)] == ["9", "2"]
    assert desired_for("b", both) == ()


def test_a_generation_is_above_all_rollouts_and_all_that_agents_hold_to() -> None:
    held = [device("a", slot("1", "idle", 57)), device("b", slot("1", "idle", 3))]
    assert next_generation([], []) == 1
    assert next_generation([rollout(4, "1"), rollout(2, "1")], held[1:]) == 5
    assert next_generation([rollout(4, "1")], held) == 58
    # One for its shadow, one for the version, one for the way back.
    assert next_generation([rollout(4, "1", way_back=BACK)], []) == 6
    shadowed = rollout(4, "1", waves=(Wave(shadow=True), Wave()))
    assert next_generation([shadowed], []) == 7


def test_an_agent_that_lies_does_not_use_up_the_generations() -> None:
    liar = device("a", slot("1", "idle", 2**63 - 1))
    assert next_generation([rollout(4, "1")], [liar]) == 5


@pytest.mark.parametrize(
    ("newer", "older", "buried"),
    [
        (rollout(2, "2"), rollout(1, "1"), True),
        (rollout(2, "2"), rollout(1, "1", model="boots"), False),
        (rollout(2, "2", "a"), rollout(1, "1"), False),
        (rollout(2, "2", "a", "b"), rollout(1, "1", "a"), True),
        (rollout(2, "2", query="has x"), rollout(1, "1"), False),
        (rollout(2, "2", query="has x"), rollout(1, "1", query="has x"), True),
        (rollout(2, "2"), rollout(1, "1", query="has x"), True),
    ],
)
def test_a_rollout_is_buried_when_nobody_can_follow_it_any_more(
    newer: Rollout, older: Rollout, *, buried: bool
) -> None:
    assert newer.buries(older) is buried
    assert not older.buries(newer)
    states = dict.fromkeys((older.generation, newer.generation), RolloutState.DONE)
    left = relevant([older, newer], states)
    assert left == ([newer] if buried else [newer, older])


def followed(
    one: Rollout, told: Told, said: SlotReport | None, age_s: float = 0
) -> Told:
    return follow(one, told, device("a", *([said] if said else []), age_s=age_s))


@pytest.mark.parametrize(
    ("reported", "becomes"),
    [
        (None, AgentState.PENDING),
        (slot("1"), AgentState.PENDING),
        (slot(None), AgentState.PENDING),
        (slot("1", "waiting", 7), AgentState.WAITING),
        (slot("1", "pulling", 7), AgentState.PULLING),
        (slot("1", "testing", 7), AgentState.TESTING),
        (slot("1", "swapped", 7), AgentState.PENDING),
        (slot("1", "refused", 7), AgentState.REFUSED),
        (slot("1", "returned", 7), AgentState.RETURNED),
        (slot("2", "probation", 7), AgentState.PROBATION),
        (slot("2", "swapped", 7), AgentState.UPDATED),
        (slot("2", "idle", 7), AgentState.UPDATED),
        (slot("2", "idle", 8), AgentState.UPDATED),
        # It serves the version from before, and has not said that it will stay.
        (slot("2", "swapped", 6), AgentState.PENDING),
        # What it says is of an earlier rollout, or of a later one.
        (slot("1", "refused", 6), AgentState.PENDING),
        (slot("1", "pulling", 6), AgentState.PENDING),
        (slot("1", "refused", 8), AgentState.PENDING),
        # Told to serve, it still runs the shadow of an earlier wave.
        (slot("1", "shadow", 7), AgentState.PENDING),
    ],
)
def test_the_state_of_a_told_agent_follows_from_its_report(
    reported: SlotReport | None, becomes: AgentState
) -> None:
    assert followed(rollout(7, "2"), TOLD, reported).state is becomes


def test_a_refusal_carries_its_reason_until_the_agent_is_updated() -> None:
    one = rollout(7, "2")
    refused = followed(one, TOLD, slot("1", "refused", 7, reason="golden input 3"))
    assert (refused.reason, refused.version) == ("golden input 3", "1")
    mended = followed(one, refused, slot("2", "swapped", 7, reason="golden input 3"))
    assert (mended.state, mended.reason) == (AgentState.UPDATED, None)


def test_an_agent_that_returned_once_and_serves_the_version_after_all_is_updated() -> (
    None
):
    # Its disk was lost: it has tried the version anew, and kept it.
    one = rollout(7, "2", way_back=BACK)
    returned = followed(one, TOLD, slot("1", "returned", 7, reason="slower"))
    again = followed(one, returned, slot("2", "probation", 7))
    assert (again.state, again.reason) == (AgentState.RETURNED, "slower")
    served = followed(one, again, slot("2", "swapped", 7))
    assert (served.state, served.version, served.reason) == (
        AgentState.UPDATED,
        "2",
        None,
    )
    # That it returned before is no news when it is heard again.
    assert followed(one, served, slot("1", "returned", 7, reason="slower")) == served


STATES = (
    "idle",
    "waiting",
    "pulling",
    "testing",
    "refused",
    "probation",
    "swapped",
    "returned",
)
REPORTS = st.builds(
    slot,
    st.sampled_from(["1", "2"]),
    st.sampled_from(STATES),
    st.sampled_from([6, 7, 8]),
    pulled_bytes=st.integers(0, 9),
)


@given(st.lists(REPORTS, max_size=8), st.data())
def test_reports_that_come_again_or_late_change_no_answer(
    reports: list[SlotReport], data: st.DataObject
) -> None:
    one, told = rollout(7, "2", way_back=BACK), TOLD
    for each in reports:
        told = followed(one, told, each)
    again = data.draw(st.lists(st.sampled_from(reports))) if reports else []
    after = told
    for each in again:
        after = followed(one, after, each)
    answered = {
        AgentState.REFUSED,
        AgentState.PROBATION,
        AgentState.UPDATED,
        AgentState.RETURNED,
    }
    if told.state in answered:
        assert after.state is told.state
    # A lease is not lengthened by what was heard before.
    assert after.since_ms == told.since_ms or told.state not in answered


@pytest.mark.parametrize(
    ("reported", "becomes"),
    [
        (slot("2", "swapped", 7), AgentState.GOING_BACK),
        (slot("1", "swapped", 7), AgentState.GOING_BACK),
        (slot("1", "pulling", 8), AgentState.GOING_BACK),
        (slot("2", "refused", 8), AgentState.GOING_BACK),
        (slot("1", "swapped", 8), AgentState.BACK),
        (slot("1", "idle", 8), AgentState.BACK),
    ],
)
def test_an_agent_is_back_when_it_says_so_of_the_rollback_itself(
    reported: SlotReport, becomes: AgentState
) -> None:
    told = replace(TOLD, state=AgentState.GOING_BACK)
    one = rollout(7, "2", way_back=BACK)
    assert follow_back(one, told, device("a", reported)).state is becomes


@pytest.mark.parametrize(
    ("state", "since_s", "seen_s", "becomes"),
    [
        (AgentState.PENDING, 599, 599, AgentState.PENDING),
        (AgentState.PENDING, 601, 601, AgentState.SILENT),
        # Heard of, and not a byte further: it hangs.
        (AgentState.PENDING, 601, 5, AgentState.STUCK),
        (AgentState.PULLING, 601, 5, AgentState.STUCK),
        (AgentState.TESTING, 601, 95, AgentState.SILENT),
        # Put off for a reason, or asked too little to be sure: nobody's failure.
        (AgentState.WAITING, 601, 5, AgentState.LATE),
        (AgentState.PROBATION, 601, 5, AgentState.PROBATION),
        (AgentState.PROBATION, 661, 5, AgentState.LATE),
        (AgentState.PROBATION, 661, 95, AgentState.SILENT),
        (AgentState.SHADOW, 9999, 5, AgentState.SHADOW),
        (AgentState.SHADOW, 9999, 601, AgentState.SILENT),
        # It has answered; what it does later is another matter.
        (AgentState.UPDATED, 9999, 9999, AgentState.UPDATED),
        (AgentState.REFUSED, 9999, 9999, AgentState.REFUSED),
    ],
)
def test_silence_and_standing_still_are_failures_after_a_lease(
    state: AgentState, since_s: float, seen_s: float, becomes: AgentState
) -> None:
    one = rollout(7, "2")
    one = replace(one, policy=one.policy.model_copy(update={"probation_s": 60.0}))
    told = replace(TOLD, state=state, since_ms=NOW_MS - round(since_s * 1000))
    agent = device("a", age_s=seen_s)
    assert standing(one, told, agent, Now(NOW_MS)) is becomes


def test_no_lease_runs_while_nobody_at_all_is_heard() -> None:
    told = replace(TOLD, since_ms=NOW_MS - 10**6)
    away = device("a", age_s=1000)
    listening = Now(NOW_MS, listening_since_ms=NOW_MS - 1000)
    assert standing(rollout(7, "2"), told, away, listening) is AgentState.PENDING


def test_each_byte_pulled_begins_the_lease_anew() -> None:
    one = rollout(7, "2")
    told = replace(TOLD, since_ms=NOW_MS - 100_000)
    told = followed(one, told, slot("1", "pulling", 7, pulled_bytes=10), age_s=50)
    told = followed(one, told, slot("1", "pulling", 7, pulled_bytes=20), age_s=40)
    assert told.since_ms == NOW_MS - 40_000
    still = followed(one, told, slot("1", "pulling", 7, pulled_bytes=20), age_s=10)
    assert still == told


def test_a_rollout_that_begins_has_told_nobody() -> None:
    told: Mapping[str, Told] = begun(rollout(1, "1")).told
    assert not told
