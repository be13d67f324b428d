"""How sure a model is of one output. Numbers in, numbers out; nothing is remembered.

Every score is in 0..1 and higher is surer, so one threshold rule serves them all:

- `max_softmax`: the greatest probability (Hendrycks & Gimpel, "A Baseline for
  Detecting Misclassified and Out-of-Distribution Examples", ICLR 2017).
- `margin`: the greatest probability less the second.
- `entropy`: 1 - H(p) / ln(classes).
- `value`: the output's first item is the confidence itself.

Logits are divided by a temperature first (Guo et al., "On Calibration of Modern
Neural Networks", ICML 2017).
"""

from __future__ import annotations

import math
from typing import Any, Final, Literal, TypeAlias

import numpy as np
from numpy.typing import NDArray

Score: TypeAlias = Literal["max_softmax", "margin", "entropy", "value"]
Activation: TypeAlias = Literal["logits", "probabilities"]
Numbers: TypeAlias = NDArray[np.floating[Any] | np.integer[Any]]

_TINY: Final = 1e-12


class NotANumber(ValueError):
    """The model's output holds NaN or infinity, so it says nothing."""


class NoClasses(ValueError):
    """The output is empty: there is nothing to be sure of."""


def softmax(logits: Numbers, temperature: float = 1.0) -> NDArray[np.float64]:
    """Probabilities over the last axis; stable for logits of any finite size.

    Args:
        logits: any shape [..., classes], finite.
        temperature: above 0; higher is less sure.
    """
    scaled = np.asarray(logits, np.float64) / temperature
    powers = np.exp(scaled - scaled.max(axis=-1, keepdims=True))
    result: NDArray[np.float64] = powers / powers.sum(axis=-1, keepdims=True)
    return result


def confidences(
    outputs: Numbers,
    *,
    score: Score = "max_softmax",
    activation: Activation = "logits",
    temperature: float = 1.0,
) -> NDArray[np.float64]:
    """The confidence of each row of `outputs`.

    Args:
        outputs: any shape [..., classes]; a shape of no axis counts as one class.
        score: see the module.
        activation: what `outputs` holds. Probabilities are taken as they are at
            temperature 1, so a lone sigmoid is its own confidence.
        temperature: above 0.

    Returns:
        float64 of shape [rows], each in 0..1.

    Raises:
        NotANumber: an item is NaN or infinite.
        NoClasses: `outputs` has no item.
    """
    return score_rows(as_rows(outputs), score, activation, temperature)


def confidence(
    output: Numbers,
    *,
    score: Score = "max_softmax",
    activation: Activation = "logits",
    temperature: float = 1.0,
) -> float:
    """The confidence of one answer: that of its least sure row.

    Args:
        output: any shape [..., classes]; all leading axes are rows, except for
            `value`, which is the first item of all.
        score: see the module.
        activation: what `output` holds.
        temperature: above 0.

    Raises:
        NotANumber: an item is NaN or infinite.
        NoClasses: `output` has no item.
    """
    rows = as_rows(output)
    if score == "value":
        return min(max(float(rows[0, 0]), 0.0), 1.0)
    return float(score_rows(rows, score, activation, temperature).min())


def top_label(output: Numbers) -> int:
    """The class of the greatest item of the first row; the lowest index of a tie.

    Raises:
        NotANumber: an item is NaN or infinite.
        NoClasses: `output` has no item.
    """
    return int(as_rows(output)[0].argmax())


def as_rows(outputs: Numbers) -> NDArray[np.float64]:
    """Any output as float64 of shape [rows, classes], every item finite.

    Raises:
        NotANumber: an item is NaN or infinite.
        NoClasses: `outputs` has no item.
    """
    values = np.asarray(outputs, np.float64)
    if values.size == 0:
        raise NoClasses(f"the output of shape {list(values.shape)} is empty")
    finite = np.isfinite(values)
    if not finite.all():
        bad = values.size - int(finite.sum())
        raise NotANumber(f"{bad} of {values.size} items are NaN or infinite")
    return values.reshape(-1, values.shape[-1] if values.ndim else 1)


def score_rows(
    rows: NDArray[np.float64], score: Score, activation: Activation, temperature: float
) -> NDArray[np.float64]:
    """As `confidences`, of what `as_rows` has given already."""
    if score == "value":
        first: NDArray[np.float64] = np.clip(rows[:, 0], 0.0, 1.0)
        return first
    p = _probabilities(rows, activation, temperature)
    match score:
        case "max_softmax":
            return np.asarray(p.max(axis=-1), np.float64)
        case "margin":
            return _margin(p)
        case "entropy":
            return _certainty(p)


def _probabilities(
    rows: NDArray[np.float64], activation: Activation, temperature: float
) -> NDArray[np.float64]:
    if activation == "logits":
        return softmax(rows, temperature)
    p = np.clip(rows, 0.0, 1.0)
    if temperature == 1.0:
        return p
    return softmax(np.log(np.maximum(p, _TINY)), temperature)


def _margin(p: NDArray[np.float64]) -> NDArray[np.float64]:
    if p.shape[-1] == 1:
        return p[:, 0]
    two = np.partition(p, -2, axis=-1)[:, -2:]
    result: NDArray[np.float64] = two[:, 1] - two[:, 0]
    return result


def _certainty(p: NDArray[np.float64]) -> NDArray[np.float64]:
    classes = p.shape[-1]
    if classes == 1:
        return p[:, 0]
    total = p.sum(axis=-1, keepdims=True)
    # A row of zeros says nothing of any class, which is what uniform means.
    p = np.where(total > 0, p / np.maximum(total, _TINY), 1.0 / classes)
    entropy = -(p * np.log(np.maximum(p, _TINY))).sum(axis=-1)
    result: NDArray[np.float64] = np.clip(1.0 - entropy / math.log(classes), 0.0, 1.0)
    return result
