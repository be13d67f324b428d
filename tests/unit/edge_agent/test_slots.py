from __future__ import annotations

import json
from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from broker.messages import DesiredModel
from edge_agent.core.slots import (
    NEXT,
    Adopt,
    BadSlots,
    Event,
    GoBack,
    Nothing,
    Pull,
    Slots,
    State,
    WrongMove,
    decide,
)

SERVING = Slots("fashion", active="2", previous="1", state=State.SWAPPED, generation=5)


def want(version: str, generation: int) -> DesiredModel:
    return DesiredModel(model="fashion", version=version, generation=generation)


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
    slots = SERVING.pulling("3", 6)
    assert (slots.active, slots.staged, slots.state) == ("2", "3", State.PULLING)
    slots = slots.pulled()
    assert (slots.active, slots.state) == ("2", State.TESTING)
    assert slots.passed() == Slots(
        "fashion", active="3", previous="2", state=State.SWAPPED, generation=6
    )


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
    )
)
def test_slots_survive_being_stored_and_are_reported_as_they_are(slots: Slots) -> None:
    assert Slots.from_json(slots.to_json()) == slots
    report = slots.report()
    stored = json.loads(slots.to_json())
    assert {name: getattr(report, name) for name in stored} == stored


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
    """Whatever is desired, and however trials end, the agent does as decided."""

    def __init__(self) -> None:
        super().__init__()
        self.slots = Slots("fashion", active="1")
        self.desired = want("1", 0)
        self.pulls: list[tuple[str, int]] = []

    @rule(version=st.sampled_from("1234"), skip=st.integers(1, 3))
    def desire(self, version: str, skip: int) -> None:
        self.desired = want(version, self.desired.generation + skip)

    @rule()
    def act(self) -> None:
        match decide(self.desired, self.slots):
            case Pull(version, generation):
                self.pulls.append((version, generation))
                self.slots = self.slots.pulling(version, generation)
            case GoBack(version, generation):
                assert version == self.slots.previous
                self.slots = self.slots.went_back(generation)
            case Adopt(generation):
                self.slots = self.slots.adopted(generation)
            case Nothing():
                pass

    @precondition(lambda self: self.slots.state is State.PULLING)
    @rule()
    def finish_pull(self) -> None:
        self.slots = self.slots.pulled()

    @precondition(lambda self: self.slots.state is State.TESTING)
    @rule(passes=st.booleans())
    def finish_trial(self, passes: bool) -> None:
        self.slots = self.slots.passed() if passes else self.slots.refused("no")

    @precondition(lambda self: self.slots.state in (State.PULLING, State.TESTING))
    @rule()
    def stop_and_start(self) -> None:
        self.pulls.clear()
        self.slots = Slots.from_json(self.slots.to_json()).interrupted()

    @invariant()
    def something_always_serves(self) -> None:
        assert self.slots.active is not None

    @invariant()
    def nothing_is_pulled_twice_in_one_generation(self) -> None:
        assert len(set(self.pulls)) == len(self.pulls)

    @invariant()
    def at_rest_means_desired_or_refused(self) -> None:
        if decide(self.desired, self.slots) != Nothing():
            return
        if self.slots.state in (State.IDLE, State.SWAPPED):
            assert self.slots.active == self.desired.version


TestConverges = Converges.TestCase
