"""How sure a model is of one output. Numbers in, numbers out; nothing is remembered.

Higher is always surer. In 0..1, whatever the model says:

- `max_softmax`: the greatest probability (Hendrycks & Gimpel, "A Baseline for
  Detecting Misclassified and Out-of-Distribution Examples", ICLR 2017).
- `margin`: the greatest probability less the second.
- `entropy`: 1 - H(p) / ln(classes).
- `pnorm`: the greatest logit over the p-norm of all, both after their mean is
  taken away (Cattelan & Silva, "How to Fix a Broken Confidence Estimator", UAI
  2024). No temperature changes it.
- `expected_misses`: of a detector, exp(-m), where m is how many calls of "there" or
  "not there" are expected to be wrong when each candidate is reported from a score of
  one half on. Nothing found is 0, unless the rule says that nothing is an answer too.
- `value`: the output's first item is the confidence itself.

Any finite number, so its threshold is one too:

- `energy`: T · ln Σ exp(logit / T) (Liu et al., "Energy-based Out-of-distribution
  Detection", NeurIPS 2020).

Logits are divided by a temperature first (Guo et al., "On Calibration of Modern
Neural Networks", ICML 2017). Give a score logits in float: probabilities of an int8
model take 256 values and tie by the thousand, so that no threshold can part them.
"""

from __future__ import annotations

import math
from typing import Any, Final, Literal, TypeAlias

import numpy as np
from numpy.typing import NDArray

Score: TypeAlias = Literal[
    "max_softmax", "margin", "entropy", "energy", "pnorm", "expected_misses", "value"
]
Activation: TypeAlias = Literal["logits", "probabilities"]
Numbers: TypeAlias = NDArray[np.floating[Any] | np.integer[Any]]

# Scores without bounds; all others are in 0..1.
UNBOUNDED: Final[frozenset[Score]] = frozenset({"energy"})
DEFAULT_NORM: Final = 4.0

_TINY: Final = 1e-12
# An agent scores one short row a request, and there each call costs more than its work:
# the methods of arrays (`max`, `sum`) are left for the reductions that they wrap.
_max = np.maximum.reduce
_sum = np.add.reduce


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
    powers = _powers(np.asarray(logits, np.float64), temperature)
    result: NDArray[np.float64] = powers / _sum(powers, axis=-1, keepdims=True)
    return result


def confidences(
    outputs: Numbers,
    *,
    score: Score = "max_softmax",
    activation: Activation = "logits",
    temperature: float = 1.0,
    norm: float = DEFAULT_NORM,
) -> NDArray[np.float64]:
    """The confidence of each row of `outputs`.

    Args:
        outputs: any shape [..., classes]; a shape of no axis counts as one class.
        score: see the module.
        activation: what `outputs` holds. Probabilities are taken as they are at
            temperature 1, so a lone sigmoid is its own confidence. The candidates
            of `expected_misses` are each a probability, or the logit of one.
        temperature: above 0.
        norm: the p of `pnorm`, at least 1.

    Returns:
        float64 of shape [rows], each in 0..1 unless the score is in `UNBOUNDED`.

    Raises:
        NotANumber: an item is NaN or infinite.
        NoClasses: `outputs` has no item.
        ValueError: the score cannot be read from this activation.
    """
    return score_rows(as_rows(outputs), score, activation, temperature, norm)


def confidence(
    output: Numbers,
    *,
    score: Score = "max_softmax",
    activation: Activation = "logits",
    temperature: float = 1.0,
    norm: float = DEFAULT_NORM,
) -> float:
    """The confidence of one answer: that of its least sure row.

    Args:
        output: any shape [..., classes]; all leading axes are rows, except for
            `value`, which is the first item of all, and `expected_misses`, for
            which every item is a candidate of one picture.
        score: see the module.
        activation: what `output` holds.
        temperature: above 0.
        norm: the p of `pnorm`, at least 1.

    Raises:
        NotANumber: an item is NaN or infinite.
        NoClasses: `output` has no item.
        ValueError: the score cannot be read from this activation.
    """
    rows = as_rows(output)
    return score_answer(rows, score, activation, temperature, norm)


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
        bad = values.size - int(np.count_nonzero(finite))
        raise NotANumber(f"{bad} of {values.size} items are NaN or infinite")
    return values.reshape(-1, values.shape[-1] if values.ndim else 1)


def score_answer(
    rows: NDArray[np.float64],
    score: Score,
    activation: Activation = "logits",
    temperature: float = 1.0,
    norm: float = DEFAULT_NORM,
) -> float:
    """As `confidence`, of what `as_rows` has given already."""
    if score == "value":
        return min(max(float(rows[0, 0]), 0.0), 1.0)
    if score == "expected_misses":
        rows = rows.reshape(1, -1)
    each = score_rows(rows, score, activation, temperature, norm)
    return float(each[0] if len(each) == 1 else each.min())


