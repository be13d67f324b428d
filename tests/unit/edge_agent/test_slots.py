from __future__ import annotations

import json
from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from broker.messages import DesiredModel, UpdatePolicy
from edge_agent.core.decisions import (
    Adopt,
    GoBack,
    Nothing,
    Pull,
    Refuse,
    Return,
    decide,
)
from edge_agent.core.slot_states import NEXT, Event, WrongMove
from edge_agent.core.slots import BadSlots, Slots, State

SERVING = Slots("fashion", active="2", previous="1", state=State.SWAPPED, generation=5)


def want(version: str, generation: int, epoch: int = 0) -> DesiredModel:
    return DesiredModel(
        model="fashion", version=version, generation=generation, epoch=epoch
    )


@pytest.mark.parametrize(
    ("slots", "desired", "decision"),
    [
        (Slots("fashion"), None, Nothing()),
        (Slots("fashion"), want("1", 0), Pull("1", 0)),
        (SERVING, None, Nothing()),
        (SERVING, want("2", 5), Nothing()),
        (SERVING, want("2", 6), Adopt(6)),
        (SERVING, want("3", 6), Pull("3", 6)),
        (SERVING, want("3", 4), Nothing()),  # a late message
        (SERVING, want("1", 6), GoBack("1", 6)),  # no pull: it is on the disk
        # Under way already, or another wish came in between.
        (SERVING.pulling("3", 6), want("3", 6), Nothing()),
        (SERVING.pulling("3", 6), want("4", 7), Pull("4", 7)),
        (SERVING.pulling("3", 6), want("3", 7), Pull("3", 7)),
        (SERVING.pulling("3", 6), want("2", 7), Adopt(7)),
        (SERVING.pulling("3", 6), want("1", 7), GoBack("1", 7)),
        (SERVING.pulling("3", 6).pulled(), want("4", 7), Nothing()),
        # A refused version is not pulled again until the fleet asks anew.
        (SERVING.pulling("3", 6).refused("bad"), want("3", 6), Nothing()),
        (SERVING.pulling("3", 6).refused("bad"), want("3", 7), Pull("3", 7)),
        (SERVING.pulling("3", 6).refused("bad"), want("4", 7), Pull("4", 7)),
        (SERVING.pulling("3", 6).refused("bad"), want("2", 7), Adopt(7)),
        (SERVING.pulling("3", 6).refused("bad"), want("1", 7), GoBack("1", 7)),
        # An interrupted pull begins again, in the same generation too.
        (SERVING.pulling("3", 6).interrupted(), want("3", 6), Pull("3", 6)),
        # A previous version that would not serve again is not tried again.
        (SERVING.refused("gone", "1", 6), want("1", 6), Nothing()),
        (SERVING.refused("gone", "1", 6), want("1", 7), Pull("1", 7)),
    ],
)
def test_what_brings_the_slots_to_the_desired_version(
    slots: Slots, desired: DesiredModel | None, decision: object
) -> None:
    assert decide(desired, slots) == decision


def test_a_good_update_serves_and_keeps_the_version_before_it() -> None:
    slots = SERVING.pulling("3", 6, 4)
    assert (slots.active, slots.staged, slots.state) == ("2", "3", State.PULLING)
    slots = slots.pulled()
    assert (slots.active, slots.state) == ("2", State.TESTING)
    slots = slots.passed()
    assert (slots.active, slots.previous, slots.floor) == ("3", "2", 0)
    assert slots.committed() == Slots(
        "fashion",
        active="3",
        previous="2",
        state=State.SWAPPED,
        generation=6,
        epoch=4,
        floor=4,
        seen=4,
    )


def on_probation() -> Slots:
    before = replace(SERVING, epoch=2, floor=2)
    return before.pulling("3", 6, 4).pulled().passed(UpdatePolicy(probation_s=9.0))


