"""A rollout as an operator sees it: counted, told line by line, and on 80 columns."""

from __future__ import annotations

import io
from collections.abc import Iterable
from dataclasses import replace
from typing import Any

import pytest
from rich.cells import cell_len
from rich.console import Console

from fleet.cli.rollout_view import fitting, picture
from fleet.core.changes import changes
from fleet.core.cohorts import read_waves
from fleet.core.gates import DEFAULT_GATES, Decision, GateKind, Verdict
from fleet.core.outlook import (
    Outlook,
    WaveState,
    counted,
    document,
    outlook,
)
from fleet.core.progress import AgentProgress, RolloutProgress
from fleet.core.rollouts import (
    AgentState,
    Course,
    Rollout,
    RolloutState,
    WayBack,
)

NOW_MS = 1_800_000_000_000
BAD = "errors: 10.0 % (8.0 to 12.0 %) of 1200 requests"
VERDICTS = (
    Verdict(GateKind.SUCCESS, Decision.PASS, 100, 0.02, 0.003, 0.081, "2 of 100"),
    Verdict(GateKind.ERRORS, Decision.FAIL, 1200, 0.1, 0.08, 0.12, "10 %"),
    Verdict(GateKind.AGREEMENT, Decision.INCONCLUSIVE, 3, reason="only 3"),
)
FLEET = (
    *[AgentState.UPDATED] * 59,
    *[AgentState.REFUSED] * 5,
    *[AgentState.PULLING] * 36,
    *[AgentState.SILENT] * 12,
    *[AgentState.QUEUED] * 888,
    *[AgentState.EXCLUDED] * 7,
)


def agents(states: Iterable[AgentState]) -> tuple[AgentProgress, ...]:
    """The first hundred were told: ten in the first wave."""
    return tuple(
        AgentProgress(
            f"camera-of-the-northern-hall-{number:04}",
            state,
            "2",
            "its disk has 12 MB free; the bundle needs 42: make room, or exclude it"
            if state in {AgentState.REFUSED, AgentState.EXCLUDED}
            else None,
            NOW_MS - 1000,
            None if number >= 100 else int(number >= 10),
        )
        for number, state in enumerate(states)
    )


def seen(
    state: RolloutState = RolloutState.RUNNING,
    states: Iterable[AgentState] = FLEET,
    *,
    waves: str = "1%,10%,50%",
    query: str
    | None = "site=lyon and machine in (aarch64, x86_64) and memory_mb >= 512",
    **course: Any,
) -> Outlook:
    read, rate = read_waves(waves, soak_s=300)
    rollout = Rollout(
        12,
        "fashion-of-the-season",
        "3.1.4",
        NOW_MS - 200_000,
        query=query,
        waves=read,
        rate=rate,
        gates=DEFAULT_GATES,
        way_back=WayBack("2", 7),
        by="ann.of.the.operations@console-17.example.com",
    )
    its = {"since_ms": NOW_MS - 125_000, "wave": 1, "verdicts": VERDICTS, **course}
    came = RolloutProgress(
        rollout, Course(state=state, **its), agents(states), 100, last_wave=False
    )
    return outlook(came, NOW_MS)


def lines(
    one: Outlook, width: int = 80, *, height: int = 100, ascii_: bool = False
) -> list[str]:
    out = io.TextIOWrapper(io.BytesIO(), "ascii" if ascii_ else "utf-8")
    console = Console(
        file=out, width=width, height=height, force_terminal=True, color_system=None
    )
    console.print(fitting(one, console))
    out.seek(0)
    return [line.rstrip() for line in out.read().splitlines()]


def test_each_wave_is_counted_by_its_own_agents() -> None:
    told = [
        (each.reach, each.total, each.agents, each.updated, each.failed, each.moving)
        for each in seen().waves
    ]
    assert told == [
        ("1%", 10, 10, 10, 0, 0),
        ("10%", 100, 90, 49, 5, 36),
        ("50%", 500, 400, 0, 0, 0),
        ("all", 1000, 500, 0, 0, 0),
    ]
    states = [each.state for each in seen().waves]
    assert states == [
        WaveState.PASSED,
        WaveState.MOVING,
        WaveState.TO_COME,
        WaveState.TO_COME,
    ]
    assert counted(seen()) == (
        "59 of 1000 agents updated, 36 on their way, 5 failed, 888 to come, 12 away"
    )


@pytest.mark.parametrize(
    ("state", "course", "expected"),
    [
        (RolloutState.RUNNING, {"settled_at_ms": NOW_MS - 60_000}, WaveState.SOAKING),
        (RolloutState.RUNNING, {"settled_at_ms": NOW_MS - 400_000}, WaveState.UNSURE),
        (RolloutState.PAUSED, {}, WaveState.PAUSED),
        (RolloutState.AWAITING_APPROVAL, {}, WaveState.APPROVAL),
        (RolloutState.ROLLING_BACK, {}, WaveState.STOPPED),
        (RolloutState.DONE, {}, WaveState.PASSED),
    ],
)
def test_the_wave_on_its_way_says_what_it_waits_for(
    state: RolloutState, course: dict[str, Any], expected: WaveState
) -> None:
    assert seen(state, **course).waves[1].state is expected


def test_a_rollout_that_ended_has_no_waves_to_come() -> None:
    assert len(seen(RolloutState.ABORTED).waves) == 2


def test_a_rate_says_how_many_each_wave_reaches() -> None:
    reached = [each.reach for each in seen(waves="10x3").waves]
    assert reached == ["10", "100", "130", "400", "1000"]


