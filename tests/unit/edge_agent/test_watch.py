"""What is watched of one model version."""

from __future__ import annotations

import json
import random
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from bundle.manifest import parse_manifest
from cascade.promise import Standing
from edge_agent.core.answers import Answer, AnswerStatus, Source
from edge_agent.core.promise_books import MAX_OPEN_AUDITS
from edge_agent.core.threshold import Surroundings
from edge_agent.core.watch import Watch, WatchOptions
from tests.calibrations import manifest

NO_AUDIT = (0.5, 1.0)
AUDIT = (0.5, 0.0)


def watch(
    options: WatchOptions | None = None, threshold: float = 0.6, **more: Any
) -> Watch:
    stated = parse_manifest(json.dumps(manifest(threshold, **more)).encode())
    return Watch(stated, options or WatchOptions(audit_share=0.1), 0.0)


def answered(source: Source, label: str, logits: list[float] | None = None) -> Answer:
    outputs = None if logits is None else {"logits": np.array([logits], np.float32)}
    return Answer(
        "r",
        "d",
        AnswerStatus.ANSWERED,
        source,
        label=label,
        version="1",
        outputs=outputs,
    )


def ask(
    seen: Watch,
    score: float = 0.9,
    *,
    chances: tuple[float, float] = NO_AUDIT,
    may_audit: bool = True,
    deadline_s: float = 1.0,
) -> Any:
    return seen.judged(
        score,
        spilled=score < seen.threshold.in_force.threshold,
        deadline_s=deadline_s,
        may_audit=may_audit,
        chances=chances,
    )


def audit(seen: Watch, key: str, edge: str, cloud: Answer) -> None:
    draw = ask(seen, chances=AUDIT).draw
    assert draw is not None
    seen.books.audit_began(draw, ("agent", key))
    said = answered(Source.EDGE, edge)
    seen.books.spill_ended(("agent", key), said, cloud, audit=True)


# --- the threshold in force ---------------------------------------------------------


def test_a_pool_that_is_slow_lowers_the_threshold_and_its_word_fades() -> None:
    seen = watch()
    ask(seen, deadline_s=2.0)
    assert seen.threshold.adjust(Surroundings(), 0.0) is None
    seen.threshold.heard_wait(1.5, 0.0)
    change = seen.threshold.adjust(Surroundings(), 0.0)
    assert change is not None
    assert 0.2 < change.new < 0.4
    assert "waits 1.50 s of 2.00 s" in change.why
    seen.threshold.adjust(Surroundings(), 60.0)
    assert seen.threshold.in_force.threshold == 0.6
    assert seen.threshold.changes == 2


def by_class(**of_classes: list[float]) -> Watch:
    """Of a model whose class b has a threshold of 0.9."""
    stated = manifest(0.6, class_rungs=of_classes)
    stated["decision"]["class_thresholds"] = {"b": 0.9}
    parsed = parse_manifest(json.dumps(stated).encode())
    return Watch(parsed, WatchOptions(), 0.0)


def test_the_threshold_of_a_class_gives_way_with_the_others_and_comes_back() -> None:
    seen = by_class(b=[0.2, 0.5, 0.8, 0.9])
    assert seen.threshold.now.of(1) == 0.9
    assert seen.threshold.now.of(0) == 0.6
    ask(seen, deadline_s=2.0)
    seen.threshold.heard_wait(1.5, 0.0)
    assert seen.threshold.adjust(Surroundings(), 0.0) is not None
    assert seen.threshold.now.of(1) == 0.5
    assert seen.shown()["classes"] == {"b": 0.5}
    assert seen.threshold.calibrated.of(1) == 0.9
    seen.threshold.adjust(Surroundings(link_down_s=9.0), 0.0)
    assert seen.threshold.now.of(1) == -np.inf
    assert seen.shown()["classes"] == {"b": None}
    seen.threshold.adjust(Surroundings(), 60.0)
    assert seen.threshold.now.of(1) == 0.9


