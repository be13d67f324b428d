"""Where a request is answered. Decides before the edge model runs and after it has.

The order of the rules is the order of the table: forced by the device, no local
model, oversized, then the edge model itself, and last its own doubt. Whether the
cloud can be reached does not matter here: a spill waits in the outbox.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Final, TypeAlias

from broker.messages import Reason
from cascade.oversize import (
    larger_than_model,
    too_many_bytes,
    too_many_pixels,
    too_slow,
)
from cascade.policy import Judgement


@dataclass(frozen=True, slots=True)
class RequestFacts:
    """What routing needs to know of a request.

    Attributes:
        payload_bytes: length of the payload as the device sent it.
        pixels: width times height of its image; None when it carries none.
        shapes: the sides of each tensor input; empty when it carries an image.
        forced: the device asked for the cloud.
        remaining_ms: until the deadline; None when it has none.
    """

    payload_bytes: int
    pixels: int | None = None
    shapes: Mapping[str, Sequence[int]] = field(default_factory=dict)
    forced: bool = False
    remaining_ms: float | None = None


@dataclass(frozen=True, slots=True)
class ModelFacts:
    """What routing needs to know of the active edge model.

    Attributes:
        max_payload_bytes: from the manifest's limits.
        max_pixels: from the manifest's limits.
        shapes: the sides of each input, -1 where any length is taken.
        predicted_ms: how long one answer is expected to take, its queue included.
    """

    max_payload_bytes: int
    max_pixels: int
    shapes: Mapping[str, Sequence[int]] = field(default_factory=dict)
    predicted_ms: float = 0.0


@dataclass(frozen=True, slots=True)
class RunLocally:
    """Ask the edge model."""


@dataclass(frozen=True, slots=True)
class AnswerNow:
    """The edge model's answer stands."""


@dataclass(frozen=True, slots=True)
class Spill:
    """Ask the cloud, for this reason; `detail` is for people."""

    reason: Reason
    detail: str


_Oversize: TypeAlias = Callable[[RequestFacts, ModelFacts], str | None]

OVERSIZE_RULES: Final[tuple[_Oversize, ...]] = (
    lambda asked, model: too_many_bytes(asked.payload_bytes, model.max_payload_bytes),
    lambda asked, model: too_many_pixels(asked.pixels, model.max_pixels),
    lambda asked, model: larger_than_model(asked.shapes, model.shapes),
    lambda asked, model: too_slow(model.predicted_ms, asked.remaining_ms),
)


def before(request: RequestFacts, model: ModelFacts | None) -> RunLocally | Spill:
    """Whether the edge model should try at all.

    Args:
        request: what was asked.
        model: the active edge model; None when the agent has none of that name.
    """
    if request.forced:
        return Spill(Reason.FORCED, "the device asked for the cloud")
    if model is None:
        return Spill(Reason.NO_LOCAL_MODEL, "the agent has no model of that name")
    for rule in OVERSIZE_RULES:
        if (detail := rule(request, model)) is not None:
            return Spill(Reason.OVERSIZED, detail)
    return RunLocally()


def after(judgement: Judgement | None) -> AnswerNow | Spill:
    """Whether the edge model's answer stands.

    Args:
        judgement: None when the manifest says nothing of confidence, and then the
            edge's answer always stands.
    """
    if judgement is None or not judgement.hard:
        return AnswerNow()
    return Spill(Reason.HARD, judgement.why or "the edge model is unsure")
