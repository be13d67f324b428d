"""How far confidences can be believed, and the temperature that mends them best.

Temperature: Guo, Pleiss, Sun & Weinberger, "On Calibration of Modern Neural Networks",
ICML 2017. Bins of equal counts and the correction for their noise: Roelofs, Cain,
Shlens & Mozer, "Mitigating Bias in Calibration Error Estimation", AISTATS 2022, and
Kumar, Liang & Ma, "Verified Uncertainty Calibration", NeurIPS 2019. Brier, "Verification
of Forecasts Expressed in Terms of Probability", Monthly Weather Review 1950.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from cascade.scores import Numbers, as_rows, softmax

COLDEST: Final = 0.05
HOTTEST: Final = 20.0
_GOLDEN: Final = (math.sqrt(5.0) - 1.0) / 2.0


def negative_log_likelihood(
    logits: Numbers, labels: NDArray[np.integer[Any]], temperature: float = 1.0
) -> float:
    """The mean of -ln p(label), in nats.

    Args:
        logits: [n, classes], finite.
        labels: integers [n], each a class.
        temperature: above 0.

    Raises:
        ValueError: labels that are not one a row, or no class of the logits.
        NotANumber: a logit is NaN or infinite.
        NoClasses: there are none.
    """
    rows = as_rows(logits)
    _check_labels(rows, labels)
    return _likelihood(rows, labels, temperature)


def fit_temperature(logits: Numbers, labels: NDArray[np.integer[Any]]) -> float:
    """The temperature of the least negative log likelihood.

    The loss is convex in 1/T, so golden section over ln T finds its only minimum.

    Args:
        logits: [n, classes], of examples the model was not trained on.
        labels: integers [n], each a class.

    Returns:
        `COLDEST`..`HOTTEST`, the hottest where several are as good; 1 where logits
        say nothing, as those of a single class.

    Raises:
        ValueError: labels that are not one a row, or no class of the logits.
        NotANumber: a logit is NaN or infinite.
        NoClasses: there are none.
    """
    rows = as_rows(logits)
    _check_labels(rows, labels)
    if not np.ptp(rows, axis=-1).any():
        return 1.0
    low, high = math.log(COLDEST), math.log(HOTTEST)
    left, right = high - _GOLDEN * (high - low), low + _GOLDEN * (high - low)
    at_left = _likelihood(rows, labels, math.exp(left))
    at_right = _likelihood(rows, labels, math.exp(right))
    while high - low > 1e-5:
        # Equal only where the loss has reached its floor: every colder one is as good.
        if at_left < at_right:
            high, right, at_right = right, left, at_left
            left = high - _GOLDEN * (high - low)
            at_left = _likelihood(rows, labels, math.exp(left))
        else:
            low, left, at_left = left, right, at_right
            right = low + _GOLDEN * (high - low)
            at_right = _likelihood(rows, labels, math.exp(right))
    return math.exp((low + high) / 2)


@dataclass(frozen=True, slots=True, eq=False)
class Reliability:
    """How often answers of like confidence are right: the reliability diagram.

    Attributes:
        confidence: float64 [bins], the mean in each bin, rising.
        accuracy: float64 [bins], the share that is right.
        count: int64 [bins], none of them 0.
    """

    confidence: NDArray[np.float64]
    accuracy: NDArray[np.float64]
    count: NDArray[np.int64]


def reliability(
    confidence: NDArray[np.floating[Any]], right: NDArray[np.bool_], bins: int = 15
) -> Reliability:
    """Bins of equal counts; equal confidences are never parted.

    Args:
        confidence: [n], in 0..1.
        right: bool [n].
        bins: at most so many.

    Raises:
        ValueError: the lengths differ, there is nothing, or a confidence is not in
            0..1.
    """
    sure = np.asarray(confidence, np.float64)
    if sure.shape != right.shape or sure.ndim != 1 or not sure.size or bins < 1:
        raise ValueError("calibration needs as many confidences as answers, and a bin")
    if not ((sure >= 0) & (sure <= 1)).all():
        raise ValueError("calibration is of confidences in 0..1")
    order = np.argsort(sure, kind="stable")
    ordered = sure[order]
    wanted = np.linspace(0, len(sure), min(bins, len(sure)) + 1).round().astype(int)
    # To the left edge of whatever run of equal ones a cut falls into.
    cuts = np.unique(np.searchsorted(ordered, ordered[wanted[:-1]]))
    counts = np.diff(cuts, append=len(sure))
    return Reliability(
        np.add.reduceat(ordered, cuts) / counts,
        np.add.reduceat(right[order].astype(np.float64), cuts) / counts,
        counts.astype(np.int64),
    )


def calibration_error(
    confidence: NDArray[np.floating[Any]],
    right: NDArray[np.bool_],
    bins: int = 15,
    *,
    debiased: bool = True,
) -> float:
    """How far confidence and accuracy are apart, as the root of the mean square, 0..1.

    The plain value is above 0 by chance alone, the more so the fewer examples a bin has.
    The debiased one takes away what chance is expected to add.

    Args:
        confidence: [n], in 0..1.
        right: bool [n].
        bins: at most so many, of equal counts.
        debiased: take away what chance adds; bins of one example are then left out.

    Raises:
        ValueError: as `reliability`.
    """
    found = reliability(confidence, right, bins)
    square = (found.confidence - found.accuracy) ** 2
    weight = found.count.astype(np.float64)
    if debiased:
        noise = found.accuracy * (1 - found.accuracy)
        square = square - noise / np.maximum(found.count - 1, 1)
        weight[found.count < 2] = 0.0
    total = weight.sum()
    return math.sqrt(max(0.0, float((square * weight).sum() / max(total, 1.0))))


def expected_calibration_error(
    confidence: NDArray[np.floating[Any]], right: NDArray[np.bool_], bins: int = 15
) -> float:
    """The mean distance of confidence and accuracy over bins of equal counts, 0..1.

    Raises:
        ValueError: as `reliability`.
    """
    found = reliability(confidence, right, bins)
    apart = np.abs(found.confidence - found.accuracy)
    return float((apart * found.count).sum() / found.count.sum())


def brier(
    logits: Numbers, labels: NDArray[np.integer[Any]], temperature: float = 1.0
) -> float:
    """The mean squared distance of probabilities from the truth, 0..2.

    Args:
        logits: [n, classes], finite.
        labels: integers [n], each a class.
        temperature: above 0.

    Raises:
        ValueError: labels that are not one a row, or no class of the logits.
        NotANumber: a logit is NaN or infinite.
        NoClasses: there are none.
    """
    rows = as_rows(logits)
    _check_labels(rows, labels)
    p = softmax(rows, temperature)
    p[np.arange(len(p)), labels] -= 1.0
    return float((p * p).sum(axis=-1).mean())


def _likelihood(
    rows: NDArray[np.float64], labels: NDArray[np.integer[Any]], temperature: float
) -> float:
    scaled = (rows - rows.max(axis=-1, keepdims=True)) / temperature
    chosen = scaled[np.arange(len(rows)), labels]
    return float(np.mean(np.log(np.exp(scaled).sum(axis=-1)) - chosen))


def _check_labels(rows: NDArray[np.float64], labels: NDArray[np.integer[Any]]) -> None:
    if labels.shape != (len(rows),) or not np.issubdtype(labels.dtype, np.integer):
        raise ValueError(
            f"{len(rows)} rows of logits need {len(rows)} integer labels, got "
            f"{labels.dtype} of shape {list(labels.shape)}"
        )
    if labels.min() < 0 or labels.max() >= rows.shape[-1]:
        raise ValueError(
            f"labels {int(labels.min())}..{int(labels.max())} are not all among "
            f"{rows.shape[-1]} classes"
        )