def test_where_only_a_class_gives_way_that_is_a_change_too() -> None:
    stated = manifest(0.0, class_rungs={"b": [0.2, 0.5, 0.8, 0.9]})
    stated["decision"]["class_thresholds"] = {"b": 0.9}
    stated["calibration"]["rungs"] = [0.0, 0.0, 0.0, 0.0]
    parsed = parse_manifest(json.dumps(stated).encode())
    seen = Watch(parsed, WatchOptions(), 0.0)
    ask(seen, deadline_s=2.0)
    seen.threshold.heard_wait(1.5, 0.0)
    change = seen.threshold.adjust(Surroundings(), 0.0)
    assert change is not None
    assert "waits 1.50 s" in change.why
    assert seen.threshold.now.of(1) == 0.5
    assert seen.threshold.changes == 1


def test_a_spill_that_waited_in_vain_lowers_it_too() -> None:
    seen = watch()
    ask(seen)
    seen.threshold.missed(1.0, 0.0)
    seen.threshold.adjust(Surroundings(), 0.0)
    assert seen.threshold.in_force.threshold == -np.inf


def test_a_link_that_is_down_for_a_moment_changes_nothing_and_then_nothing_spills() -> (
    None
):
    seen = watch()
    ask(seen, deadline_s=10.0)
    seen.threshold.adjust(Surroundings(link_down_s=0.9), 0.0)
    assert seen.threshold.in_force.threshold == 0.6
    seen.threshold.adjust(Surroundings(link_down_s=1.1), 1.0)
    assert seen.threshold.in_force.threshold == -np.inf
    assert seen.threshold.in_force.why == "the link is down"
    assert seen.shown()["threshold"] is None
    seen.threshold.adjust(Surroundings(), 2.0)
    assert seen.threshold.in_force.threshold == 0.6


def test_a_budget_that_runs_low_lowers_it() -> None:
    seen = watch()
    ask(seen)
    seen.threshold.adjust(Surroundings(bytes_left=0.125), 0.0)
    assert seen.threshold.in_force.share == 0.5
    assert seen.threshold.in_force.threshold == pytest.approx(0.3, abs=0.02)


def test_a_quota_holds_over_many_hard_requests() -> None:
    seen = watch(WatchOptions(spill_quota=0.1))
    spilled = 0
    draw = random.Random(1)
    for _ in range(20_000):
        score = draw.random()
        hard = score < seen.threshold.in_force.threshold
        spilled += hard
        ask(seen, score)
        seen.threshold.adjust(Surroundings(), 0.0)
    # A tenth of them, and of the thousand that may come at once.
    assert spilled <= 0.1 * 21_000 + 1
    assert spilled > 0.09 * 20_000


def test_without_a_ladder_only_budgets_move_a_threshold() -> None:
    seen = watch(rungs=[])
    ask(seen)
    seen.threshold.missed(5.0, 0.0)
    seen.threshold.adjust(Surroundings(link_down_s=60.0), 0.0)
    assert seen.threshold.in_force.threshold == 0.6
    seen.threshold.adjust(Surroundings(bytes_left=0.1), 0.0)
    assert seen.threshold.in_force.threshold == -np.inf


# --- audits and the promise ---------------------------------------------------------


def test_a_spill_target_is_known_of_every_request() -> None:
    seen = watch(kind="spill", limit=0.2)
    for n in range(1000):
        ask(seen, 0.1 if n % 2 else 0.9)
    seen.books.look(0.0)
    assert seen.books.realised is not None
    assert seen.books.realised.value == 0.5
    assert seen.books.realised.standing is Standing.BROKEN
    assert seen.shown()["promise"]["audited"] == 1000


def test_what_is_shown_of_a_promise_is_as_of_now_and_not_of_the_last_look() -> None:
    seen = watch(kind="spill", limit=0.2)
    seen.books.look(0.0)
    for n in range(100):
        ask(seen, 0.1 if n % 2 else 0.9)

    shown = seen.shown()["promise"]

    assert (shown["requests"], shown["value"]) == (100, 0.5)


