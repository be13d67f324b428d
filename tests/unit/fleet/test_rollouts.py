"""Rollouts as tables: who should serve what, and how far it is."""

from __future__ import annotations

from typing import Literal

import pytest
from hypothesis import given
from hypothesis import strategies as st

from broker.messages import SlotReport
from fleet.core.devices import Device
from fleet.core.rollouts import (
    AgentState,
    Rollout,
    RolloutState,
    current,
    desired_for,
    next_generation,
    progress,
    unburied,
)

NOW_MS = 1_700_000_000_000
SILENT_S = 90.0
SlotState = Literal["idle", "pulling", "testing", "swapped", "refused"]


def rollout(
    generation: int, version: str, *targets: str, model: str = "fashion"
) -> Rollout:
    return Rollout(
        generation, model, version, NOW_MS, frozenset(targets) if targets else None
    )


def slot(
    active: str | None,
    state: SlotState = "idle",
    generation: int = 0,
    reason: str | None = None,
) -> SlotReport:
    return SlotReport(
        model="fashion",
        active=active,
        state=state,
        generation=generation,
        reason=reason,
    )


def device(agent: str, *slots: SlotReport, age_s: float = 1) -> Device:
    return Device(agent, NOW_MS - 10**6, round(NOW_MS - age_s * 1000), slots)


def state_of(one: Rollout, them: list[Rollout], *devices: Device) -> RolloutState:
    return progress(
        one,
        them,
        {each.agent: each for each in devices},
        now_ms=NOW_MS,
        silent_after_s=SILENT_S,
    ).state


@pytest.mark.parametrize(
    ("reported", "age_s", "becomes"),
    [
        (None, 1, AgentState.PENDING),
        (slot("1"), 1, AgentState.PENDING),
        (slot(None), 1, AgentState.PENDING),
        (slot("1", "pulling", 7), 1, AgentState.PULLING),
        (slot("1", "testing", 7), 1, AgentState.TESTING),
        (slot("1", "swapped", 7), 1, AgentState.PENDING),
        (slot("1", "refused", 7, "digest"), 1, AgentState.REFUSED),
        (slot("2", "swapped", 7), 1, AgentState.UPDATED),
        (slot("2", "idle", 7), 1, AgentState.UPDATED),
        (slot("2", "idle", 8), 1, AgentState.UPDATED),
        # It serves the version from before, and has not said that it will stay.
        (slot("2", "swapped", 6), 1, AgentState.PENDING),
        # What it says is of an earlier rollout.
        (slot("1", "refused", 6, "old news"), 1, AgentState.PENDING),
        (slot("1", "pulling", 6), 1, AgentState.PENDING),
        # Not heard of for long: silent only while it still has to move.
        (None, 91, AgentState.SILENT),
        (slot("1", "pulling", 7), 91, AgentState.SILENT),
        (slot("2", "swapped", 7), 10_000, AgentState.UPDATED),
        (slot("1", "refused", 7, "digest"), 10_000, AgentState.REFUSED),
        (slot("1", "pulling", 7), 90, AgentState.PULLING),
    ],
)
def test_the_state_of_an_agent_follows_from_its_report(
    reported: SlotReport | None, age_s: float, becomes: AgentState
) -> None:
    one = rollout(7, "2")
    reports = () if reported is None else (reported,)
    came = progress(
        one,
        [one],
        {"a": device("a", *reports, age_s=age_s)},
        now_ms=NOW_MS,
        silent_after_s=SILENT_S,
    )
    assert [each.state for each in came.agents] == [becomes]


def test_a_refusal_carries_its_reason_and_what_still_serves() -> None:
    one = rollout(7, "2")
    came = progress(
        one,
        [one],
        {"a": device("a", slot("1", "refused", 7, "golden input 3 differs"))},
        now_ms=NOW_MS,
        silent_after_s=SILENT_S,
    )
    assert came.agents[0].reason == "golden input 3 differs"
    assert came.agents[0].version == "1"


def test_an_old_reason_is_not_shown_once_the_agent_is_updated() -> None:
    one = rollout(7, "2")
    came = progress(
        one,
        [one],
        {"a": device("a", slot("2", "swapped", 7, "was refused once"))},
        now_ms=NOW_MS,
        silent_after_s=SILENT_S,
    )
    assert came.agents[0].reason is None


OLD, NEW, BAD = slot("1"), slot("2", "swapped", 7), slot("1", "refused", 7, "bad")


@pytest.mark.parametrize(
    ("slots", "becomes"),
    [
        ([], RolloutState.IN_PROGRESS),
        ([NEW], RolloutState.DONE),
        ([NEW, NEW], RolloutState.DONE),
        ([NEW, OLD], RolloutState.IN_PROGRESS),
        ([NEW, BAD], RolloutState.FAILED),
        ([BAD, BAD], RolloutState.FAILED),
        # Others still move: it is too early to say.
        ([BAD, OLD], RolloutState.IN_PROGRESS),
    ],
)
def test_a_rollout_is_done_when_all_are_updated_and_failed_when_one_refused(
    slots: list[SlotReport], becomes: RolloutState
) -> None:
    one = rollout(7, "2")
    devices = [device(f"a{i}", each) for i, each in enumerate(slots)]
    assert state_of(one, [one], *devices) is becomes


