from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from broker.messages import Reason
from cascade.policy import Judgement
from edge_agent.core.routing import (
    AnswerNow,
    ModelFacts,
    RequestFacts,
    RunLocally,
    Spill,
    after,
    before,
)

REQUEST = RequestFacts(payload_bytes=1000, pixels=784, remaining_ms=100.0)
MODEL = ModelFacts(
    max_payload_bytes=1000,
    max_pixels=784,
    shapes={"x": (1, 28, 28, 1)},
    predicted_ms=100.0,
)

LARGE: dict[str, Any] = {
    "bytes": {"payload_bytes": 1001},
    "pixels": {"pixels": 785},
    "shape": {"shapes": {"x": (1, 56, 56, 1)}},
    "time": {"remaining_ms": 99.9},
}
SAID = {"bytes": "1001 bytes", "pixels": "785 pixels", "shape": "56", "time": "99.9 ms"}


def test_a_request_at_every_limit_is_run_locally() -> None:
    assert before(REQUEST, MODEL) == RunLocally()


@pytest.mark.parametrize("why", LARGE)
def test_a_request_over_one_limit_is_oversized_and_says_which(why: str) -> None:
    route = before(replace(REQUEST, **LARGE[why]), MODEL)
    assert isinstance(route, Spill)
    assert route.reason is Reason.OVERSIZED
    assert SAID[why] in route.detail


def test_a_request_without_a_deadline_or_an_image_has_no_such_limit() -> None:
    assert before(RequestFacts(payload_bytes=1), MODEL) == RunLocally()


@pytest.mark.parametrize(
    ("forced", "model", "large", "reason"),
    [
        (True, None, True, Reason.FORCED),
        (True, MODEL, False, Reason.FORCED),
        (False, None, True, Reason.NO_LOCAL_MODEL),
        (False, None, False, Reason.NO_LOCAL_MODEL),
        (False, MODEL, True, Reason.OVERSIZED),
    ],
)
def test_the_first_reason_of_the_order_is_the_one_given(
    forced: bool, model: ModelFacts | None, large: bool, reason: Reason
) -> None:
    request = replace(REQUEST, forced=forced, payload_bytes=2000 if large else 1)
    route = before(request, model)
    assert isinstance(route, Spill)
    assert route.reason is reason


def test_the_queue_before_the_model_counts_towards_the_deadline() -> None:
    slow = replace(MODEL, predicted_ms=100.1)
    assert before(REQUEST, slow) != RunLocally()


@pytest.mark.parametrize(
    ("judgement", "route"),
    [
        (None, AnswerNow()),
        (Judgement(3, 0.9, hard=False), AnswerNow()),
        (Judgement(3, 0.2, hard=True, why="why"), Spill(Reason.HARD, "why")),
        (
            Judgement(None, 0.0, hard=True),
            Spill(Reason.HARD, "the edge model is unsure"),
        ),
    ],
)
def test_only_doubt_spills_what_the_edge_has_answered(
    judgement: Judgement | None, route: AnswerNow | Spill
) -> None:
    assert after(judgement) == route
