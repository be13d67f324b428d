"""What one candidate is worth on labelled examples, alone and with the cloud behind it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from builder.core.soft_targets import activation_of, as_logits
from cascade.curves import Curve, threshold_curve
from cascade.evaluation import (
    PerClass,
    agreement,
    deferral,
    deferral_limits,
    per_class,
)
from cascade.scores import confidences
from cascade.temperature import calibration_error, fit_temperature


@dataclass(frozen=True, slots=True, eq=False)
class Answers:
    """What a model says of examples whose labels are known.

    Attributes:
        outputs: float32 [n, classes].
        labels: int64 [n].
        temperature: that logits are divided by.
    """

    outputs: NDArray[np.float32]
    labels: NDArray[np.int64]
    temperature: float = 1.0

    @property
    def answered(self) -> NDArray[np.int64]:
        """The class said of each: int64 [n]."""
        said: NDArray[np.int64] = self.outputs.argmax(axis=-1).astype(np.int64)
        return said

    @property
    def right(self) -> NDArray[np.bool_]:
        """Whether each is right: bool [n]. What is not a number never is."""
        right: NDArray[np.bool_] = (self.answered == self.labels) & self.readable
        return right

    @property
    def readable(self) -> NDArray[np.bool_]:
        """Whether each row is made of finite numbers: bool [n]."""
        finite = np.isfinite(self.outputs).all(axis=-1)
        return np.asarray(finite, np.bool_)

    @property
    def confidence(self) -> NDArray[np.float64]:
        """How sure each is, by its greatest probability; -inf for what is no number."""
        sure = np.full(len(self.outputs), -np.inf)
        rows = self.readable
        if rows.any():
            sure[rows] = confidences(
                self.outputs[rows],
                activation=activation_of(self.outputs[rows]),
                temperature=self.temperature,
            )
        return sure


@dataclass(frozen=True, slots=True, eq=False)
class Quality:
    """What one candidate is worth.

    Attributes:
        examples: how many it was measured on.
        accuracy: alone, 0..1.
        classes: precision, recall and F1 of each class.
        calibration_error: the distance of confidence and accuracy, 0..1.
        distinct: how many different confidences there are; few are ties.
        agreement: the share of answers that are the cloud's; None without a cloud.
        cloud_accuracy: of the cloud alone; None without.
        deferral: 0 is spilling by chance, 1 is the oracle; None without a cloud.
        deferral_limits: its 95 % limits, by bootstrap; None where nobody asked.
        curve: of the cascade; None without a cloud.
    """

    examples: int
    accuracy: float
    classes: PerClass
    calibration_error: float
    distinct: int
    agreement: float | None
    cloud_accuracy: float | None
    deferral: float | None
    deferral_limits: tuple[float, float] | None
    curve: Curve | None


def temperature_of(outputs: NDArray[np.float32], labels: NDArray[np.int64]) -> float:
    """The temperature of the least negative log likelihood; 1 for probabilities.

    Rows that are not finite are left out; without any other it is 1 too.
    """
    finite = np.isfinite(outputs).all(axis=-1)
    if not finite.any() or activation_of(outputs[finite]) == "probabilities":
        return 1.0
    return fit_temperature(as_logits(outputs[finite]), labels[finite])


def quality(
    edge: Answers,
    cloud: Answers | None,
    *,
    classes: int,
    rng: np.random.Generator | None = None,
) -> Quality:
    """Measure a candidate, on the same examples as the cloud model.

    Args:
        edge: the candidate's answers.
        cloud: of the same examples.
        classes: how many there are.
        rng: draws examples again, for the limits of the deferral score.
    """
    sure, right = edge.confidence, edge.right
    finite = edge.readable
    error = calibration_error(sure[finite], right[finite]) if finite.any() else 1.0
    with_cloud: dict[str, Any] = {
        "agreement": None,
        "cloud_accuracy": None,
        "deferral": None,
        "deferral_limits": None,
        "curve": None,
    }
    if cloud is not None:
        with_cloud = {
            "agreement": agreement(edge.answered, cloud.answered)[0],
            "cloud_accuracy": float(cloud.right.mean()),
            "deferral": deferral(sure, right, cloud.right).score,
            "deferral_limits": rng and deferral_limits(sure, right, cloud.right, rng),
            "curve": threshold_curve(sure, right, cloud.right),
        }
    return Quality(
        examples=len(right),
        accuracy=float(right.mean()),
        classes=per_class(edge.answered, edge.labels, classes),
        calibration_error=float(error),
        distinct=len(np.unique(sure)),
        **with_cloud,
    )
