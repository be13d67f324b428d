"""What a model's output says, as logits or as probabilities, whichever it gives."""

from __future__ import annotations

from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from cascade.scores import Activation, softmax

_LEAST: Final = 1e-12


def activation_of(outputs: NDArray[np.floating[Any]]) -> Activation:
    """Whether rows [n, classes] are probabilities: none under 0, and each sums to 1."""
    sums = outputs.sum(axis=-1)
    if (outputs >= 0).all() and np.abs(sums - 1).max(initial=0) < 1e-2:
        return "probabilities"
    return "logits"


def as_logits(outputs: NDArray[np.float32]) -> NDArray[np.float32]:
    """Rows as logits; of probabilities, their logarithms."""
    if activation_of(outputs) == "logits":
        return outputs
    return np.log(np.maximum(outputs, _LEAST)).astype(np.float32)


def softened(logits: NDArray[np.float32], temperature: float) -> NDArray[np.float32]:
    """Probabilities at a temperature, for a student to follow.

    Source: Hinton, Vinyals and Dean, "Distilling the knowledge in a neural network",
    2015.
    """
    return softmax(logits, temperature).astype(np.float32)
