"""What a threshold was calibrated on: what the agent needs to keep its promise. Pure.

The builder writes it beside the threshold, in the same manifest, so that both are
swapped and rolled back together.
"""

from __future__ import annotations

from itertools import pairwise
from typing import Annotated, Final, Literal, Self

from pydantic import BaseModel, ConfigDict, Field, StringConstraints, model_validator

MAX_RUNGS: Final = 64
MAX_BINS: Final = 64

Share = Annotated[float, Field(ge=0, le=1)]
Finite = Annotated[float, Field(allow_inf_nan=False)]
Chance = Annotated[float, Field(gt=0, lt=1)]
Count = Annotated[int, Field(ge=0, le=2**53)]


class Stated(BaseModel):
    """A frozen part of a calibration; unknown fields are ignored."""

    model_config = ConfigDict(frozen=True, extra="ignore", allow_inf_nan=False)


class StatedTarget(Stated):
    """What the operator asked for.

    `text` as `cascade.targets` reads it; the other fields are what it says. `limit` is
    a share of requests: spilled (`spill`), wrong more often than the cloud's
    (`excess`), or wrong in all (`error`). `confidence` None: on average.
    """

    text: Annotated[str, StringConstraints(min_length=1, max_length=200)]
    kind: Literal["spill", "excess", "error"]
    limit: Annotated[float, Field(ge=0, lt=1)]
    confidence: Chance | None = None
    per_class: Chance | None = None


class ReferenceScores(Stated):
    """The scores calibrated on, in bins; drift is a change from these.

    Bin i holds the scores from edge i − 1 to under edge i, so there is one more count
    than edges. The `edges` and `counts` of `cascade.drift.DriftTest.calibrated(scores,
    bins=32).to_state()`.
    """

    edges: Annotated[list[Finite], Field(max_length=MAX_BINS - 1)]
    counts: Annotated[list[Count], Field(min_length=1, max_length=MAX_BINS)]

    @model_validator(mode="after")
    def _bins_agree(self) -> Self:
        if not all(a < b for a, b in pairwise(self.edges)):
            raise ValueError("the edges of bins rise")
        if len(self.counts) != len(self.edges) + 1:
            raise ValueError(
                f"{len(self.edges)} edges need {len(self.edges) + 1} counts, "
                f"got {len(self.counts)}"
            )
        return self


class CloudReading(Stated):
    """How the cloud's answer becomes probabilities that can be believed.

    `output` of the cloud model holds the classes in the order of this bundle's labels;
    `temperature` is the cloud model's own, fitted on held-out data.
    """

    output: Annotated[str, StringConstraints(min_length=1, max_length=256)]
    activation: Literal["logits", "probabilities"] = "logits"
    temperature: Annotated[float, Field(gt=0)] = 1.0


class Measured(Stated):
    """What was found on the calibration data at the threshold.

    `realised` is what the target limits; the rates are shares of the examples.
    """

    examples: Annotated[int, Field(ge=1, le=2**53)]
    spilled: Share
    realised: Annotated[float, Field(ge=-1, le=1)] | None = None
    edge_wrong: Share | None = None
    cloud_wrong: Share | None = None
    disagree: Share | None = None


class Calibration(Stated):
    """The promise that comes with a bundle's threshold.

    `rungs` are `cascade.effective.ladder(confidence, threshold).rungs`: never falling,
    the last is the decision's threshold; rung i of k spills about (i + 1) / k of what
    the threshold does. Each part may be left out, and the agent then does without:
    no target, no promise; no scores, no drift test; no rungs, all or nothing; no
    cloud reading, disagreement stands for excess.
    """

    target: StatedTarget | None = None
    rungs: Annotated[list[Finite], Field(max_length=MAX_RUNGS)] = Field(
        default_factory=list
    )
    scores: ReferenceScores | None = None
    cloud: CloudReading | None = None
    measured: Measured | None = None

    @model_validator(mode="after")
    def _rungs_rise(self) -> Self:
        if any(a > b for a, b in pairwise(self.rungs)):
            raise ValueError("the rungs of a ladder never fall")
        return self