def test_a_return_gives_back_what_was_and_leaves_the_floor() -> None:
    slots = on_probation().returned("it is wrong")
    assert (slots.active, slots.epoch, slots.floor) == ("2", 2, 2)
    assert (slots.previous, slots.staged, slots.staged_epoch) == (None, "3", 4)
    assert (slots.state, slots.reason) == (State.RETURNED, "it is wrong")
    # What was not proved once may be desired again, by a newer wish.
    assert decide(want("3", 6, 4), slots) == Nothing()
    assert decide(want("3", 7, 4), slots) == Pull("3", 7, 4)


def test_only_an_end_without_order_counts_against_a_version_on_probation() -> None:
    slots = on_probation()
    assert slots.starts == 1
    assert slots.stopped().started().stopped().started() == slots
    assert slots.started().started().starts == 3
    assert slots.interrupted() == slots


@pytest.mark.parametrize(
    ("desired", "decision"),
    [
        (("3", 6, 4), Nothing()),
        (("3", 7, 4), Adopt(7, 4)),
        (("2", 7, 5), GoBack("2", 7, 5)),
        (("1", 7, 1), Nothing()),  # Below the floor; refused when this has ended.
        (("4", 7, 5), Return("not proved yet, and 4 is desired instead")),
    ],
)
def test_what_a_probation_makes_of_a_newer_wish(
    desired: tuple[str, int, int], decision: object
) -> None:
    assert decide(want(*desired), on_probation()) == decision


def test_going_back_from_a_probation_keeps_no_way_to_what_was_not_proved() -> None:
    slots = on_probation().went_back(7, 5)
    assert (slots.active, slots.previous, slots.epoch, slots.floor) == ("2", None, 5, 5)


def test_below_the_floor_nothing_is_taken_and_the_reason_names_both() -> None:
    slots = replace(SERVING, epoch=3, floor=3)
    for version in ("1", "2", "9"):
        refusal = decide(want(version, 9, 2), slots)
        assert isinstance(refusal, Refuse)
        assert "in epoch 2, but nothing below epoch 3 is taken" in refusal.reason
        after = slots.refused(refusal.reason, version, 9, 2)
        assert decide(want(version, 9, 2), after) == Nothing()
        assert after.active == "2"


FIRST = Slots("fashion", active="1", generation=1, epoch=1, floor=1, seen=1)
TOLD_BACK = ("1", 9, 3)  # Signed with the publish of version 2, which is epoch 2.


def tried(slots: Slots) -> Slots:
    """Version 2 serves, on probation."""
    return slots.pulling("2", 2, 2).pulled().passed(UpdatePolicy(probation_s=9.0))


@pytest.mark.parametrize(
    ("slots", "floor"),
    [
        # Never here: it may come, and all from before it may not.
        (FIRST.adopted(9, 3, way_back=True), 2),
        (Slots("fashion").pulling(*TOLD_BACK).pulled().passed(way_back=True), 2),
        (replace(FIRST, state=State.PROBATION).adopted(9, 3, way_back=True), 2),
        # It was here, proved or not: it is barred.
        (tried(FIRST).committed().went_back(9, 3, way_back=True), 3),
        (tried(FIRST).went_back(9, 3, way_back=True), 3),
        (tried(FIRST).returned("bad").adopted(9, 3, way_back=True), 3),
        (
            tried(FIRST)
            .returned("bad", to_none=True)
            .pulling(*TOLD_BACK)
            .pulled()
            .passed(way_back=True),
            3,
        ),
        # What was published in an epoch bars all from before it, wherever it serves.
        (FIRST.adopted(9, 7), 7),
    ],
)
def test_a_way_back_bars_the_version_it_leads_back_from_only_where_that_was(
    slots: Slots, floor: int
) -> None:
    after = slots.committed() if slots.state is State.PROBATION else slots
    assert after.floor == floor
    # Told again, and after a restart, it is no other.
    after = Slots.from_json(after.adopted(10, after.epoch).to_json()).interrupted()
    assert after.floor == floor
    barred = isinstance(decide(want("2", 11, 2), after), Refuse)
    assert barred is (floor > 2)
    assert isinstance(decide(want("0", 11, 1), after), Refuse)


