"""What a run under overload came to, from histories made by hand."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from overspill.demo.history import Asked, Reply
from overspill.demo.overload import Crowd, Moment, Overload, faults, moment
from overspill.demo.promises import Accounts, Change

LABELS = ["cat", "dog"]
RIGHT = np.array([True, False])
CROWD = Crowd(400.0, 720.0, 5760, 3000, 2000, 700)


def reply(
    source: str, *, at_ms: float = 10.0, label: str = "cat", reason: str = ""
) -> Reply:
    return Reply("r", at_ms, "answered", True, source, label, "2", reason)


def asked(*replies: Reply, index: int = 0) -> Asked:
    return Asked("cam1", "r", index, index, "overload", 0.0, 1, list(replies))


def during(**changes: Any) -> Overload:
    calm = moment([asked(reply("edge"))], LABELS, RIGHT)
    return Overload(
        deadline_s=2.0,
        crowd=CROWD,
        before=calm,
        probe=calm,
        during=replace(calm, **changes),
        changes=[],
        queue_empty_after_s=0.5,
        agents=[],
    )


def status(threshold: float | None, *, version: str = "2") -> dict[str, Any]:
    cascade = {
        "version": version,
        "threshold": threshold,
        "calibrated": 0.7,
        "why": "a spill waits 1.50 s of 2.00 s",
        "promise": {
            "standing": "kept",
            "value": 0.01,
            "low": 0.0,
            "high": 0.2,
            "requests": 100,
            "audited": 12,
            "uncovered": 3,
        },
    }
    return {"models": {"fashion": {"cascade": cascade}}}


def test_each_request_of_a_moment_is_counted_by_who_answered() -> None:
    spared = reply("edge_fallback", reason="hard: …, not spilled: the pool is full")
    late = reply("edge_fallback", at_ms=2000.0, reason="hard; deadline came first")

    found = moment(
        [
            asked(reply("edge")),
            asked(spared),
            asked(late, index=1),
            asked(reply("cloud", label="dog"), index=1),
            asked(),
        ],
        LABELS,
        RIGHT,
    )

    assert found == Moment(
        requests=5,
        p50_ms=10.0,
        p99_ms=found.p99_ms,
        spill_rate=0.4,
        answered_edge=1,
        answered_cloud=1,
        held_back=1,
        too_late=1,
        unanswered=0,
        lost=1,
        duplicated=0,
        accuracy=0.6,
        edge_only_accuracy=0.6,
    )
    assert found.p99_ms is not None
    assert 1900 < found.p99_ms < 2000


@pytest.mark.parametrize(
    ("changes", "complaint"),
    [
        ({"lost": 1}, "1 requests were lost under overload"),
        ({"unanswered": 1}, "1 requests had no answer"),
        ({"duplicated": 2}, "2 requests were answered more than once"),
        ({"p99_ms": 2000.1}, "p99 was 2000.1 ms, and the deadline 2000 ms"),
        ({"p99_ms": None}, "p99 was None ms"),
    ],
)
def test_overload_may_cost_accuracy_and_nothing_else(
    changes: dict[str, Any], complaint: str
) -> None:
    assert faults(during(accuracy=0.1, held_back=1)) == []

    (found,) = faults(during(**changes))

    assert complaint in found


def test_a_queue_that_does_not_empty_is_a_fault() -> None:
    (found,) = faults(replace(during(), queue_empty_after_s=None))

    assert "queue was not empty" in found


def test_the_way_down_is_that_of_the_agent_that_gave_way_furthest() -> None:
    raised = Change("a", 0.2, 0.7, "as calibrated")
    lowered = Change("a", 0.7, 0.3, "the pool")
    first = Change("b", 0.7, 0.5, "the pool")
    to_none = Change("b", 0.5, None, "the pool")

    def way(*changes: Change) -> list[Change]:
        return replace(during(), changes=list(changes)).way_down

    assert way(raised) == []
    assert way(raised, lowered) == [lowered]
    assert way(first, lowered, to_none, raised) == [first, to_none]


def test_the_cost_is_what_the_cloud_was_worth_and_is_no_more() -> None:
    overload = during(accuracy=0.75, edge_only_accuracy=0.5)
    calm = replace(overload.before, accuracy=0.9, edge_only_accuracy=0.5)

    assert replace(overload, before=calm).cost == pytest.approx(0.15)


def test_accounts_keep_the_last_word_of_each_agent_and_each_change() -> None:
    accounts = Accounts()

    accounts.take("agent-2", status(0.7), "fashion")
    accounts.take("agent-2", status(None), "fashion")
    accounts.take("agent-2", status(None), "fashion")
    accounts.take("agent-1", status(0.7, version="1"), "fashion")
    accounts.take("agent-3", {}, "fashion")

    assert [each.agent for each in accounts.of("2")] == ["agent-2"]
    assert accounts.of("2")[0].known == 12
    assert accounts.of("3") == []
    assert accounts.changes == [
        Change("agent-2", 0.7, None, "a spill waits 1.50 s of 2.00 s")
    ]
