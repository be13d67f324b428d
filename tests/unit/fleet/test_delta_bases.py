from __future__ import annotations

from broker.messages import SlotReport
from fleet.core.delta_bases import delta_bases
from fleet.core.devices import Device


def serving(*versions: str | None) -> list[Device]:
    return [
        Device(f"a{index}", 0, 0, slots=(SlotReport(model="m", active=version),))
        for index, version in enumerate(versions)
    ]


def test_what_most_agents_serve_comes_first_then_the_way_back_then_the_newest() -> None:
    bases = delta_bases(
        "m",
        "9",
        published=["1", "2", "3", "4", "9"],
        devices=serving("2", "1", "2", None),
        back_to="3",
    )
    assert bases == ("2", "1", "3")


def test_a_fleet_that_has_not_reported_comes_from_what_was_published_last() -> None:
    bases = delta_bases("m", "9", published=["1", "2", "9"], devices=[], back_to=None)
    assert bases == ("2", "1")


def test_no_version_is_a_base_of_itself_or_one_that_nobody_published() -> None:
    bases = delta_bases(
        "m",
        "9",
        published=["9"],
        devices=serving("provisioned", "9"),
        back_to="gone",
    )
    assert bases == ()
