"""What became of agents, from what they and the fleet say."""

from __future__ import annotations

from typing import Any

import pytest

from overspill.simulate.plan import Fault, Persona, Plan, Trouble, cast
from overspill.simulate.tally import Became, Tally, compare
from overspill.simulate.visit import VisitTally

PLAN = Plan(agents=4, faults={Fault.OFFLINE: Trouble(agents=1)})


def said(**slots: dict[str, Any]) -> dict[str, Any]:
    return {
        "connected": 4,
        "heard_bytes": 10,
        "resident_mb": 100.0,
        "slots": {name.replace("_", "-"): slot for name, slot in slots.items()},
        "failed": {},
    }


def slot(
    state: str,
    active: str = "1",
    generation: int = 7,
    reason: str = "",
    staged: str | None = None,
) -> Any:
    return {
        "state": state,
        "active": active,
        "staged": staged,
        "generation": generation,
        "reason": reason or None,
    }


def tally(ended: str | None = None) -> Tally:
    return Tally(cast(PLAN), "2", generation=7, ended=ended)


def persona(found: Tally, agent: str) -> Persona:
    return next(each for each in found.personas if each.agent == agent)


def test_an_agent_that_speaks_of_an_earlier_rollout_is_unreached() -> None:
    found = tally()
    found.take(0, said(sim_00000=slot("swapped", "2", generation=6)), 1.0)
    assert found.counts() == {Became.UNREACHED: 4}


def test_agents_end_converged_returned_refused_or_sent_back() -> None:
    found = tally("rolled_back")
    found.take(
        0,
        said(
            sim_00000=slot("swapped", "2"),
            sim_00001=slot("returned", reason="it crashed"),
            sim_00002=slot("refused", reason="not for /tmp/x/sim-00002/y"),
            sim_00003=slot("swapped", "1", generation=8),
        ),
        2.5,
    )
    assert found.counts() == {
        Became.CONVERGED: 1,
        Became.RETURNED: 1,
        Became.REFUSED: 1,
        Became.BACK: 1,
    }
    assert found.settled
    reasons = {why for row in found.rows() for why, _ in row.reasons}
    assert reasons == {"it crashed", "not for …"}


def test_nothing_is_settled_while_the_rollout_goes_on() -> None:
    found = tally()
    found.take(0, said(**{f"sim_0000{n}": slot("swapped", "2") for n in range(4)}), 1.0)
    assert not found.settled
    found.ended = "done"
    assert found.settled


def test_who_was_never_reached_holds_up_a_done_rollout_and_no_stopped_one() -> None:
    found = tally("done")
    found.take(0, said(**{f"sim_0000{n}": slot("swapped", "2") for n in range(3)}), 1.0)
    assert not found.settled
    found.ended = "rolled_back"
    assert found.settled


def test_whom_the_fleet_waits_for_no_longer_nobody_else_waits_for() -> None:
    found = tally("failed")
    found.take(
        0,
        said(
            **{f"sim_0000{n}": slot("swapped", "2") for n in range(3)},
            sim_00003=slot("waiting", reason="expired"),
        ),
        1.0,
    )
    settled = [found.settled]
    found.given_up = True
    settled.append(found.settled)
    assert settled == [False, True]
    assert found.counts()[Became.WAITING] == 1


def test_who_was_excluded_is_told_with_the_fleets_reason() -> None:
    found = tally("done")
    found.take(0, said(**{f"sim_0000{n}": slot("swapped", "2") for n in range(3)}), 1.0)
    found.excluded = {"sim-00003": "its disk is full"}
    fate = found.of(persona(found, "sim-00003"))
    assert (fate.became, fate.reason) == (Became.EXCLUDED, "its disk is full")
    assert found.settled


def test_who_was_not_reached_is_told_with_how_the_fleet_has_it() -> None:
    found = tally("done")
    found.by_fleet = {"sim-00000": "queued", "sim-00001": "late"}
    reasons = [found.of(persona(found, f"sim-0000{n}")).reason for n in range(3)]
    assert reasons == [
        "the fleet has not told it yet",
        "the fleet has it as late",
        None,
    ]
    found.take(0, said(sim_00000=slot("swapped", "2")), 1.0)
    assert found.of(persona(found, "sim-00000")).reason is None


def test_all_that_an_agent_waited_for_is_kept_when_it_has_converged() -> None:
    found = tally()
    for reason in ("bad flash", "no link", "bad flash"):
        found.take(0, said(sim_00000=slot("waiting", reason=reason)), 1.0)
    found.take(0, said(sim_00000=slot("swapped", "2")), 2.0)
    (row,) = (each for each in found.rows() if each.waits)
    assert row.waits == [("bad flash", 1), ("no link", 1)]


def test_a_fault_of_the_simulation_itself_is_no_outcome() -> None:
    found = tally("done")
    found.take(0, {**said(), "failed": {"sim-00001": "KeyError('x')"}}, 1.0)
    assert found.counts()[Became.BROKEN] == 1
    assert not found.settled


def test_agents_of_whom_the_fleet_knows_something_else_are_named() -> None:
    found = tally("failed")
    found.take(0, said(sim_00000=slot("swapped", "2"), sim_00001=slot("returned")), 1.0)
    known = {"sim-00000": "1", "sim-00001": "1"}
    assert compare(found, known, "1") == ["sim-00000"]
    assert compare(found, {**known, "sim-00000": "2"}, "1") == []


def test_visitors_have_come_to_what_is_waited_for_whatever_the_generation() -> None:
    found = VisitTally(cast(PLAN), "3")
    found.take(
        0,
        said(
            sim_00000=slot("swapped", "3", generation=57),
            sim_00001=slot("idle", "2", generation=56),
            sim_00002=slot("idle", "1", generation=0),
            sim_00003=slot("refused", "2", 57, reason="too large", staged="3"),
        ),
        1.0,
    )
    assert found.counts() == {
        Became.CONVERGED: 1,
        Became.UNREACHED: 2,
        Became.REFUSED: 1,
    }
    assert not found.settled
    for late in ("sim_00001", "sim_00002"):
        found.take(0, said(**{late: slot("swapped", "3", generation=57)}), 2.0)
    assert found.settled


def test_visitors_that_wait_for_nothing_come_to_whatever_is_desired() -> None:
    found = VisitTally(cast(PLAN), "")
    found.take(0, said(sim_00000=slot("swapped", "9", generation=3)), 1.0)
    assert found.counts() == {Became.CONVERGED: 1, Became.UNREACHED: 3}


@pytest.mark.parametrize("state", ["refused", "returned"])
def test_what_visitors_said_of_another_version_ends_no_waiting(state: str) -> None:
    found = VisitTally(cast(PLAN), "3")
    names = ("sim_00000", "sim_00001", "sim_00002", "sim_00003")
    found.take(0, said(**{each: slot(state, staged="2") for each in names}), 1.0)
    assert found.counts() == {Became.UNREACHED: 4}
    assert not found.settled
    found.take(0, said(**{each: slot(state, staged="3") for each in names}), 2.0)
    assert found.settled
