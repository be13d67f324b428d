"""What a run measured, from histories made by hand."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from overspill.demo.history import Asked, Reply
from overspill.demo.measures import (
    CLOUD,
    FIRST,
    SECOND,
    SWAP,
    Measures,
    Push,
    dropped,
    edge_versions,
    fate,
    faults,
    held_back,
    measure,
    spilled,
)
from overspill.demo.promises import ByAgent, ByDevices, Promised, Target

LABELS = ["cat", "dog"]
PUSH = Push("1", "2", began_ms=1000.0, ended_ms=2000.0, agents_updated=3)
# Version 1 knows image 0 only, version 2 both.
EDGE_RIGHT = {"1": np.array([True, False]), "2": np.array([True, True])}


def reply(
    status: str = "answered",
    source: str | None = "edge",
    label: str | None = "cat",
    *,
    at_ms: float = 10.0,
    version: str = "1",
    reason: str | None = None,
) -> Reply:
    return Reply(
        id="r",
        reason=reason,
        at_ms=at_ms,
        status=status,
        final=status != "accepted",
        source=source if status == "answered" else None,
        label=label if status == "answered" else None,
        version=version if status == "answered" else None,
    )


ACCEPTED = reply("accepted")


def asked(
    *replies: Reply,
    index: int = 0,
    stage: str = FIRST,
    at_ms: float = 0.0,
    device: str = "cam1",
    id_: str = "r",
    attempts: int = 1,
) -> Asked:
    return Asked(device, id_, index, index, stage, at_ms, attempts, list(replies))


def measured(
    *all_asked: Asked,
    push: Push = PUSH,
    promised: dict[str, Promised] | None = None,
) -> Measures:
    numbered = [
        replace(each, id=f"{each.device}-{number}")
        for number, each in enumerate(all_asked)
    ]
    return measure(
        numbered, labels=LABELS, edge_right=EDGE_RIGHT, push=push, promised=promised
    )


def account(standing: str = "kept") -> ByAgent:
    return ByAgent("agent-1", standing, 0.1, 0.0, 0.4, 10, 2, 0)


@pytest.mark.parametrize(
    ("replies", "expected"),
    [
        ([], "lost"),
        ([ACCEPTED], "lost"),
        ([reply()], "edge"),
        ([ACCEPTED, reply(source="cloud")], "cloud"),
        ([reply(source="cloud"), ACCEPTED], "cloud"),
        ([ACCEPTED, reply(source="edge_fallback")], "edge_fallback"),
        ([reply("failed")], "failed"),
        ([ACCEPTED, reply("expired")], "expired"),
        ([reply("refused")], "refused"),
        ([reply("refused"), reply()], "refused"),
    ],
)
def test_the_first_final_reply_decides_the_fate(
    replies: list[Reply], expected: str
) -> None:
    assert fate(asked(*replies)) == expected


def test_every_request_is_counted_under_exactly_one_fate() -> None:
    found = measured(
        asked(reply()),
        asked(ACCEPTED, reply(source="cloud")),
        asked(ACCEPTED, reply(source="edge_fallback")),
        asked(reply("failed")),
        asked(reply("expired")),
        asked(reply("refused")),
        asked(ACCEPTED),
    )

    counts = (
        found.answered_edge,
        found.answered_cloud,
        found.answered_fallback,
        found.failed,
        found.expired,
        found.refused,
        found.lost,
    )
    assert counts == (1,) * 7
    assert sum(counts) == found.requests


def test_two_final_replies_are_a_duplicate_and_accepted_is_none() -> None:
    found = measured(
        asked(ACCEPTED, reply(source="cloud"), reply(source="cloud")),
        asked(reply(), ACCEPTED),
        asked(ACCEPTED, ACCEPTED, reply(source="cloud"), attempts=2),
    )

    assert found.duplicated == 1
    assert found.resent == 1


@pytest.mark.parametrize(
    ("request_", "expected"),
    [
        (asked(at_ms=1500.0), 1),
        (asked(ACCEPTED, at_ms=1500.0), 1),
        (asked(reply("refused"), at_ms=1500.0), 1),
        (asked(at_ms=1000.0), 1),
        (asked(at_ms=2000.0), 1),
        (asked(at_ms=999.9), 0),
        (asked(reply("refused"), at_ms=2000.1), 0),
        (asked(reply(), at_ms=1500.0), 0),
        (asked(ACCEPTED, reply(source="edge_fallback"), at_ms=1500.0), 0),
    ],
)
def test_dropped_are_those_sent_during_the_push_without_an_answer(
    request_: Asked, expected: int
) -> None:
    assert dropped([request_], PUSH) == expected


def test_accuracy_counts_a_lost_request_as_wrong() -> None:
    found = measured(asked(reply()), asked())

    assert found.cascade_accuracy == 0.5


def test_the_edge_alone_is_judged_on_the_same_requests() -> None:
    found = measured(
        asked(reply()),
        asked(ACCEPTED, reply(source="cloud", label="dog"), index=1),
    )

    assert found.edge_only_accuracy == 0.5
    assert found.cascade_accuracy == 1.0
    assert found.spill_rate == 0.5


def test_what_the_cloud_answered_belongs_to_the_edge_version_before_it() -> None:
    in_order = [
        asked(reply(source="cloud", version="9"), id_="a"),
        asked(reply(version="1"), id_="b"),
        asked(reply(version="2"), id_="c"),
        asked(reply(source="cloud", version="9"), id_="d"),
        asked(reply(source="cloud", version="9"), id_="e", device="cam2"),
    ]

    assert edge_versions(in_order, default="1") == {
        "a": "1",
        "b": "1",
        "c": "2",
        "d": "2",
        "e": "1",
    }


def test_phases_are_measured_apart_and_the_cloud_pass_beside_them() -> None:
    found = measured(
        asked(reply(), stage=FIRST),
        asked(reply(label="cat"), index=1, stage=FIRST),
        asked(reply(version="2"), stage=SWAP),
        asked(reply(label="dog", version="2"), index=1, stage=SECOND),
        asked(ACCEPTED, reply(source="cloud"), stage=CLOUD),
        asked(ACCEPTED, reply(source="cloud", label="cat"), index=1, stage=CLOUD),
    )

    assert found.requests == 4
    assert found.cloud_only_accuracy == 0.5
    assert found.cloud_pass == {
        "requests": 2,
        "answered": 2,
        "lost": 0,
        "duplicated": 0,
    }
    first, swap, second = found.phases
    assert (first.edge_versions, first.cascade_accuracy) == (["1"], 0.5)
    assert (swap.edge_versions, swap.requests) == (["2"], 1)
    assert (second.edge_only_accuracy, second.cascade_accuracy) == (1.0, 1.0)


def test_latency_is_from_the_first_send_to_the_final_reply() -> None:
    found = measured(
        asked(
            replace(ACCEPTED, at_ms=105.0),
            reply(source="cloud", at_ms=140.0),
            reply(source="cloud", at_ms=900.0),
            at_ms=100.0,
        ),
        asked(reply(at_ms=203.0), at_ms=200.0),
    )

    assert (found.cloud_ms.p50, found.edge_ms.p50) == (40.0, 3.0)


def test_nothing_measured_is_null_and_not_zero() -> None:
    found = measured(asked(reply()))

    assert found.document()["cloud_ms"] == {"p50": None, "p99": None}


def test_the_document_has_the_names_that_scripts_rely_on() -> None:
    written = measured(asked(reply()), asked(at_ms=1500.0)).document()

    assert {
        "requests",
        "answered_edge",
        "answered_cloud",
        "answered_fallback",
        "failed",
        "expired",
        "lost",
        "duplicated",
        "edge_only_accuracy",
        "cloud_only_accuracy",
        "cascade_accuracy",
        "spill_rate",
        "edge_ms",
        "cloud_ms",
        "push",
    } <= written.keys()
    assert written["push"] == {
        "from": "1",
        "to": "2",
        "agents_updated": 3,
        "dropped_during_swap": 1,
        "seconds": 1.0,
    }


@pytest.mark.parametrize(
    ("change", "complaint"),
    [
        ({"lost": 2}, "2 requests were lost"),
        ({"duplicated": 1}, "1 requests were answered more than once"),
        (
            {"cloud_pass": {"requests": 1, "answered": 0, "lost": 1, "duplicated": 0}},
            "1 requests were lost",
        ),
        ({"cascade_accuracy": 0.5}, "no better than the edge"),
        (
            {"push": replace(PUSH, agents_updated=2, reason="agent-3: bad bundle")},
            "version 2 reached 2 of 3 agents: agent-3: bad bundle",
        ),
        ({"dropped_during_swap": 4}, "4 requests were dropped"),
    ],
)
def test_a_run_is_no_success_with_any_of_these(
    change: dict[str, object], complaint: str
) -> None:
    good = measured(
        asked(reply()),
        asked(ACCEPTED, reply(source="cloud", label="dog"), index=1),
    )
    assert faults(good, agents=3) == []

    (found,) = faults(replace(good, **change), agents=3)  # type: ignore[arg-type] # fields by name

    assert complaint in found


def test_a_request_that_was_only_accepted_has_been_spilled() -> None:
    assert spilled(asked(ACCEPTED))
    assert not spilled(asked(reply()))
    assert not spilled(asked(reply("refused")))


def test_what_the_edge_held_back_was_not_spilled() -> None:
    spared = reply(
        source="edge_fallback",
        reason="hard: confidence 0.300 is under the calibrated threshold 0.700, "
        "not spilled: a spill waits 1.50 s of 2.00 s",
    )
    late = reply(source="edge_fallback", reason="hard; deadline came first")

    assert (held_back(asked(spared)), spilled(asked(spared))) == (True, False)
    assert (held_back(asked(late)), spilled(asked(late))) == (False, True)


def test_a_promise_on_spilling_is_held_against_the_share_spilled() -> None:
    target = Target("at most 20% spilled", "spill", 0.2)

    found = measured(
        asked(reply()),
        asked(ACCEPTED, reply(source="cloud")),
        promised={"1": Promised(target, [account()])},
    )

    first, swap, second = found.phases
    assert first.target == target
    assert first.realised is not None
    assert first.realised.devices is not None
    assert first.realised.devices.value == 0.5
    assert first.realised.agents == [account()]
    assert swap.target is second.target is None


def test_a_promise_on_excess_is_held_against_the_cloud_on_the_same_images() -> None:
    found = measured(
        asked(reply(label="dog")),
        asked(reply(label="dog"), index=1),
        # The cloud is right on the first image, and was not asked about the second.
        asked(ACCEPTED, reply(source="cloud"), stage=CLOUD),
        promised={"1": Promised(Target("2 points worse", "excess", 0.02), [])},
    )

    realised = found.phases[0].realised
    assert realised is not None
    assert realised.devices == ByDevices(1.0, 1.0, 1.0)


@pytest.mark.parametrize(
    ("standing", "count"), [("kept", 0), ("at_risk", 0), ("broken", 1)]
)
def test_only_an_agent_that_says_broken_makes_a_promise_a_fault(
    standing: str, count: int
) -> None:
    found = measured(
        asked(reply()),
        asked(ACCEPTED, reply(source="cloud", label="dog"), index=1),
        promised={
            "1": Promised(Target("20% spilled", "spill", 0.2), [account(standing)])
        },
    )

    said = faults(found, agents=3)

    assert len(said) == count
    assert all("agent-1 says that its promise is broken" in each for each in said)
