"""What the gates say of agents: fail on proof of harm, pass on proof of none, else wait."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import pytest

from broker.messages import CascadeReport, HealthReport, SlotReport
from fleet.core.devices import Device
from fleet.core.gates import (
    DEFAULT_GATES,
    SAYS,
    Decision,
    Gate,
    GateKind,
    Verdict,
)
from fleet.core.judging import judge
from fleet.core.rollouts import AgentState, Rollout, Told, Wave

ONE = Rollout(7, "fashion", "2", 0, gates=DEFAULT_GATES)
GATES = {each.kind: each for each in DEFAULT_GATES}
BEFORE = HealthReport(
    requests=10_000,
    errors=5,
    spilled=1000,
    compared=1100,
    agreed=760,
    chosen=100,
    chosen_agreed=92,
    p50_ms=8.0,
)


def verdict(
    kind: GateKind,
    states: list[AgentState],
    health: Mapping[str, Any] | None = None,
    gate: Gate | None = None,
    wave: int = 0,
    served: str | None = "1",
    **more: Any,
) -> Verdict:
    """What one gate says of agents that all report the same."""
    said = SlotReport(
        model="fashion",
        active="2",
        state="swapped",
        generation=7,
        health=None if health is None else HealthReport(**health),
        before=BEFORE,
        **more,
    )
    names = [f"a{each}" for each in range(len(states))]
    (came,) = judge(
        replace(ONE, gates=(gate or GATES[kind],)),
        dict(zip(names, states, strict=True)),
        {each: Device(each, 0, 0, (said,)) for each in names},
        {each: Told(each, wave, 0, before=served) for each in names},
    )
    return came


S = AgentState
OK, BAD, ON, LATE = S.UPDATED, S.REFUSED, S.PULLING, S.LATE


@pytest.mark.parametrize(
    ("states", "decision", "final"),
    [
        ([OK] * 10, Decision.PASS, False),
        ([OK] * 8 + [BAD, S.SILENT], Decision.PASS, False),
        # Three of ten prove nothing, and nothing more will be learned.
        ([OK] * 7 + [BAD] * 3, Decision.INCONCLUSIVE, True),
        ([OK] * 3 + [BAD] * 7, Decision.FAIL, False),
        ([S.RETURNED] * 10, Decision.FAIL, False),
        # Those that fail fail first: the ones on their way are counted as well.
        ([BAD] * 3 + [ON] * 7, Decision.INCONCLUSIVE, False),
        ([BAD] * 7 + [ON] * 3, Decision.FAIL, False),
        ([OK] * 9 + [ON], Decision.INCONCLUSIVE, False),
        # Nobody waits for those who wait, and they are no success.
        ([OK] * 5 + [LATE] * 5, Decision.PASS, False),
        ([LATE] * 5, Decision.INCONCLUSIVE, False),
        # One agent that fails is no proof of anything.
        ([BAD], Decision.INCONCLUSIVE, True),
        # One that came back from its probation has proved it by itself.
        ([S.RETURNED], Decision.FAIL, False),
        ([S.RETURNED, BAD], Decision.INCONCLUSIVE, True),
        ([OK] * 990 + [BAD] * 10, Decision.PASS, False),
        ([OK] * 700 + [BAD] * 300, Decision.FAIL, False),
    ],
)
def test_success_is_of_agents(
    states: list[AgentState], decision: Decision, *, final: bool
) -> None:
    came = verdict(GateKind.SUCCESS, states)
    assert (came.decision, came.final) == (decision, final)


def test_silence_counts_the_silent_alone() -> None:
    assert verdict(GateKind.SILENCE, [S.SILENT] * 10).decision is Decision.FAIL
    assert verdict(GateKind.SILENCE, [BAD] * 10).decision is Decision.PASS


@pytest.mark.parametrize(
    ("errors", "requests", "decision"),
    [
        (0, 1, Decision.INCONCLUSIVE),
        (0, 100, Decision.PASS),
        (0, 10, Decision.PASS),
        (15, 100, Decision.FAIL),
        (3, 100, Decision.INCONCLUSIVE),
        (20, 10_000, Decision.PASS),
    ],
)
def test_errors_are_of_requests(errors: int, requests: int, decision: Decision) -> None:
    came = verdict(GateKind.ERRORS, [OK] * 10, {"requests": requests, "errors": errors})
    assert came.decision is decision


@pytest.mark.parametrize(
    ("wave", "asked", "decision"),
    [
        (0, 0.15, Decision.PASS),
        (1, 0.1, Decision.INCONCLUSIVE),
        (2, 0.075, Decision.INCONCLUSIVE),
    ],
)
def test_the_further_a_version_has_spread_the_more_is_asked_of_it(
    wave: int, asked: float, decision: Decision
) -> None:
    health = {"chosen": 20, "chosen_agreed": 18}
    came = verdict(GateKind.AGREEMENT, [OK] * 10, health, wave=wave)
    assert GATES[GateKind.AGREEMENT].asked(wave) == pytest.approx(asked)
    assert came.decision is decision


def test_an_agent_that_fails_all_it_is_asked_is_one_failed_agent() -> None:
    gates = (GATES[GateKind.SUCCESS], GATES[GateKind.ERRORS])
    names = [f"a{each}" for each in range(10)]

    def said(name: str) -> SlotReport:
        errors = 1000 if name == "a0" else 0
        health = HealthReport(requests=1000, errors=errors)
        return SlotReport(
            model="fashion", active="2", state="swapped", generation=7, health=health
        )

    came = judge(
        replace(ONE, gates=gates),
        dict.fromkeys(names, OK),
        {each: Device(each, 0, 0, (said(each),)) for each in names},
        {each: Told(each, 0, 0) for each in names},
    )
    assert [each.decision for each in came] == [Decision.PASS, Decision.PASS]
    assert came[0].value == pytest.approx(0.1)


@pytest.mark.parametrize(
    ("health", "decision", "of"),
    [
        ({}, Decision.INCONCLUSIVE, "only 0, at least 20"),
        ({"chosen": 1, "chosen_agreed": 0}, Decision.INCONCLUSIVE, "only 10"),
        ({"chosen": 20, "chosen_agreed": 18}, Decision.PASS, "drawn by chance"),
        ({"chosen": 5, "chosen_agreed": 1}, Decision.FAIL, "over 50 audits"),
        # A little worse is neither proved bad nor proved harmless.
        ({"chosen": 40, "chosen_agreed": 33}, Decision.INCONCLUSIVE, "9.5 %"),
        ({"chosen": 400, "chosen_agreed": 310}, Decision.FAIL, "14.5 %"),
        # Of what was spilled for being hard it is known early that it is very bad,
        ({"compared": 30, "agreed": 3}, Decision.FAIL, "most of them hard"),
        # and never that it is good.
        ({"compared": 900, "agreed": 650}, Decision.INCONCLUSIVE, "only 0"),
    ],
)
def test_agreement_is_judged_by_audits_first(
    health: dict[str, int], decision: Decision, of: str
) -> None:
    came = verdict(GateKind.AGREEMENT, [OK] * 10, health)
    assert came.decision is decision, came
    assert of in came.reason


def test_a_version_that_agrees_more_is_said_to_and_by_how_much() -> None:
    came = verdict(GateKind.AGREEMENT, [OK] * 10, {"chosen": 400, "chosen_agreed": 396})
    assert came.decision is Decision.PASS
    assert re.match(r"\d\.\d % more \(-?\d\.\d to \d+\.\d %\), over 4000", came.reason)


def test_the_first_version_of_a_model_has_nothing_to_agree_less_than() -> None:
    came = verdict(GateKind.AGREEMENT, [OK] * 10, {}, served=None)
    assert (came.decision, came.reason) == (Decision.PASS, "no version to compare with")


@pytest.mark.parametrize(
    ("spilled", "decision"),
    [
        (100, Decision.PASS),
        (600, Decision.FAIL),
        # Sure of everything: as suspect as unsure of everything.
        (0, Decision.INCONCLUSIVE),
    ],
)
def test_spill_may_shift_neither_way(spilled: int, decision: Decision) -> None:
    health = {"requests": 1000, "spilled": spilled}
    gate = replace(GATES[GateKind.SPILL], enough=0.1)
    assert verdict(GateKind.SPILL, [OK] * 10, health, gate).decision is decision
    closer = replace(gate, limit=0.05, enough=0.05)
    if not spilled:
        came = verdict(GateKind.SPILL, [OK] * 10, health, closer)
        assert came.decision is Decision.FAIL
        assert came.value == pytest.approx(-0.1)
        # Which way it shifted is a word, and not a sign.
        assert came.reason.startswith("10.0 % less (")
        assert " -" not in came.reason


@pytest.mark.parametrize(
    ("agents", "p50_ms", "decision"),
    [
        (10, 9.0, Decision.PASS),
        (10, 30.0, Decision.FAIL),
        (8, 30.0, Decision.INCONCLUSIVE),
        (10, None, Decision.INCONCLUSIVE),
    ],
)
def test_latency_is_a_vote_of_agents(
    agents: int, p50_ms: float | None, decision: Decision
) -> None:
    came = verdict(GateKind.LATENCY, [OK] * agents, {"p50_ms": p50_ms})
    assert came.decision is decision


@pytest.mark.parametrize(
    ("standing", "decision"),
    [
        ("kept", Decision.PASS),
        ("at_risk", Decision.PASS),
        ("broken", Decision.FAIL),
        (None, Decision.INCONCLUSIVE),
    ],
)
def test_a_broken_promise_is_a_vote_too(standing: Any, decision: Decision) -> None:
    cascade = CascadeReport(standing=standing)
    came = verdict(GateKind.PROMISE, [OK] * 10, {}, cascade=cascade)
    assert came.decision is decision


def test_what_an_agent_says_of_another_version_is_not_heard() -> None:
    health = HealthReport(requests=1000, errors=1000)
    old = SlotReport(model="fashion", active="1", generation=7, health=health)
    (came,) = judge(
        replace(ONE, gates=(GATES[GateKind.ERRORS],)),
        {"a": S.PULLING},
        {"a": Device("a", 0, 0, (old,))},
        {"a": Told("a", 0, 0)},
    )
    assert (came.decision, came.sample) == (Decision.INCONCLUSIVE, 0)


def test_a_shadow_is_heard_in_its_wave() -> None:
    health = HealthReport(requests=1000, errors=150)
    shadow = SlotReport(
        model="fashion",
        active="1",
        staged="2",
        state="shadow",
        generation=7,
        health=health,
    )
    gates = (GATES[GateKind.ERRORS],)
    (came,) = judge(
        replace(ONE, gates=gates, waves=(Wave(shadow=True), Wave())),
        {"a": S.SHADOW},
        {"a": Device("a", 0, 0, (shadow,))},
        {"a": Told("a", 0, 0, shadow=True)},
    )
    assert came.decision is Decision.FAIL


def test_every_gate_has_words_and_a_default() -> None:
    assert set(SAYS) == set(GateKind) == {each.kind for each in DEFAULT_GATES}


@pytest.mark.parametrize(
    "kind", [GateKind.ERRORS, GateKind.AGREEMENT, GateKind.SPILL], ids=str
)
def test_a_limit_of_nothing_at_all_is_judged_as_any_other(kind: GateKind) -> None:
    strict = replace(GATES[kind], limit=0.0, enough=0.0)
    health = BEFORE.model_dump()
    none = verdict(kind, [AgentState.UPDATED], health, strict)
    assert none.decision is Decision.INCONCLUSIVE
    bad = {"errors": 1000, "spilled": 9000, "agreed": 0, "chosen_agreed": 0}
    harmed = verdict(kind, [AgentState.UPDATED] * 3, {**health, **bad}, strict)
    assert harmed.decision is Decision.FAIL