def test_what_an_earlier_release_had_on_probation_raises_the_floor_to_its_epoch() -> (
    None
):
    stored = json.loads(tried(FIRST).to_json())
    del stored["floor_after"], stored["seen"]
    slots = Slots.from_json(json.dumps(stored))
    assert slots.committed().floor == 2
    assert slots.went_back(9, 3, way_back=True).floor == 3


def test_what_returned_under_an_earlier_release_is_barred_by_its_way_back() -> None:
    stored = json.loads(on_probation().returned("bad").to_json())
    del stored["floor_after"], stored["seen"]
    slots = Slots.from_json(json.dumps(stored))
    assert slots.seen == slots.staged_epoch > slots.epoch
    way_back = slots.staged_epoch + 1
    assert slots.adopted(9, way_back, way_back=True).floor == way_back


def test_a_way_back_that_was_taken_in_advance_bars_what_came_and_failed_since() -> None:
    slots = Slots("fashion", active="4", epoch=8, floor=8, seen=8)
    slots = slots.adopted(2, 11, way_back=True)
    assert (slots.epoch, slots.floor) == (11, 10)
    assert slots.adopted(3, 11).floor == 10
    failed = slots.pulling("5", 4, 10).pulled().passed().returned("bad")
    assert decide(want("4", 5, 11), failed) == Adopt(5, 11)
    assert failed.adopted(5, 11).floor == 11
    assert isinstance(decide(want("5", 6, 10), failed.adopted(5, 11)), Refuse)
    # Nor does it matter that something newer was tried in between.
    newer = failed.pulling("6", 5, 12).pulled().passed().returned("bad")
    assert newer.adopted(6, 11).floor == 11


def test_without_a_way_back_what_was_on_probation_serves_until_a_newer_comes() -> None:
    slots = on_probation().stranded("the way back is damaged")
    assert (slots.active, slots.previous, slots.floor) == ("3", None, 2)
    assert (slots.state, slots.reason) == (State.IDLE, "the way back is damaged")
    assert decide(want("4", 7, 5), slots) == Pull("4", 7, 5)
    assert decide(want("2", 7, 5), slots) == Pull("2", 7, 5)


def test_a_return_to_nothing_leaves_nothing_that_serves() -> None:
    slots = on_probation().returned("bad, and so is the way back", to_none=True)
    assert (slots.active, slots.previous, slots.state) == (None, None, State.RETURNED)
    assert decide(want("4", 7, 5), slots) == Pull("4", 7, 5)


def test_a_shadow_leaves_the_active_version_and_ends_as_desired() -> None:
    desired = want("3", 6, 4).model_copy(update={"shadow": True})
    assert decide(desired, SERVING) == Pull("3", 6, 4, shadow=True)
    slots = SERVING.pulling("3", 6, 4).pulled().shadowed()
    assert (slots.active, slots.staged, slots.state) == ("2", "3", State.SHADOW)
    assert slots.interrupted() == slots
    assert decide(desired, slots) == Nothing()
    assert decide(want("3", 6, 4), slots) == Pull("3", 6, 4)
    assert decide(want("2", 7), slots) == Adopt(7)
    assert decide(want("1", 7), slots) == GoBack("1", 7)


def test_what_waits_is_decided_anew_at_each_look() -> None:
    slots = SERVING.pulling("3", 6).waiting("no room", "3", 6)
    assert slots.report().state == "waiting"
    assert slots.interrupted() == slots
    assert decide(want("3", 6), slots) == Pull("3", 6)
    assert decide(want("2", 6), slots) == Adopt(6)
    # Until it is done it says what held it up; another wish begins without.
    assert slots.pulling("3", 6).pulled().reason == "no room"
    assert slots.pulling("3", 6).pulled().passed().reason is None
    assert slots.pulling("3", 7).reason is None


