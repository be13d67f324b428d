"""What applying would do about each declared thing, given what there is."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fleet.core.declared import DeclaredFleet, DeclaredRollout
from fleet.core.differences import (
    Change,
    LabelChange,
    breadth,
    compare,
    said,
    waves_text,
)
from fleet.core.ordering import terms_of
from fleet.core.rollouts import Course, Rollout, RolloutState

ENDED = [RolloutState.ROLLING_BACK, RolloutState.ROLLED_BACK, RolloutState.ABORTED]
There = list[tuple[Rollout, Course]]


def declared(**fields: Any) -> DeclaredRollout:
    return DeclaredRollout.model_validate(
        {"model": "fashion", "version": "2", **fields}
    )


def begun(
    generation: int,
    one: DeclaredRollout,
    state: RolloutState = RolloutState.DONE,
    *,
    population: int = 5,
    reason: str | None = None,
) -> tuple[Rollout, Course]:
    terms = terms_of(one, population)
    rollout = Rollout(
        generation,
        one.model,
        one.version,
        0,
        one.agents,
        query=terms.query,
        waves=terms.waves,
        rate=terms.rate,
        gates=terms.gates,
        policy=terms.policy,
        max_parallel=terms.max_parallel,
        lease_s=terms.lease_s,
        patience_s=terms.patience_s,
        on_failure=terms.on_failure,
    )
    return rollout, Course(state=state, reason=reason)


def changes(*all_: DeclaredRollout, there: There) -> list[Change]:
    found = compare(DeclaredFleet(rollouts=all_), {}, (), there)
    return [each.change for each in found.rollouts]


def test_what_nobody_has_begun_is_to_begin_and_then_is_as_declared() -> None:
    one = declared(where="site=lyon", waves="10%,50%")
    assert changes(one, there=[]) == [Change.START]
    assert changes(one, there=[begun(1, one)]) == [Change.NONE]


def test_another_version_is_a_difference_and_named_with_what_it_was() -> None:
    one = declared()
    found = compare(
        DeclaredFleet(rollouts=(one,)), {}, (), [begun(1, declared(version="1"))]
    )
    (change,) = found.rollouts
    assert change.change is Change.START
    assert (change.terms[0].before, change.terms[0].after) == ("1", "2")
    assert found.any


def test_how_many_agents_there_are_now_makes_no_difference() -> None:
    one = declared()
    for population in (3, 3000):
        there = [begun(1, one, RolloutState.RUNNING, population=population)]
        assert changes(one, there=there) == [Change.NONE]


def test_other_terms_matter_while_it_is_on_its_way_and_not_after() -> None:
    before, after = (
        declared(soak="1m", waves="5,all"),
        declared(soak="2m", waves="5,all"),
    )
    assert changes(after, there=[begun(1, before, RolloutState.RUNNING)]) == [
        Change.START
    ]
    assert changes(after, there=[begun(1, before)]) == [Change.NONE]


@pytest.mark.parametrize("state", ENDED)
def test_what_was_taken_back_is_never_begun_again_by_itself(
    state: RolloutState,
) -> None:
    one = declared()
    gone = begun(1, one, state, reason="agreement: 12 %")
    (change,) = compare(DeclaredFleet(rollouts=(one,)), {}, (), [gone]).rollouts
    assert change.change is Change.BLOCKED
    assert "agreement: 12 %" in change.reason
    # Nor once another version came in between.
    other = begun(2, declared(version="1"))
    assert changes(one, there=[gone, other]) == [Change.BLOCKED]
    # A person may.
    assert changes(one, there=[gone, begun(3, one)]) == [Change.NONE]


def test_what_is_said_to_begin_it_again_is_for_the_same_agents() -> None:
    one = declared(agents=["b", "a"], where="site=lyon and has x")
    gone = begun(1, one, RolloutState.ABORTED)
    (change,) = compare(DeclaredFleet(rollouts=(one,)), {}, (), [gone]).rollouts
    assert "--agents a,b --where 'site=lyon and has x'`" in change.reason


def test_what_a_newer_rollout_for_more_agents_took_is_begun_again() -> None:
    canary = declared(where="group=canary", version="3")
    there = [begun(1, canary), begun(2, declared())]
    assert changes(canary, there=there) == [Change.START]


def test_all_that_must_begin_is_known_before_anything_does() -> None:
    everyone, canary = (
        declared(version="2"),
        declared(where="group=canary", version="3"),
    )
    there = [begun(1, declared(version="1")), begun(2, canary)]
    assert changes(canary, everyone, there=there) == [Change.START, Change.START]
    # The rollout for all comes first, so that the other takes its own from it.
    assert sorted([canary, everyone], key=breadth) == [everyone, canary]


def test_labels_are_made_as_declared_and_others_left_alone() -> None:
    fleet = DeclaredFleet(labels={"a": {"site": "lyon", "old": None}, "b": {"x": "1"}})
    there = {"a": {"site": "paris", "old": "1", "kept": "1"}, "b": {"x": "1"}}
    found = compare(fleet, there, ["a"], [])
    assert found.labels == (
        LabelChange("a", "old", "1", None),
        LabelChange("a", "site", "paris", "lyon"),
    )
    assert found.unheard == ("b",)


def test_terms_are_said_as_they_can_be_typed() -> None:
    one = declared(
        waves="10x2",
        soak="1m30s",
        shadow="5%",
        approve="first",
        window="Sat,Sun 01:00-06:00",
        gates={"agreement": "4%", "spill": "off"},
    )
    words = said(terms_of(one, 5))
    assert words["waves"] == "5% (shadow, soak 1m30s, approve), 10x2 (soak 1m30s)"
    assert words["window"] == "Sat,Sun 01:00-06:00"
    assert "agreement 4% (enough 12%)" in words["gates"]
    assert "spill" not in words["gates"]
    assert words["probation"] == "30s"


WAVES = st.sampled_from(["auto", "all", "1%,50%", "2,all", "10x2"])


@given(
    st.lists(
        st.builds(
            declared,
            version=st.sampled_from(["1", "2"]),
            where=st.sampled_from([None, "a=1", "b=1"]),
            waves=WAVES,
        ),
        unique_by=lambda each: each.whom,
        max_size=3,
    ),
    st.lists(
        st.tuples(
            st.builds(
                declared,
                version=st.sampled_from(["1", "2"]),
                where=st.sampled_from([None, "a=1", "b=1"]),
                waves=WAVES,
            ),
            st.sampled_from(RolloutState),
        ),
        max_size=5,
    ),
)
def test_applying_twice_is_applying_once(
    wanted: list[DeclaredRollout], past: list[tuple[DeclaredRollout, RolloutState]]
) -> None:
    there = [begun(10 * (n + 1), one, state) for n, (one, state) in enumerate(past)]
    fleet = DeclaredFleet(rollouts=tuple(wanted))
    first = compare(fleet, {}, (), there)
    begin = sorted(
        (each.declared for each in first.rollouts if each.change is Change.START),
        key=breadth,
    )
    generation = 100
    for one in begin:
        generation += 10
        rollout, course = begun(generation, one, RolloutState.RUNNING)
        there.append((replace(rollout, by="apply"), course))
    again = compare(fleet, {}, (), there)
    assert all(each.change is not Change.START for each in again.rollouts)


def test_waves_are_said_in_one_line() -> None:
    rollout, _ = begun(1, declared(waves="2,10%,all", soak="5m", approve="first"))
    assert waves_text(rollout) == "2 (soak 5m, approve), 10% (soak 5m), all (soak 5m)"
