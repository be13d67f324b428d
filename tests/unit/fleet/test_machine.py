"""The rollout as a machine: waves, gates, people, rollbacks, and devices that come late."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from broker.messages import DesiredModel, HealthReport, SlotReport
from fleet.core.gates import DEFAULT_GATES, Gate, GateKind, Unsure
from fleet.core.machine import (
    NEXT,
    Changed,
    Event,
    Tell,
    WrongMove,
    order,
)
from fleet.core.plan import Needs
from fleet.core.rollouts import (
    LIVE,
    AgentState,
    Course,
    OnFailure,
    Rate,
    Rollout,
    RolloutState,
    Wave,
    WayBack,
)
from tests.rollouts import Small, refusing, served

TEN = [f"a{each}" for each in range(10)]
BACK = WayBack("1", 5)
SUCCESS = Gate(GateKind.SUCCESS, limit=0.2)
WAVES = (Wave(count=2), Wave(share=0.5), Wave())
R = RolloutState


def state(fleet: Small, rollout: Rollout) -> RolloutState:
    return fleet.course(rollout).state


def test_without_waves_all_are_told_at_once_and_it_is_done_when_all_have_it() -> None:
    fleet = Small(TEN)
    one = fleet.start()
    fleet.look()
    assert fleet.told(one) == set(TEN)
    fleet.obey(*TEN[:9])
    fleet.look()
    assert state(fleet, one) is R.RUNNING
    fleet.obey()
    fleet.look()
    assert state(fleet, one) is R.DONE


def test_without_gates_it_has_failed_when_one_refused_and_mends_with_it() -> None:
    fleet = Small(TEN)
    one = fleet.start()
    fleet.look()
    fleet.obey(*TEN[1:])
    fleet.obey("a0", answer=refusing)
    fleet.look()
    assert state(fleet, one) is R.FAILED
    assert fleet.course(one).reason == "1 agent (a0) did not take it"
    assert fleet.course(one).told["a0"].reason == "golden input 3 differs"
    fleet.obey("a0")
    fleet.look()
    assert state(fleet, one) is R.DONE


def test_a_wave_begins_when_the_one_before_has_settled_and_soaked() -> None:
    fleet = Small(TEN)
    one = fleet.start(waves=tuple(Wave(count=n, soak_s=60) for n in (2, 5, 10)))
    fleet.look()
    assert len(fleet.told(one)) == 2
    fleet.obey()
    fleet.look()
    fleet.passes(59)
    fleet.look()
    assert len(fleet.told(one)) == 2
    fleet.passes(1)
    (step,) = fleet.look()
    assert len(fleet.told(one)) == 5
    kinds = [type(each) for each in step.decisions]
    assert kinds == [Changed, Tell]
    assert fleet.course(one).wave == 1


def test_looking_again_decides_nothing_new() -> None:
    fleet = Small(TEN)
    fleet.start(waves=WAVES, gates=(SUCCESS,))
    for _ in range(5):
        fleet.look()
        before = dict(fleet.courses)
        (again,) = fleet.look()
        assert (again.decisions, again.changed) == ((), ())
        assert fleet.courses == before
        fleet.obey()


def test_at_most_so_many_update_at_once_and_a_stuck_one_gives_its_place_back() -> None:
    fleet = Small(TEN)
    one = fleet.start(max_parallel=3, lease_s=100)
    fleet.look()
    first = fleet.told(one)
    assert len(first) == 3
    stuck, *others = sorted(first)
    fleet.obey(*others)
    fleet.look()
    assert len(fleet.told(one)) == 5
    for _ in range(20):
        fleet.obey(*(fleet.told(one) - {stuck}))
        fleet.passes(10)
        fleet.look()
    assert fleet.told(one) == set(TEN)
    assert state(fleet, one) is R.FAILED
    assert fleet.course(one).reason == f"1 agent ({stuck}) did not take it"
    # It comes after all.
    fleet.obey(stuck)
    fleet.look()
    assert state(fleet, one) is R.DONE


def test_one_rollout_never_blocks_that_of_another_model() -> None:
    fleet = Small(TEN)
    one, other = fleet.start(max_parallel=1), fleet.start("9", model="boots")
    fleet.look()
    assert (len(fleet.told(one)), len(fleet.told(other))) == (1, 10)


def test_a_newer_rollout_of_the_same_model_supersedes_an_unfinished_one() -> None:
    fleet = Small(TEN)
    old = fleet.start("2", max_parallel=2)
    fleet.look()
    new = fleet.start("3", waves=WAVES)
    fleet.look()
    assert (state(fleet, old), state(fleet, new)) == (R.SUPERSEDED, R.RUNNING)
    fleet.run(looks=10)
    assert state(fleet, new) is R.DONE
    assert {fleet.desired(each)["fashion"].version for each in TEN} == {"3"}


def test_a_newer_rollout_to_some_takes_only_those() -> None:
    fleet = Small(TEN)
    old = fleet.start("2", waves=WAVES)
    fleet.look()
    fleet.start("3", targets=frozenset({"a0", "a1"}))
    fleet.run(looks=10)
    assert state(fleet, old) is R.DONE
    versions = {each: fleet.desired(each)["fashion"].version for each in TEN}
    assert versions == {each: "3" if each in {"a0", "a1"} else "2" for each in TEN}


def test_who_comes_late_joins_and_finds_done_what_is_done() -> None:
    fleet = Small(TEN)
    one = fleet.start(waves=WAVES)
    fleet.look()
    fleet.joins("late")
    fleet.run(looks=10)
    assert state(fleet, one) is R.DONE
    assert "late" in fleet.told(one)
    fleet.joins("later", active=None)
    fleet.look()
    assert fleet.desired("later")["fashion"].version == "2"
    assert state(fleet, one) is R.DONE


@pytest.mark.parametrize("waves", [(), WAVES])
def test_whom_the_version_no_longer_fits_takes_no_place_of_another(
    waves: tuple[Wave, ...],
) -> None:
    fleet = Small(TEN)
    for agent in TEN:
        fleet.knows(agent, free_disk_mb="900")
    one = fleet.start(query="free_disk_mb >= 64", waves=waves, max_parallel=2)
    for _ in range(15):
        fleet.look()
        for agent in fleet.told(one):
            # Its disk is full of what it pulled.
            fleet.knows(agent, free_disk_mb="1")
        fleet.obey()
        fleet.passes(1)
    assert fleet.told(one) == set(TEN)
    assert state(fleet, one) is R.DONE


def test_who_was_left_out_for_want_of_room_joins_once_there_is_room() -> None:
    fleet = Small(TEN)
    for agent in TEN:
        fleet.knows(agent, free_disk_mb="1" if agent == "a3" else "900")
    one = fleet.start(query="free_disk_mb >= 64")
    fleet.run(looks=3)
    assert state(fleet, one) is R.DONE
    assert fleet.told(one) == set(TEN) - {"a3"}
    fleet.knows("a3", free_disk_mb="900")
    fleet.run(looks=3)
    assert fleet.told(one) == set(TEN)


def test_who_is_away_is_told_when_it_is_back_and_holds_nobody_up() -> None:
    fleet = Small(TEN)
    fleet.passes(1000, heard=TEN[1:])
    one = fleet.start(waves=WAVES)
    fleet.run(looks=10)
    assert fleet.told(one) == set(TEN)  # `run` has all report again, a0 among them.
    fleet = Small(TEN)
    fleet.passes(1000, heard=TEN[1:])
    one = fleet.start(waves=WAVES)
    for _ in range(10):
        fleet.look()
        fleet.obey(*TEN[1:])
    assert (state(fleet, one), fleet.told(one)) == (R.DONE, set(TEN[1:]))
    fleet.passes(1)
    fleet.look()
    assert "a0" in fleet.told(one)


def test_a_fleet_that_is_away_is_not_through_its_waves_unseen() -> None:
    fleet = Small([f"a{each}" for each in range(100)])
    here = [f"a{each}" for each in range(5)]
    fleet.passes(1000, heard=here)
    waves = (Wave(share=0.01), Wave(share=0.1), Wave())
    one = fleet.start(waves=waves, patience_s=3600)
    for _ in range(5):
        fleet.look()
        fleet.obey(*here)
        fleet.passes(60, heard=here)
    assert fleet.told(one) == set(here)
    assert (state(fleet, one), fleet.course(one).wave) == (R.RUNNING, 1)
    for _ in range(5):
        fleet.passes(900, heard=here)
        fleet.look()
    assert state(fleet, one) is R.AWAITING_APPROVAL
    assert "5 agents more belong to this wave" in (fleet.course(one).reason or "")


def test_an_agent_that_is_retired_fails_nothing_and_holds_nothing_up() -> None:
    fleet = Small(TEN)
    one = fleet.start(gates=(Gate(GateKind.SUCCESS, limit=0.05),), way_back=BACK)
    fleet.look()
    fleet.obey(*TEN[1:])
    del fleet.devices["a0"]
    fleet.look()
    assert state(fleet, one) is R.DONE
    fleet.do(one, Event.ROLL_BACK)
    fleet.obey()
    fleet.look()
    assert (state(fleet, one), fleet.course(one).reason) == (R.ROLLED_BACK, "because")


@pytest.mark.parametrize("told", [True, False])
def test_a_rollout_whose_named_agents_are_all_gone_ends_and_says_why(
    told: bool,
) -> None:
    fleet = Small(TEN)
    one = fleet.start(targets=frozenset({"a0", "a1"}), max_parallel=1)
    if told:
        fleet.look()
    del fleet.devices["a0"]
    fleet.look()
    assert state(fleet, one) is R.RUNNING
    if told:
        del fleet.devices["a1"]
    else:
        # It lost its place for this version before it was told.
        fleet.courses[one.generation] = replace(fleet.course(one), told={})
        fleet.says("a1", SlotReport(model="fashion", active="1", floor=9))
    fleet.look()
    assert state(fleet, one) is R.ABORTED
    reason = fleet.course(one).reason or ""
    assert reason.startswith("none of its agents is left: a0 (retired), a1 (")
    assert ("it takes no epoch under 9" in reason) is not told


def test_a_rollout_whose_named_agents_lack_room_waits_for_it() -> None:
    fleet = Small(["a0"], needs={("fashion", "2"): Needs(size_bytes=10_000_000)})
    fleet.knows("a0", free_disk_mb="1")
    one = fleet.start(targets=frozenset({"a0"}))
    fleet.run(looks=3)
    assert (state(fleet, one), fleet.told(one)) == (R.RUNNING, set())
    fleet.knows("a0", free_disk_mb="900")
    fleet.run(looks=3)
    assert state(fleet, one) is R.DONE


def test_a_rollout_whose_agents_several_newer_ones_took_is_superseded() -> None:
    fleet = Small(TEN)
    one = fleet.start(targets=frozenset({"a0", "a1", "a2"}))
    fleet.look()
    fleet.start("3", targets=frozenset({"a0"}))
    fleet.start("4", targets=frozenset({"a1"}))
    fleet.look()
    assert state(fleet, one) is R.RUNNING
    del fleet.devices["a2"]
    fleet.look()
    assert state(fleet, one) is R.SUPERSEDED
    assert fleet.course(one).reason == "newer rollouts took its agents; a2 (retired)"


def test_a_rollout_for_all_waits_for_agents_that_will_join() -> None:
    fleet = Small(["a0"])
    one = fleet.start()
    fleet.look()
    del fleet.devices["a0"]
    fleet.look()
    assert state(fleet, one) is R.RUNNING
    fleet.joins("b0")
    fleet.run(looks=3)
    assert state(fleet, one) is R.DONE


def test_no_wave_soaks_while_nobody_is_heard() -> None:
    fleet = Small(TEN)
    one = fleet.start(waves=(Wave(count=2, soak_s=600), Wave()))
    fleet.look()
    fleet.obey()
    fleet.look()
    # RabbitMQ is away for an hour; then all report again.
    fleet.passes(3600)
    fleet.look(listening_since_ms=fleet.now_ms)
    assert len(fleet.told(one)) == 2
    since_ms = fleet.now_ms
    fleet.passes(600)
    fleet.look(listening_since_ms=since_ms)
    assert len(fleet.told(one)) == 10


def test_whom_there_was_no_time_to_hear_is_waited_for_before_it_is_done() -> None:
    """The fleet itself was away, or its clock was set forward: nobody seems to be there."""
    fleet = Small(TEN)
    one = fleet.start(max_parallel=1)
    fleet.look()
    fleet.obey(*fleet.told(one))
    fleet.passes(3600, heard=[])
    since_ms = fleet.now_ms
    for _ in range(3):
        fleet.look(listening_since_ms=since_ms)
        fleet.passes(29, heard=[])
    assert (state(fleet, one), len(fleet.told(one))) == (R.RUNNING, 1)
    here = sorted(set(TEN) - fleet.told(one))[:2]
    for _ in range(4):
        fleet.passes(1, heard=here)
        fleet.look(listening_since_ms=since_ms)
        fleet.obey(*fleet.told(one))
    # Who has not reported by now is away, and holds nobody up.
    assert (state(fleet, one), len(fleet.told(one))) == (R.DONE, 3)


def bad_after(version: str) -> Any:
    def answer(desired: DesiredModel) -> SlotReport:
        if desired.version != version:
            return served(desired)
        return SlotReport(
            model="fashion",
            active="1",
            state="returned",
            reason="its errors are above 2 %",
            generation=desired.generation,
        )

    return answer


def test_a_failed_gate_sends_all_back_by_itself_to_what_was_signed() -> None:
    fleet = Small([f"a{each}" for each in range(100)])
    one = fleet.start(waves=(Wave(count=10), Wave()), gates=(SUCCESS,), way_back=BACK)
    fleet.run(looks=20, answer=bad_after("2"))
    course = fleet.course(one)
    assert course.state is R.ROLLED_BACK
    assert course.reason == "success: 10 of 10 agents failed"
    assert len(course.told) == 10
    assert course.count(AgentState.BACK) == 10
    back = fleet.desired(next(iter(course.told)))["fashion"]
    assert (back.version, back.epoch, back.generation) == ("1", 5, one.generation + 1)


def test_a_rollback_does_not_wait_for_ever_and_takes_the_last_ones_later() -> None:
    fleet = Small(TEN)
    one = fleet.start(way_back=BACK, lease_s=100)
    fleet.look()
    fleet.obey()
    fleet.look()
    fleet.do(one, Event.ROLL_BACK)
    assert state(fleet, one) is R.ROLLING_BACK
    for _ in range(12):
        fleet.obey(*TEN[1:])
        fleet.passes(10, heard=TEN[1:])
        fleet.look()
    course = fleet.course(one)
    assert course.state is R.ROLLED_BACK
    assert course.reason == "because (1 not heard of yet: they go back when they are)"
    assert course.told["a0"].state is AgentState.GOING_BACK
    fleet.obey("a0")
    fleet.look()
    assert fleet.course(one).told["a0"].state is AgentState.BACK


@pytest.mark.parametrize("way_back", [None, BACK])
def test_a_failed_gate_pauses_when_told_so_or_when_there_is_no_way_back(
    way_back: WayBack | None,
) -> None:
    fleet = Small([f"a{each}" for each in range(100)])
    on_failure = OnFailure.PAUSE if way_back else OnFailure.ROLL_BACK
    one = fleet.start(
        waves=(Wave(count=10), Wave()),
        gates=(SUCCESS,),
        way_back=way_back,
        on_failure=on_failure,
    )
    fleet.run(looks=5, answer=bad_after("2"))
    assert state(fleet, one) is R.PAUSED
    assert len(fleet.told(one)) == 10
    # A person overrules that gate; it is not asked any more, but the end is no success.
    fleet.do(one, Event.RESUME)
    fleet.run(looks=3, answer=bad_after("2"))
    assert len(fleet.told(one)) == 100
    assert state(fleet, one) is R.FAILED


def test_a_person_is_asked_before_the_next_wave_and_not_after_the_last() -> None:
    fleet = Small(TEN)
    waves = (Wave(count=2, approve=True), Wave(approve=True))
    one = fleet.start(waves=waves)
    fleet.run(looks=5)
    assert state(fleet, one) is R.AWAITING_APPROVAL
    assert fleet.course(one).reason == "wave 1 has passed"
    assert len(fleet.told(one)) == 2
    fleet.do(one, Event.APPROVE)
    fleet.run(looks=5)
    assert state(fleet, one) is R.DONE


def test_gates_that_cannot_decide_ask_when_patience_has_run_out() -> None:
    fleet = Small(TEN)
    one = fleet.start(waves=WAVES, gates=DEFAULT_GATES, patience_s=3600, way_back=BACK)
    fleet.run(looks=10)
    assert state(fleet, one) is R.RUNNING
    fleet.run(looks=10, every_s=600)
    course = fleet.course(one)
    assert course.state is R.AWAITING_APPROVAL
    assert "agreement: only 0, at least 20 are needed" in (course.reason or "")
    assert len(course.told) == 2
    fleet.do(one, Event.APPROVE)
    fleet.look()
    assert len(fleet.told(one)) == 5


def test_a_gate_that_only_stops_lets_it_go_on_when_it_knows_nothing() -> None:
    fleet = Small(TEN)
    errors = Gate(GateKind.ERRORS, limit=0.02, unsure=Unsure.GO_ON)
    one = fleet.start(waves=WAVES, gates=(errors,))
    fleet.run(looks=10)
    assert state(fleet, one) is R.DONE


def test_while_it_awaits_approval_a_gate_still_sends_all_back() -> None:
    fleet = Small([f"a{each}" for each in range(100)])
    errors = Gate(GateKind.ERRORS, limit=0.02, unsure=Unsure.GO_ON, min_sample=20)
    one = fleet.start(
        waves=(Wave(count=10, approve=True), Wave()),
        gates=(errors,),
        way_back=BACK,
    )
    fleet.run(looks=5)
    assert state(fleet, one) is R.AWAITING_APPROVAL

    def erring(desired: DesiredModel) -> SlotReport:
        health = HealthReport(requests=1000, errors=150)
        said = served(desired)
        return said.model_copy(update={"health": health} if said.active == "2" else {})

    fleet.run(looks=5, answer=erring)
    assert state(fleet, one) is R.ROLLED_BACK


def test_a_shadow_runs_first_and_the_same_agents_then_serve() -> None:
    fleet = Small(TEN)
    one = fleet.start(
        waves=(Wave(count=3, shadow=True), Wave(count=3), Wave()), way_back=BACK
    )
    fleet.look()
    shadows = fleet.told(one)
    assert all(fleet.desired(each)["fashion"].shadow for each in shadows)
    fleet.obey()
    fleet.look()
    assert fleet.told(one) == shadows
    assert not any(fleet.desired(each)["fashion"].shadow for each in shadows)
    fleet.run(looks=10)
    assert state(fleet, one) is R.DONE
    assert fleet.told(one) == set(TEN)


def test_a_rollout_that_nobody_serves_after_its_shadow_is_not_done() -> None:
    fleet = Small(TEN)
    one = fleet.start(waves=(Wave(shadow=True, soak_s=100), Wave()))
    fleet.look()
    fleet.obey()
    fleet.look()
    fleet.passes(101, heard=[])
    fleet.look()
    assert (state(fleet, one), fleet.course(one).wave) == (R.RUNNING, 1)
    fleet.run(looks=3)
    assert state(fleet, one) is R.DONE
    assert not any(each.shadow for each in fleet.course(one).told.values())


def test_an_aborted_shadow_leaves_agents_with_what_they_served() -> None:
    fleet = Small(TEN)
    one = fleet.start(waves=(Wave(count=3, shadow=True, soak_s=60), Wave()))
    fleet.look()
    fleet.obey()
    fleet.look()
    fleet.do(one, Event.ABORT)
    assert len(fleet.told(one)) == 3
    for each in fleet.told(one):
        wanted = fleet.desired(each)["fashion"]
        told = (wanted.version, wanted.shadow, wanted.generation)
        assert told == ("1", False, one.back_generation)


def test_a_rate_grows_wave_by_wave() -> None:
    fleet = Small([f"a{each}" for each in range(50)])
    one = fleet.start(waves=(), rate=Rate(5, 2))
    reached = []
    for _ in range(5):
        fleet.look()
        reached.append(len(fleet.told(one)))
        fleet.obey()
    assert reached == [5, 15, 35, 50, 50]
    assert state(fleet, one) is R.DONE


def test_nobody_is_told_more_while_it_is_paused() -> None:
    fleet = Small(TEN)
    one = fleet.start(waves=WAVES)
    fleet.look()
    fleet.do(one, Event.PAUSE)
    fleet.run(looks=5)
    assert len(fleet.told(one)) == 2
    fleet.do(one, Event.RESUME)
    fleet.run(looks=5)
    assert state(fleet, one) is R.DONE


def test_what_cannot_be_done_is_refused_with_what_can() -> None:
    rollout = Rollout(4, "fashion", "2", 0, way_back=BACK)
    with pytest.raises(WrongMove, match="rolled back, so it cannot resume"):
        order(rollout, Course(state=R.ROLLED_BACK), Event.RESUME, "", 0)
    may = r"what you can do: overspill rollout abort \| approve \| pause \| rollback$"
    with pytest.raises(WrongMove, match=may):
        order(rollout, Course(state=R.AWAITING_APPROVAL), Event.RESUME, "", 0)


@pytest.mark.parametrize(
    ("at", "advice"),
    [
        (R.SUPERSEDED, "a newer rollout has its agents: roll that one back"),
        (R.ROLLING_BACK, "on their way back: overspill rollout watch"),
        (R.ROLLED_BACK, "it is over: start a rollout of the version to serve"),
    ],
)
def test_what_cannot_be_rolled_back_is_refused_with_what_to_do_in_place_of_it(
    at: RolloutState, advice: str
) -> None:
    rollout = Rollout(4, "fashion", "2", 0, way_back=BACK)
    with pytest.raises(WrongMove, match=advice):
        order(rollout, Course(state=at), Event.ROLL_BACK, "", 0)


def test_there_is_no_rollback_without_a_signed_way_back() -> None:
    fleet = Small(TEN)
    one = fleet.start()
    fleet.look()
    with pytest.raises(WrongMove, match="no way back was signed for fashion 2"):
        fleet.do(one, Event.ROLL_BACK)


def test_every_live_state_has_a_way_out_and_the_ended_ones_go_nowhere_new() -> None:
    for each in LIVE:
        assert any(was is each for was, _ in NEXT)
    for each in (R.ROLLED_BACK, R.SUPERSEDED):
        assert not any(was is each for was, _ in NEXT)


@pytest.mark.parametrize("gates", [(), (SUCCESS,)], ids=["no gate", "a gate"])
def test_when_all_of_a_wave_are_late_a_person_is_asked_and_may_go_on(
    gates: tuple[Gate, ...],
) -> None:
    def unproved(desired: DesiredModel) -> SlotReport:
        said = served(desired)
        return said.model_copy(update={"state": "probation"})

    fleet = Small(TEN)
    one = fleet.start(
        waves=(Wave(count=1), Wave()), gates=gates, lease_s=60, patience_s=3600
    )
    fleet.run(answer=unproved, every_s=60, looks=50)
    assert state(fleet, one) is R.RUNNING
    assert len(fleet.told(one)) == 1
    fleet.run(answer=unproved, every_s=60, looks=20)
    assert state(fleet, one) is R.AWAITING_APPROVAL
    assert "none of 1 agents" in (fleet.course(one).reason or "")
    fleet.do(one, Event.APPROVE)
    fleet.look()
    assert fleet.told(one) == set(TEN)