def score_rows(
    rows: NDArray[np.float64],
    score: Score,
    activation: Activation = "logits",
    temperature: float = 1.0,
    norm: float = DEFAULT_NORM,
) -> NDArray[np.float64]:
    """As `confidences`, of what `as_rows` has given already."""
    match score:
        case "value":
            return np.clip(rows[:, 0], 0.0, 1.0)
        case "expected_misses":
            return _nothing_missed(rows, activation)
        case "energy":
            check_readable(score, activation)
            return _energy(rows, temperature)
        case "pnorm":
            check_readable(score, activation)
            return _pnorm(rows, norm)
        case "max_softmax" if activation == "logits":
            # The greatest power is 1, so this is the greatest probability.
            sure: NDArray[np.float64] = 1.0 / _sum(_powers(rows, temperature), axis=-1)
            return sure
        case _:
            return _of_probabilities(
                _probabilities(rows, activation, temperature), score
            )


def check_readable(score: Score, activation: Activation) -> None:
    """Check that a score can be read from what the output holds.

    Raises:
        ValueError: `energy` and `pnorm` need logits: softmax has taken away what they
            look at.
    """
    if score in ("energy", "pnorm") and activation != "logits":
        raise ValueError(f"the score {score!r} needs logits, not {activation}")


def _powers(rows: NDArray[np.float64], temperature: float) -> NDArray[np.float64]:
    """Exponentials over the last axis, the greatest of them 1."""
    scaled = rows if temperature == 1.0 else rows / temperature
    result: NDArray[np.float64] = np.exp(scaled - _max(scaled, axis=-1, keepdims=True))
    return result


def _probabilities(
    rows: NDArray[np.float64], activation: Activation, temperature: float
) -> NDArray[np.float64]:
    if activation == "logits":
        return softmax(rows, temperature)
    p = np.clip(rows, 0.0, 1.0)
    if temperature == 1.0:
        return p
    return softmax(np.log(np.maximum(p, _TINY)), temperature)


def _of_probabilities(
    p: NDArray[np.float64], score: Literal["max_softmax", "margin", "entropy"]
) -> NDArray[np.float64]:
    match score:
        case "max_softmax":
            return np.asarray(_max(p, axis=-1), np.float64)
        case "margin":
            return _margin(p)
        case "entropy":
            return _certainty(p)


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
    total = _sum(p, axis=-1)
    # A row of zeros says nothing of any class, which is what uniform means.
    some = np.maximum(total, _TINY)
    nats = np.log(some) - _sum(p * np.log(np.maximum(p, _TINY)), axis=-1) / some
    certain = np.where(total > 0, 1.0 - nats / math.log(classes), 0.0)
    result: NDArray[np.float64] = np.minimum(np.maximum(certain, 0.0), 1.0)
    return result


def _energy(rows: NDArray[np.float64], temperature: float) -> NDArray[np.float64]:
    total = np.log(_sum(_powers(rows, temperature), axis=-1))
    result: NDArray[np.float64] = _max(rows, axis=-1) + temperature * total
    return result


def _pnorm(rows: NDArray[np.float64], norm: float) -> NDArray[np.float64]:
    classes = rows.shape[-1]
    if classes == 1:
        return np.ones(len(rows))  # one class is certain, as it is to a softmax
    centred = rows - _sum(rows, axis=-1, keepdims=True) / classes
    apart = np.abs(centred)
    # Divided by the largest first, so that no power overflows. A row of one value
    # has no largest: it says nothing of any class.
    largest = _max(apart, axis=-1, keepdims=True)
    scale = np.where(largest > 0, largest, 1.0)
    length = np.maximum(_sum((apart / scale) ** norm, axis=-1), 1.0) ** (1.0 / norm)
    most = _max(centred, axis=-1) / scale[:, 0] / length
    result: NDArray[np.float64] = np.minimum(np.maximum(most, 0.0), 1.0)
    return result


def _nothing_missed(
    rows: NDArray[np.float64], activation: Activation
) -> NDArray[np.float64]:
    if activation == "logits":
        p = 0.5 * (1.0 + np.tanh(0.5 * rows))
    else:
        p = np.clip(rows, 0.0, 1.0)
    wrong = np.minimum(p, 1.0 - p).sum(axis=-1)
    # Detectors pad with zeros: all zeros is what "nothing there" looks like.
    result: NDArray[np.float64] = np.where(rows.any(axis=-1), np.exp(-wrong), 0.0)
    return result