@pytest.mark.parametrize("width", [60, 80, 81, 120])
@pytest.mark.parametrize("state", list(RolloutState))
def test_no_line_is_wider_than_the_terminal(width: int, state: RolloutState) -> None:
    reason = f"{BAD}; agreement: 12.3 % (8.1 to 16.5 %) over 44 audits, drawn by chance"
    for line in lines(seen(state, reason=reason), width):
        assert cell_len(line) <= width


def test_eighty_columns_show_waves_gates_failures_and_why_it_paused() -> None:
    shown = lines(seen(RolloutState.PAUSED, reason=BAD))
    text = "\n".join(shown)
    assert shown[0].startswith("rollout 12  fashion-of-the-season 3.1.4  paused")
    assert shown[1].startswith("59 of 1000 agents updated, 36 on their way, 5 failed")
    assert f"paused: {BAD}" in text
    assert "next: overspill rollout resume 12 (or rollback, abort)" in text
    waves = [line.split() for line in shown if line.lstrip()[:1].isdigit()][1:]
    assert [line[:4] for line in waves[:2]] == [
        ["1", "1%", "=", "10"],
        ["2", "10%", "=", "100"],
    ]
    assert "█" in text
    assert "▓" in text
    assert "▒" in text
    assert "10 of 10" in text
    assert "49 of 90" in text
    gates = {line.split()[0]: line for line in shown if line[:1].isalpha()}
    assert "pass" in gates["success"]
    assert "2.0%    0.3% to 8.1%    20%  100 agents" in gates["success"]
    assert "FAIL" in gates["errors"]
    assert "3 audits, needs 20" in gates["agreement"]
    assert "nothing yet" in gates["spill"]
    assert "camera-of-the-northern-hall-0059" in text
    assert "refused" in text
    assert "disk" in text


def test_a_small_terminal_keeps_what_matters_most() -> None:
    shown = lines(seen(RolloutState.PAUSED, reason=BAD), height=24)
    text = "\n".join(shown)
    assert len(shown) < 24
    assert f"paused: {BAD}" in text
    assert "next: overspill rollout resume 12" in text
    assert "FAIL" in text


def test_a_terminal_without_block_characters_gets_plain_ones() -> None:
    text = "\n".join(lines(seen(query=None), 160, ascii_=True))
    assert "####" in text
    assert "...." in text


def test_forty_waves_are_shown_around_the_one_on_its_way() -> None:
    waves = ",".join(str(number) for number in range(10, 410, 10))
    shown = lines(seen(waves=waves, wave=20))
    assert any("210" in line for line in shown)
    assert any("of 41 waves" in line for line in shown)
    assert len(shown) < 40


def test_what_is_new_between_two_looks_is_told_once_and_in_words() -> None:
    before = seen(
        states=[AgentState.PULLING] * 10 + [AgentState.QUEUED] * 90,
        wave=0,
        verdicts=(),
    )
    after = seen(
        RolloutState.PAUSED,
        [AgentState.UPDATED] * 9 + [AgentState.REFUSED] + [AgentState.QUEUED] * 90,
        wave=2,
        reason=BAD,
    )
    told = [(each.kind, each.text) for each in changes(before, after)]
    assert [kind for kind, _ in told] == [
        "wave",
        "wave",
        "agent",
        "agents",
        "gate",
        "gate",
        "state",
    ]
    assert told[0][1] == "wave 2 of 4 begins"
    assert told[2][1].startswith("camera-of-the-northern-hall-0009 refused: its disk")
    assert told[-2][1] == "gate errors: fail, 10 %"
    assert told[-1][1] == f"paused: {BAD}"
    assert list(changes(after, after)) == []


def test_silence_and_standing_still_have_words_of_their_own() -> None:
    states = [AgentState.SILENT, AgentState.STUCK] + [AgentState.UPDATED] * 8
    text = "\n".join(lines(seen(states=states)))
    assert "not heard of within its lease" in text
    assert "did not move within its lease" in text


def test_the_document_has_what_the_picture_shows() -> None:
    said = document(seen(RolloutState.PAUSED, reason=BAD))
    assert (said["state"], said["reason"], said["way_back"]) == ("paused", BAD, "2")
    assert [each["agents"] for each in said["waves"]] == [10, 90, 400, 500]
    assert said["gates"][1]["decision"] == "fail"
    excluded = [each for each in said["agents"] if each["state"] == "excluded"]
    assert len(excluded) == 7
    assert all("disk" in each["reason"] for each in excluded)


def test_a_gate_that_a_person_overruled_says_so() -> None:
    one = seen()
    course = replace(one.course, waived=frozenset({GateKind.ERRORS}))
    overruled = outlook(replace(one.progress, course=course), NOW_MS)
    console = Console(width=80, file=io.StringIO(), color_system=None)
    console.print(picture(overruled))
    assert isinstance(console.file, io.StringIO)
    assert "errors     overruled" in console.file.getvalue()


def test_a_gate_that_has_nothing_to_compare_with_says_so() -> None:
    nothing = Verdict(
        GateKind.SPILL, Decision.PASS, 0, reason="no version to compare with"
    )
    text = "\n".join(lines(seen(verdicts=(nothing,))))
    assert "no version to compare with" in text


def test_a_fleet_that_nobody_hears_is_said_to_be_so() -> None:
    heard = seen()
    later = outlook(heard.progress, NOW_MS + 180_000)
    assert [each.kind for each in changes(heard, later)] == ["quiet"]
    assert "is `overspill fleet run` up" in " ".join(lines(later))
    over = outlook(seen(RolloutState.DONE).progress, NOW_MS + 180_000)
    assert over.quiet_s is None