def test_a_silent_agent_keeps_a_rollout_open_but_does_not_hide_a_refusal() -> None:
    one = rollout(7, "2")
    silent = device("s", OLD, age_s=1000)
    assert state_of(one, [one], silent, device("a", NEW)) is RolloutState.IN_PROGRESS
    assert state_of(one, [one], silent, device("a", BAD)) is RolloutState.FAILED


def test_only_targets_are_asked_also_one_that_is_forgotten() -> None:
    one = rollout(7, "2", "a", "gone")
    came = progress(
        one,
        [one],
        {"a": device("a", NEW), "b": device("b", OLD)},
        now_ms=NOW_MS,
        silent_after_s=SILENT_S,
    )
    assert [(each.agent, each.state) for each in came.agents] == [
        ("a", AgentState.UPDATED),
        ("gone", AgentState.PENDING),
    ]


def test_a_newer_rollout_takes_its_agents_and_leaves_the_others() -> None:
    first, second = rollout(1, "1"), rollout(2, "2", "a")
    devices = {
        "a": device("a", slot("2", "swapped", 2)),
        "b": device("b", slot("1", "swapped", 1)),
    }
    came = progress(
        first, [first, second], devices, now_ms=NOW_MS, silent_after_s=SILENT_S
    )
    assert [each.state for each in came.agents] == [
        AgentState.SUPERSEDED,
        AgentState.UPDATED,
    ]
    assert came.state is RolloutState.DONE
    assert state_of(first, [first, second], devices["a"]) is RolloutState.SUPERSEDED


def test_an_agent_that_comes_later_revives_a_rollout_for_all() -> None:
    first, second = rollout(1, "1"), rollout(2, "2", "a")
    late = device("late", slot(None))
    assert state_of(first, [first, second], late) is RolloutState.IN_PROGRESS


def test_another_model_supersedes_nothing() -> None:
    first, second = rollout(1, "2"), rollout(2, "9", model="other")
    assert state_of(first, [first, second], device("a", NEW)) is RolloutState.DONE


def test_current_rollouts_are_those_somebody_follows_newest_first() -> None:
    them = [
        rollout(1, "1"),
        rollout(2, "2"),
        rollout(3, "3", "a"),
        rollout(4, "1", model="other"),
    ]
    came = current(
        them,
        {"a": device("a"), "b": device("b")},
        now_ms=NOW_MS,
        silent_after_s=SILENT_S,
    )
    assert [each.rollout.generation for each in came] == [4, 3, 2]


def test_desired_is_the_newest_generation_of_each_model_that_reaches_the_agent() -> (
    None
):
    them = [
        rollout(3, "3", "a"),
        rollout(1, "1"),
        rollout(4, "9", "b", model="other"),
        rollout(2, "2"),
    ]
    wanted = {
        agent: [
            (each.model, each.version, each.generation)
            for each in desired_for(agent, them)
        ]
        for agent in "abc"
    }
    assert wanted == {
        "a": [("fashion", "3", 3)],
        "b": [("fashion", "2", 2), ("other", "9", 4)],
        "c": [("fashion", "2", 2)],
    }


def test_nothing_is_desired_before_the_first_rollout() -> None:
    assert desired_for("a", []) == ()


def test_a_generation_is_above_all_rollouts_and_all_that_agents_hold_to() -> None:
    # Another was restored from an old backup, or lost.
    held = [device("a", slot("1", "idle", 57)), device("b", slot("1", "idle", 3))]
    assert next_generation([], []) == 1
    assert next_generation([rollout(4, "1"), rollout(2, "1")], held[1:]) == 5
    assert next_generation([rollout(4, "1")], held) == 58


def test_an_agent_that_lies_does_not_use_up_the_generations() -> None:
    liar = device("a", slot("1", "idle", 2**63 - 1))
    assert next_generation([rollout(4, "1")], [liar]) == 5


AGENTS = ["a", "b", "c"]
ROLLOUTS = st.lists(
    st.tuples(
        st.sampled_from(["m", "n"]),
        st.sampled_from(["1", "2"]),
        st.none() | st.frozensets(st.sampled_from(AGENTS), min_size=1),
    ),
    max_size=8,
).map(
    lambda rows: [
        Rollout(generation, model, version, NOW_MS, targets)
        for generation, (model, version, targets) in enumerate(rows, start=1)
    ]
)


@given(ROLLOUTS, st.sets(st.sampled_from(AGENTS)))
def test_each_agent_follows_exactly_the_rollouts_desired_of_it(
    them: list[Rollout], agents: set[str]
) -> None:
    devices = {agent: device(agent) for agent in agents}
    followed = {
        (each.agent, came.rollout.generation)
        for came in current(them, devices, now_ms=NOW_MS, silent_after_s=SILENT_S)
        for each in came.agents
        if each.state is not AgentState.SUPERSEDED and each.agent in agents
    }
    wanted = {
        (agent, each.generation)
        for agent in agents
        for each in desired_for(agent, them)
    }
    assert followed == wanted


@given(ROLLOUTS)
def test_what_is_buried_is_desired_of_nobody(them: list[Rollout]) -> None:
    left = unburied(them)
    for agent in [*AGENTS, "never-seen"]:
        assert desired_for(agent, left) == desired_for(agent, them)
