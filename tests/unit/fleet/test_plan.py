"""Who a rollout would reach, how many bytes that moves and how long it takes."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import pytest

from broker.messages import SlotReport, UpdatePolicy, Window
from fleet.core.cohorts import in_order
from fleet.core.devices import Device
from fleet.core.following import Now
from fleet.core.labels import BadQuery
from fleet.core.plan import Costs, Needs, choose, plan
from fleet.core.rollouts import Rollout, Wave

NOW = Now(10**9)
NEEDS = Needs(
    machines=frozenset({"aarch64", "x86_64"}),
    boards=frozenset(),
    runtimes=frozenset({"litert"}),
    memory_mb=100,
    size_bytes=10_000_000,
)
FACTS = {"machine": "aarch64", "runtime": "litert", "memory_mb": "512"}


def rollout(**more: Any) -> Rollout:
    return Rollout(1, "fashion", "2", 0, **more)


def device(
    agent: str, facts: Mapping[str, str] = FACTS, *, age_s: float = 1, **slot: Any
) -> Device:
    said = SlotReport(**{"model": "fashion", "active": "1", **slot})
    return Device(agent, 0, round(NOW.now_ms - age_s * 1000), (said,), {}, facts)


TOO_OLD = (
    "it takes no epoch under 4; this version is of 3: publish it under a new version"
)


@pytest.mark.parametrize(
    ("facts", "slot", "why"),
    [
        ({}, {}, None),
        # What a device does not say, it is tried with.
        ({"machine": "aarch64"}, {}, None),
        ({"machine": "armv7l"}, {}, "its machine is armv7l; the bundle is for aarch64, x86_64"),
        ({"runtime": "tflite"}, {}, "its runtime is tflite; the bundle is for litert"),
        ({"board": "any"}, {}, None),
        ({"memory_mb": "64"}, {}, "it has 64 MB of memory; the bundle needs 100"),
        ({"memory_mb": "much"}, {}, None),
        ({"free_disk_mb": "29"}, {}, "its disk has 29 MB free; the bundle needs 30"),
        ({"free_disk_mb": "30"}, {}, None),
        ({"free_disk_mb": "0"}, {"active": "2"}, None),
        # It is there already, and nobody would ever serve it after its shadow.
        ({"free_disk_mb": "0"}, {"staged": "2", "state": "shadow"}, None),
        ({"free_disk_mb": "0"}, {"staged": "3", "state": "shadow"}, "its disk has 0 MB free; the bundle needs 30"),
        ({}, {"floor": 4}, TOO_OLD),
        ({}, {"floor": 3}, None),
    ],
)  # fmt: skip
def test_who_could_not_take_a_version_is_left_out_with_the_reason(
    facts: dict[str, str], slot: dict[str, Any], why: str | None
) -> None:
    chosen = choose(rollout(epoch=3), {"a": device("a", facts, **slot)}, {}, NEEDS)
    assert chosen.excluded == ({} if why is None else {"a": why})
    assert chosen.eligible == (("a",) if why is None else ())


def test_a_query_is_asked_of_labels_and_facts_and_names_are_asked_as_well() -> None:
    devices = {each: device(each) for each in "abcd"}
    labels = {"a": {"site": "lyon"}, "b": {"site": "lyon"}, "d": {"site": "paris"}}
    one = rollout(
        query="site=lyon and machine=aarch64", targets=frozenset({"a", "c", "d"})
    )
    assert choose(one, devices, labels, NEEDS).eligible == ("a",)
    with pytest.raises(BadQuery):
        choose(rollout(query="site="), devices, labels, NEEDS)


def test_a_plan_says_what_each_wave_moves_and_how_long_it_takes() -> None:
    one = rollout(
        waves=(Wave(share=0.1, soak_s=600), Wave(soak_s=60, approve=True)),
        max_parallel=5,
        policy=UpdatePolicy(probation_s=100, bytes_per_s=500_000),
    )
    devices = {f"a{each}": device(f"a{each}") for each in range(20)}
    devices["a19"] = device("a19", active="2")
    devices["a18"] = device("a18", age_s=1000)
    costs = Costs({"1": 1_000_000}, bytes_per_s=2_000_000, install_s=10)
    made = plan(one, devices, {}, NEEDS, NOW, costs)
    assert made.chosen.eligible == tuple(in_order(one, devices))
    assert (made.already, made.away) == (("a19",), ("a18",))
    first, second = made.waves
    assert (first.agents, second.agents, second.approve) == (2, 18, True)
    # A delta of 1 MB for all but the one that has it.
    assert made.bytes == 19 * 1_000_000
    # Two at once: 2 s of pulling at the policy's rate, installing, probation, soaking.
    assert first.lasts_s == pytest.approx(2 + 10 + 100 + 600)
    # Five at a time: four rounds.
    assert second.lasts_s == pytest.approx(4 * 12 + 100 + 60)


def test_a_plan_waits_for_the_maintenance_windows_of_each_wave() -> None:
    # From two in the morning on for one hour, asked at noon UTC.
    noon = Now(12 * 3_600_000)
    one = rollout(
        waves=(Wave(count=1, soak_s=3600), Wave()),
        policy=UpdatePolicy(window=Window(start_minute=120, minutes=60)),
    )
    devices = {
        each: replace(
            device(each, {"utc_offset_min": offset}), last_seen_ms=noon.now_ms
        )
        for each, offset in (("a", "0"), ("b", "0"), ("c", "-660"), ("d", ""))
    }
    first, *_ = in_order(one, devices)
    made = plan(one, devices, {}, NEEDS, noon, Costs(install_s=20))
    assert made.timeless == ("d",)
    offset_h = {"a": 14, "b": 14, "c": 1, "d": 0}[first]
    assert made.waves[0].waits_s == offset_h * 3600
    assert made.waves[0].lasts_s == offset_h * 3600 + 30 + 3600
    # The others that are an hour too late wait for the next night.
    assert made.waves[1].waits_s > 10 * 3600
    assert made.lasts_s == sum(each.lasts_s for each in made.waves)
    assert made.waits_s == sum(each.waits_s for each in made.waves)
    always = replace(one, policy=UpdatePolicy())
    assert plan(always, devices, {}, NEEDS, noon).waits_s == 0


def test_without_a_delta_the_whole_is_pulled_and_what_is_on_the_disk_is_not() -> None:
    devices = {
        "a": device("a", active="0"),
        "b": device("b", active="1", previous="2"),
    }
    made = plan(rollout(), devices, {}, NEEDS, NOW, Costs({"1": 5}))
    assert made.bytes == NEEDS.size_bytes


def test_a_shadow_pulls_once_for_both_of_its_waves() -> None:
    devices = {f"a{each}": device(f"a{each}") for each in range(4)}
    one = rollout(waves=(Wave(count=2, shadow=True), Wave()))
    made = plan(one, devices, {}, NEEDS, NOW)
    assert [each.bytes for each in made.waves] == [20_000_000, 20_000_000]
    assert [(each.agents, each.shadow) for each in made.waves] == [
        (2, True),
        (4, False),
    ]


def test_a_plan_for_nobody_is_empty_and_ends() -> None:
    made = plan(rollout(waves=(Wave(count=1), Wave())), {}, {}, NEEDS, NOW)
    assert (made.bytes, sum(each.agents for each in made.waves)) == (0, 0)
