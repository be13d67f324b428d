"""What an operator names must be there, or the refusal says what is."""

from __future__ import annotations

import pytest

from fleet.core.orders import BadOrder, check_version, read_agents

PUBLISHED = {"fashion": ["1", "2"], "boots": ["1"]}


def test_a_published_version_may_be_rolled_out() -> None:
    check_version("fashion", "2", PUBLISHED)


@pytest.mark.parametrize(
    ("model", "version", "says"),
    [
        ("fasion", "1", "model 'fasion' is unknown; published are fashion, boots"),
        ("fashion", "3", "fashion has no version '3'; published are 1, 2"),
    ],
)
def test_an_unknown_version_is_refused_and_the_known_are_named(
    model: str, version: str, says: str
) -> None:
    with pytest.raises(BadOrder) as refusal:
        check_version(model, version, PUBLISHED)
    assert str(refusal.value) == says


def test_an_empty_registry_says_what_to_do_first() -> None:
    with pytest.raises(BadOrder, match="overspill model publish"):
        check_version("fashion", "1", {})


def test_agents_are_read_with_spaces_and_doubles() -> None:
    named = read_agents(" b, a ,b,", ["a", "b", "c"])
    assert named == frozenset({"a", "b"})
    assert read_agents(None, []) is None


@pytest.mark.parametrize(
    ("text", "known", "says"),
    [
        ("x", ["a", "b"], "agent 'x' has never reported; known are a, b"),
        ("a,x,y", ["a"], "agent 'x', 'y' has never reported"),
        ("x", [], "overspill fleet run"),
        (",", ["a"], "no agent is named"),
        ("", ["a"], "no agent is named"),
    ],
)
def test_an_unknown_agent_is_refused_and_the_known_are_named(
    text: str, known: list[str], says: str
) -> None:
    with pytest.raises(BadOrder) as refusal:
        read_agents(text, known)
    assert says in str(refusal.value)


def test_a_fleet_of_thousands_does_not_fill_the_screen() -> None:
    with pytest.raises(BadOrder) as refusal:
        read_agents("x", [f"a{number:04}" for number in range(5000)])
    assert str(refusal.value).endswith("and 4980 more")