def test_audits_find_the_excess_without_bias() -> None:
    seen = watch(WatchOptions(audit_share=0.1), limit=0.05)
    draw = random.Random(2)
    for n in range(20_000):
        drawn = ask(seen, chances=(draw.random(), draw.random())).draw
        if drawn is None:
            continue
        key = ("agent", str(n))
        seen.books.audit_began(drawn, key)
        # The cloud is sure of another class each fifth time.
        other = draw.random() < 0.2
        cloud = answered(
            Source.CLOUD, "b" if other else "a", [0, 40, 0] if other else [40, 0, 0]
        )
        seen.books.spill_ended(key, answered(Source.EDGE, "a"), cloud, audit=True)
    news, _ = seen.books.look(0.0)
    assert news is not None
    assert news.standing is Standing.BROKEN
    assert news.value == pytest.approx(0.2, abs=0.03)
    assert news.low < 0.2 < news.high
    assert seen.books.disagreed / seen.books.audited == pytest.approx(0.2, abs=0.03)


def test_audits_that_get_no_answer_bias_nothing() -> None:
    seen = watch(WatchOptions(audit_share=0.1))
    draw = random.Random(3)
    for n in range(20_000):
        drawn = ask(seen, chances=(draw.random(), draw.random())).draw
        if drawn is None:
            continue
        key = ("agent", str(n))
        seen.books.audit_began(drawn, key)
        lost = draw.random() < 0.5
        end = (
            answered(Source.EDGE_FALLBACK, "a")
            if lost
            else answered(Source.CLOUD, "b", [0, 40, 0])
        )
        seen.books.spill_ended(key, answered(Source.EDGE, "a"), end, audit=True)
    seen.books.look(0.0)
    assert seen.books.realised is not None
    assert seen.books.realised.value == pytest.approx(1.0, abs=0.1)
    assert seen.books.uncovered == pytest.approx(10_000, rel=0.1)


def test_a_hard_request_that_the_cloud_answered_has_no_excess() -> None:
    seen = watch()
    for n in range(10):
        ask(seen, 0.1)
        key = ("d", str(n))
        seen.books.spill_ended(
            key, answered(Source.EDGE, "a"), answered(Source.CLOUD, "b"), audit=False
        )
    ask(seen, 0.1)
    end = answered(Source.EDGE_FALLBACK, "a")
    seen.books.spill_ended(("d", "late"), answered(Source.EDGE, "a"), end, audit=False)
    seen.books.look(0.0)
    assert seen.books.realised is not None
    assert (seen.books.realised.value, seen.books.realised.audited) == (0.0, 10)
    assert seen.books.uncovered == 1


def test_an_unreadable_cloud_counts_disagreement_in_full() -> None:
    seen = watch(WatchOptions(audit_share=1.0 / 2))
    audit(seen, "1", "a", answered(Source.CLOUD, "b"))
    audit(seen, "2", "a", answered(Source.CLOUD, "a"))
    seen.books.look(0.0)
    assert seen.books.realised is not None
    assert seen.books.realised.value == 1.0  # one of two, each standing for two


def test_audits_under_way_are_bounded() -> None:
    seen = watch()
    for n in range(MAX_OPEN_AUDITS + 5):
        draw = ask(seen, chances=AUDIT).draw
        if draw is not None:
            seen.books.audit_began(draw, ("agent", str(n)))
    assert seen.shown()["open_audits"] == MAX_OPEN_AUDITS
    assert seen.books.uncovered == 5


def test_without_a_calibration_or_a_share_nothing_is_audited() -> None:
    stated = manifest()
    del stated["calibration"]
    bare = Watch(parse_manifest(json.dumps(stated).encode()), WatchOptions())
    assert ask(bare, chances=AUDIT).draw is None
    none = watch(WatchOptions(audit_share=0.0))
    assert ask(none, chances=AUDIT).draw is None
    assert none.shown()["promise"] is None


def test_a_promise_begins_anew_when_its_period_is_over() -> None:
    seen = watch(WatchOptions(period_s=100.0), kind="spill", limit=0.1)
    for _ in range(200):
        ask(seen, 0.1)
    _, ended = seen.books.look(101.0)
    assert ended is not None
    assert ended.standing is Standing.BROKEN
    assert seen.books.realised is not None
    assert (seen.books.realised.requests, seen.books.realised.standing) == (
        0,
        Standing.KEPT,
    )
    assert seen.books.look(150.0) == (None, None)


