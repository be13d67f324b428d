from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from broker.messages import Result, Status, Tensor
from edge_agent.core.answers import Answer, AnswerStatus, Source
from edge_agent.core.delivery import (
    EXPIRY_SLACK_MS,
    NEXT,
    Channel,
    Ending,
    ImpossibleStep,
    Outcome,
    Retry,
    Stage,
    Step,
    Why,
    after_step,
    cancel,
    conclude,
    expire,
    resend_delay_ms,
    settling_step,
)
from tests.spills import open_spill

ACCEPTED_MS, DEADLINE_MS = 1_000.0, 5_000.0
LOGITS = np.array([[0.5, 2.0]], np.float32)
EDGE = Answer(
    id="r1",
    device="cam1",
    status=AnswerStatus.ANSWERED,
    source=Source.EDGE,
    label="Shirt",
    confidence=0.4,
    model="fashion",
    version="1",
    ms=2.0,
    outputs={"logits": LOGITS},
)
SPILL = open_spill("r1", now_ms=ACCEPTED_MS, left_ms=DEADLINE_MS - ACCEPTED_MS)
DOUBTED = replace(SPILL, edge=EDGE)


def result(status: Status, **more: Any) -> Result:
    return Result(id="r1", device="cam1", model="fashion", status=status, **more)


def ending(decided: Ending | Retry) -> Ending:
    assert isinstance(decided, Ending)
    return decided


def test_the_clouds_answer_is_told_with_why_it_was_asked() -> None:
    tensor = Tensor(dtype="float32", shape=[1, 2], data=LOGITS.tobytes())
    said = result(
        Status.OK,
        version="9",
        label="Coat",
        confidence=0.9,
        outputs={"logits": tensor},
    )
    for spill in (SPILL, DOUBTED):
        end = ending(conclude(spill, said, 1_250.0))
        assert end.outcome is Outcome.ANSWERED
        answer = end.answer
        assert (answer.id, answer.device, answer.model) == ("r1", "cam1", "fashion")
        assert answer.status is AnswerStatus.ANSWERED
        assert answer.source is Source.CLOUD
        assert answer.final
        assert (answer.label, answer.confidence, answer.version) == ("Coat", 0.9, "9")
        assert answer.reason == "hard"
        assert answer.ms == 250.0
        assert answer.outputs is not None
        assert np.array_equal(answer.outputs["logits"], LOGITS)


def test_a_failure_of_the_cloud_falls_back_to_the_edges_own_answer() -> None:
    failed = result(Status.FAILED, reason="wrong shape")
    end = ending(conclude(DOUBTED, failed, 1_100.0))
    assert end.outcome is Outcome.ANSWERED
    assert end.answer.source is Source.EDGE_FALLBACK
    assert (end.answer.label, end.answer.version) == ("Shirt", "1")
    assert end.answer.reason == "hard; cloud failed: wrong shape"
    assert end.answer.ms == 100.0


def test_what_the_model_has_no_time_for_is_not_sent_again() -> None:
    early = result(Status.EXPIRED, left_ms=2_000.0, reason="its model takes longer")
    end = ending(conclude(SPILL, early, DEADLINE_MS - 2_000.0))
    assert end.outcome is Outcome.EXPIRED
    assert end.answer.reason == "too little time for it: its model takes longer"
    end = ending(conclude(DOUBTED, early, DEADLINE_MS - 2_000.0))
    assert end.answer.source is Source.EDGE_FALLBACK


def test_a_pool_whose_clock_is_ahead_is_asked_again_whatever_the_model_takes() -> None:
    early = result(Status.EXPIRED, left_ms=500.0, reason="its model takes longer")
    assert conclude(SPILL, early, DEADLINE_MS - 2_000.0) == Retry()


def test_an_overloaded_pool_tells_the_device_when_to_ask_again() -> None:
    shed = result(Status.FAILED, reason="overloaded: try later", retry_after_s=2.5)
    end = ending(conclude(SPILL, shed, 1_100.0))
    assert end.outcome is Outcome.FAILED
    assert end.answer.retry_after_s == 2.5
    assert (end.answer.reason or "").startswith("overloaded:")


def test_the_edges_own_answer_is_better_than_being_told_to_come_back() -> None:
    shed = result(Status.FAILED, reason="overloaded: try later", retry_after_s=2.5)
    end = ending(conclude(DOUBTED, shed, 1_100.0))
    assert end.outcome is Outcome.ANSWERED
    assert end.answer.source is Source.EDGE_FALLBACK
    assert end.answer.retry_after_s is None