def test_a_way_back_is_not_given_up_while_it_may_be_needed() -> None:
    with pytest.raises(WrongMove, match="needs its way back"):
        on_probation().without_previous()


def test_slots_of_an_earlier_release_are_read() -> None:
    stored = (
        '{"active": "2", "generation": 5, "model": "fashion", "previous": "1", '
        '"reason": null, "staged": null, "state": "swapped"}'
    )
    assert Slots.from_json(stored) == SERVING


def test_a_refusal_leaves_the_active_version_and_says_why() -> None:
    slots = SERVING.pulling("3", 6).pulled().refused("golden outputs differ")
    assert (slots.active, slots.previous, slots.staged) == ("2", "1", "3")
    assert slots.reason == "golden outputs differ"
    assert slots.report().state == "refused"
    assert slots.pulling("4", 7).reason is None


def test_going_back_changes_the_two_versions_and_going_back_again_undoes_it() -> None:
    back = SERVING.went_back(6)
    assert (back.active, back.previous, back.generation) == ("1", "2", 6)
    assert decide(want("2", 7), back) == GoBack("2", 7)
    assert replace(back.went_back(7), generation=5) == SERVING


def test_a_previous_version_that_failed_is_no_longer_a_way_back() -> None:
    assert SERVING.refused("does not load", "1", 6).previous is None


def test_an_event_that_has_no_entry_is_an_error_that_names_it() -> None:
    with pytest.raises(WrongMove, match="'fashion': 'passed' cannot follow 'idle'"):
        Slots("fashion").passed()
    with pytest.raises(WrongMove, match="no previous version"):
        Slots("fashion", active="1").went_back(1)


def test_every_state_can_be_interrupted_and_no_trial_or_pull_survives_it() -> None:
    for state in State:
        assert NEXT[state, Event.INTERRUPTED] not in (State.PULLING, State.TESTING)


versions = st.sampled_from(["1", "2", "2.0-rc1"])
maybe = st.none() | versions


@given(
    st.builds(
        Slots,
        model=st.just("fashion"),
        active=maybe,
        previous=maybe,
        staged=maybe,
        state=st.sampled_from(State),
        reason=st.none() | st.text(max_size=40),
        generation=st.integers(0, 2**63 - 1),
        epoch=st.integers(0, 2**53),
        floor=st.integers(0, 2**53),
        starts=st.integers(0, 5),
        policy=st.none() | st.builds(UpdatePolicy, probation_s=st.floats(0, 1e6)),
    )
)
def test_slots_survive_being_stored_and_are_reported_as_they_are(slots: Slots) -> None:
    assert Slots.from_json(slots.to_json()) == slots
    report = slots.report()
    stored = json.loads(slots.to_json())
    told = report.model_fields_set
    assert {"active", "state", "reason", "epoch", "floor"} <= told
    assert {name: getattr(report, name) for name in told} == {
        name: stored[name] for name in told
    }


@pytest.mark.parametrize(
    "stored",
    [
        b"",
        b"{",
        b"[]",
        b'{"model": "a.b"}',
        b'{"model": "a", "state": "melted"}',
        b"\xff",
    ],
)
def test_slots_that_cannot_be_read_are_an_error_and_not_an_empty_model(
    stored: bytes,
) -> None:
    with pytest.raises(BadSlots, match="stored slots"):
        Slots.from_json(stored)


def test_a_reason_that_is_too_long_for_the_wire_is_cut() -> None:
    slots = SERVING.pulling("3", 6).refused("x" * 5000)
    assert len(slots.report().reason or "") == 1024