@given(
    st.lists(
        st.tuples(
            st.sampled_from(["confident", "drawn", "hard", "restart"]),
            st.sampled_from(["cloud", "fallback", "lost", "open"]),
            st.booleans(),
        ),
        max_size=60,
    )
)
def test_every_request_is_in_the_account_or_said_not_to_be(
    events: list[tuple[str, str, bool]],
) -> None:
    options = WatchOptions(audit_share=0.25)
    seen = watch(options)
    judged = waiting = 0
    for n, (what, end, may_audit) in enumerate(events):
        if what == "restart":
            state = json.loads(json.dumps(seen.to_state()))
            seen = watch(options)
            seen.restore(state)
            continue
        judged += 1
        score = 0.1 if what == "hard" else 0.9
        chances = AUDIT if what == "drawn" else NO_AUDIT
        draw = ask(seen, score, chances=chances, may_audit=may_audit).draw
        key = ("agent", str(n))
        if draw is None and what != "hard":
            continue
        if end == "lost" and draw is not None:
            seen.books.audit_failed(draw)
            continue
        if end == "lost":
            seen.books.not_spilled()
            continue
        if draw is not None:
            seen.books.audit_began(draw, key)
        if end == "open":
            waiting += draw is None
            continue
        source = Source.CLOUD if end == "cloud" else Source.EDGE_FALLBACK
        said = answered(Source.EDGE, "a")
        seen.books.spill_ended(key, said, answered(source, "b"), audit=draw is not None)
    seen.books.look(0.0)
    assert seen.books.realised is not None
    state = seen.to_state()
    assert seen.books.realised.requests + state["uncovered"] + waiting == judged


# --- drift --------------------------------------------------------------------------


def test_scores_that_change_raise_the_alarm_once_and_others_do_not() -> None:
    seen = watch()
    draw = random.Random(4)
    quiet = [
        ask(seen, draw.random(), chances=(draw.random(), 1.0)).alarm
        for _ in range(3000)
    ]
    assert not any(quiet)
    loud = [
        ask(seen, 0.6 * draw.random(), chances=(draw.random(), 1.0)).alarm
        for _ in range(500)
    ]
    assert sum(loud) == 1
    assert seen.shown()["drift"]["alarm"]
    seen.forget_drift()
    assert not seen.shown()["drift"]["alarm"]


# --- restarts -----------------------------------------------------------------------


def test_a_restart_forgets_neither_promise_nor_drift_nor_quota() -> None:
    options = WatchOptions(audit_share=0.5, spill_quota=0.2)
    seen = watch(options)
    audit(seen, "1", "a", answered(Source.CLOUD, "b", [0, 40, 0]))
    for _ in range(100):
        ask(seen, 0.1)
    seen.books.look(0.0)
    state = json.loads(json.dumps(seen.to_state(), allow_nan=False))
    again = watch(options)
    again.restore(state)
    assert again.shown()["promise"] == seen.shown()["promise"]
    assert again.shown()["drift"] == seen.shown()["drift"]
    assert again.to_state() == state


def test_other_terms_begin_a_promise_anew() -> None:
    seen = watch(kind="spill", limit=0.1)
    ask(seen, 0.1)
    again = watch(kind="spill", limit=0.2)
    again.restore(seen.to_state())
    assert again.books.realised is not None
    assert (again.books.realised.requests, again.books.realised.target) == (0, 0.2)
    assert again.shown()["drift"]["observed"] == 1


@pytest.mark.parametrize(
    "spoil",
    [
        {"version": "2"},
        {"requests": None},
        {"promise": {}},
        {"drift": {"edges": [1]}},
        {"began_s": "soon"},
        {"quota_level": "much"},
    ],
)
def test_a_state_that_is_none_changes_nothing(spoil: dict[str, Any]) -> None:
    options = WatchOptions(spill_quota=0.2)
    seen = watch(options)
    before = seen.to_state()
    with pytest.raises(ValueError, match=r".+"):
        seen.restore({**before, "requests": 7, **spoil})
    assert seen.to_state() == before