@pytest.mark.parametrize(
    ("reason", "told"),
    [("wrong shape", "wrong shape"), (None, "the pool gave no reason")],
)
def test_a_failure_without_an_edge_answer_is_told_as_failed(
    reason: str | None, told: str
) -> None:
    end = ending(conclude(SPILL, result(Status.FAILED, reason=reason), 1_100.0))
    assert end.outcome is Outcome.FAILED
    assert end.answer.status is AnswerStatus.FAILED
    assert end.answer.source is None
    assert end.answer.final
    assert end.answer.reason == told


@pytest.mark.parametrize(
    ("now_ms", "retried"),
    [
        (ACCEPTED_MS, True),
        (DEADLINE_MS - EXPIRY_SLACK_MS - 1, True),
        (DEADLINE_MS - EXPIRY_SLACK_MS, False),
        (DEADLINE_MS, False),
    ],
)
def test_a_pool_whose_clock_is_ahead_expires_nothing_early(
    now_ms: float, *, retried: bool
) -> None:
    decided = conclude(SPILL, result(Status.EXPIRED), now_ms)
    if retried:
        assert decided == Retry()
    else:
        assert ending(decided).outcome is Outcome.EXPIRED


def test_a_deadline_without_an_edge_answer_is_told_as_expired() -> None:
    end = expire(SPILL, DEADLINE_MS + 1)
    assert end.outcome is Outcome.EXPIRED
    assert end.answer.status is AnswerStatus.EXPIRED
    assert end.answer.final
    assert end.answer.reason is not None
    assert "deadline" in end.answer.reason
    assert end.answer.ms == 4_001.0


def test_a_deadline_with_an_edge_answer_gives_it_as_the_fallback() -> None:
    end = expire(DOUBTED, DEADLINE_MS)
    assert end.outcome is Outcome.ANSWERED
    assert end.answer.source is Source.EDGE_FALLBACK
    assert end.answer.outputs is EDGE.outputs
    assert end.answer.reason == "hard; deadline came first"


@given(
    attempt=st.integers(0, 10_000),
    first_s=st.floats(0.001, 3600),
    most_s=st.floats(0.001, 86_400),
    chance=st.floats(0, 1),
)
def test_a_resend_is_never_early_nor_later_than_the_longest_wait(
    attempt: int, first_s: float, most_s: float, chance: float
) -> None:
    delay_ms = resend_delay_ms(attempt, first_s=first_s, most_s=most_s, chance=chance)
    assert delay_ms >= 0.8 * 1000 * min(first_s, most_s) * 0.999
    assert delay_ms <= 1.2 * 1000 * most_s * 1.001


@given(chance=st.floats(0, 1), attempt=st.integers(0, 40))
def test_resends_come_ever_more_seldom(chance: float, attempt: int) -> None:
    earlier, later = (
        resend_delay_ms(n, first_s=1, most_s=60, chance=chance)
        for n in (attempt, attempt + 1)
    )
    assert later >= earlier
    assert earlier == 60_000 * (0.8 + 0.4 * chance) or later > earlier


# --- stages ----------------------------------------------------------------------------


@pytest.mark.parametrize("stage", list(Stage))
@pytest.mark.parametrize("step", list(Step))
def test_a_step_is_in_the_table_or_is_an_error(stage: Stage, step: Step) -> None:
    if (stage, step) in NEXT:
        assert after_step(stage, step) is NEXT[stage, step]
    else:
        with pytest.raises(ImpossibleStep, match=f"{stage.name} cannot {step}"):
            after_step(stage, step)


def test_an_outcome_is_recorded_once_and_nothing_opens_again() -> None:
    for (stage, step), after in NEXT.items():
        assert after is not Stage.OPEN
        if step in (Step.SETTLE, Step.ANSWER_CALLER):
            assert stage is Stage.OPEN


def test_a_caller_in_this_process_is_told_with_the_outcome() -> None:
    assert after_step(Stage.OPEN, settling_step(Channel.CALL)) is Stage.TOLD
    assert after_step(Stage.OPEN, settling_step(Channel.MQTT)) is Stage.SETTLED


def test_each_end_says_what_brought_it_about() -> None:
    failed = result(Status.FAILED, reason="odd")
    ends = {
        Why.CLOUD: ending(conclude(SPILL, result(Status.OK), 1.0)),
        Why.POOL_FAILED: ending(conclude(DOUBTED, failed, 1.0)),
        Why.DEADLINE: expire(SPILL, DEADLINE_MS),
        Why.CANCELLED: cancel(DOUBTED, 1_100.0),
    }
    assert {why: end.why for why, end in ends.items()} == {why: why for why in ends}
    assert ending(conclude(SPILL, failed, 1.0)).why is Why.POOL_FAILED
    assert expire(DOUBTED, DEADLINE_MS).why is Why.DEADLINE
    cancelled = ends[Why.CANCELLED]
    assert cancelled.outcome is Outcome.FAILED
    assert cancelled.answer.status is AnswerStatus.FAILED
    assert cancelled.answer.reason == "cancelled by the operator"