class Converges(RuleBasedStateMachine):
    """Whatever is desired, and however trials and probations end, it does as decided."""

    def __init__(self) -> None:
        super().__init__()
        self.slots = Slots("fashion", active="1")
        self.desired = want("1", 0)
        self.epoch = 0
        self.floor = 0
        # Versions that were committed, so that one can be gone back to.
        self.proved = {"1"}
        self.pulls: list[tuple[str, int]] = []

    @rule(version=st.sampled_from("1234"), skip=st.integers(1, 3), old=st.booleans())
    def desire(self, version: str, skip: int, old: bool) -> None:
        self.epoch += not old
        epoch = max(0, self.epoch - 2) if old else self.epoch
        self.desired = want(version, self.desired.generation + skip, epoch)

    @rule(shadow=st.booleans())
    def only_beside(self, shadow: bool) -> None:
        self.desired = self.desired.model_copy(
            update={"shadow": shadow, "generation": self.desired.generation + 1}
        )

    @rule()
    def act(self) -> None:
        match decide(self.desired, self.slots):
            case Pull(version, generation, epoch):
                assert epoch >= self.floor
                self.pulls.append((version, generation))
                self.slots = self.slots.pulling(version, generation, epoch)
            case GoBack(version, generation, epoch):
                assert version == self.slots.previous
                assert version in self.proved
                self.slots = self.slots.went_back(generation, epoch)
            case Adopt(generation, epoch):
                self.slots = self.slots.adopted(generation, epoch)
            case Return(reason):
                self.slots = self.slots.returned(reason)
            case Refuse(version, generation, epoch, reason):
                assert epoch < self.floor
                self.slots = self.slots.refused(reason, version, generation, epoch)
            case Nothing():
                pass

    @precondition(lambda self: self.slots.state is State.PULLING)
    @rule(waits=st.booleans())
    def finish_pull(self, waits: bool) -> None:
        if waits:
            self.pulls.clear()
            slots = self.slots
            version = slots.staged or ""
            self.slots = slots.waiting("no room", version, slots.generation)
        else:
            self.slots = self.slots.pulled()

    @precondition(lambda self: self.slots.state is State.TESTING)
    @rule(passes=st.booleans())
    def finish_trial(self, passes: bool) -> None:
        if not passes:
            self.slots = self.slots.refused("no")
        elif self.desired.shadow:
            self.slots = self.slots.shadowed()
        else:
            self.slots = self.slots.passed()

    @precondition(lambda self: self.slots.state is State.PROBATION)
    @rule(stays=st.booleans())
    def finish_probation(self, stays: bool) -> None:
        if stays:
            self.slots = self.slots.committed()
            self.proved.add(self.slots.active or "")
        else:
            self.slots = self.slots.returned("it is worse")

    @rule()
    def stop_and_start(self) -> None:
        self.pulls.clear()
        self.slots = Slots.from_json(self.slots.to_json()).interrupted()
        if self.slots.state is State.PROBATION:
            self.slots = self.slots.started()

    @invariant()
    def something_always_serves(self) -> None:
        assert self.slots.active is not None

    @invariant()
    def what_serves_or_is_the_way_back_was_proved(self) -> None:
        slots = self.slots
        if slots.state is not State.PROBATION:
            assert slots.active in self.proved
        if slots.previous is not None:
            assert slots.previous in self.proved

    @invariant()
    def the_floor_only_rises_and_nothing_proved_is_below_it(self) -> None:
        assert self.slots.floor >= self.floor
        self.floor = self.slots.floor

    @invariant()
    def nothing_is_pulled_twice_in_one_generation(self) -> None:
        if not self.desired.shadow:
            assert len(set(self.pulls)) == len(self.pulls)

    @invariant()
    def at_rest_means_desired_or_refused(self) -> None:
        if decide(self.desired, self.slots) != Nothing() or self.desired.shadow:
            return
        if self.slots.state in (State.IDLE, State.SWAPPED):
            assert self.slots.active == self.desired.version


TestConverges = Converges.TestCase
