"""Choose a temperature and a threshold on held-out logits. Pure numpy, no model."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from numpy.typing import NDArray


def fit_temperature(logits: NDArray[np.float32], labels: NDArray[np.uint8]) -> float:
    """Return the temperature that minimises the negative log likelihood of ``labels``.

    Args:
        logits: float32 [n, 10].
        labels: uint8 [n].

    Source: Guo et al., "On calibration of modern neural networks", 2017.
    """
    # The loss is convex in 1/T, so narrowing a bracket by thirds finds the minimum.
    low, high = 0.05, 20.0
    while high - low > 1e-5:
        left, right = low + (high - low) / 3, high - (high - low) / 3
        if nll(logits, labels, 1 / left) < nll(logits, labels, 1 / right):
            high = right
        else:
            low = left
    return 2 / (low + high)


def nll(
    logits: NDArray[np.float32], labels: NDArray[np.uint8], temperature: float
) -> float:
    """Return the mean negative log likelihood in nats at ``temperature``."""
    scaled = logits.astype(np.float64) / temperature
    scaled -= scaled.max(axis=-1, keepdims=True)
    chosen = scaled[np.arange(len(labels)), labels]
    return float(np.mean(np.log(np.exp(scaled).sum(axis=-1)) - chosen))


def confidence(logits: NDArray[np.float32], temperature: float) -> NDArray[np.float64]:
    """Return the largest softmax of each row of ``logits`` [n, 10], as float64 [n]."""
    scaled = logits.astype(np.float64) / temperature
    scaled -= scaled.max(axis=-1, keepdims=True)
    largest: NDArray[np.float64] = 1 / np.exp(scaled).sum(axis=-1)
    return largest


def threshold_for_spill(confident: NDArray[np.float64], share: float) -> float:
    """Return the threshold below which ``share`` of ``confident`` [n] lies."""
    return float(np.quantile(confident, share))
