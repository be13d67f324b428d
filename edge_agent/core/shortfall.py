"""How much worse the edge's answer is believed to be, by the cloud's answer to the same.

The truth is never known here. What the cloud believes of its own answer and of the
edge's is: see `cascade.promise.believed_excess`.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Literal, TypeAlias

import numpy as np
from numpy.typing import NDArray

from bundle.calibration import CloudReading
from cascade.promise import believed_excess
from cascade.scores import NoClasses, NotANumber, as_rows, softmax
from edge_agent.core.answers import Answer

Kind: TypeAlias = Literal["excess", "error"]


def cloud_probabilities(
    answer: Answer, reading: CloudReading | None, labels: Sequence[str]
) -> NDArray[np.float64] | None:
    """What the cloud believes of each class, float64 [classes]; None if it does not say.

    Args:
        answer: the cloud's.
        reading: how to read it.
        labels: the edge's. A cloud whose best class has another name than the edge's
            class of that index orders its classes otherwise, and is not read.
    """
    output = None if reading is None else (answer.outputs or {}).get(reading.output)
    if reading is None or output is None:
        return None
    try:
        rows = as_rows(output)
    except (NoClasses, NotANumber):
        return None
    if len(rows) != 1 or (labels and rows.shape[1] != len(labels)):
        return None
    if reading.activation == "logits":
        p = softmax(rows[0], reading.temperature)
    elif reading.temperature == 1.0:
        p = np.clip(rows[0], 0.0, 1.0)
    else:
        p = softmax(np.log(np.maximum(rows[0], 1e-30)), reading.temperature)
    best = int(p.argmax())
    if labels and answer.label is not None and labels[best] != answer.label:
        return None
    return np.asarray(p, np.float64)


def edge_amount(
    kind: Kind,
    edge: Answer,
    cloud: Answer,
    reading: CloudReading | None,
    labels: Sequence[str],
) -> float | None:
    """How much of what a target limits there was, had the edge's answer stood: 0..1.

    Where the cloud's probabilities cannot be read, an answer unlike the cloud's counts
    in full, which is never less. None when the answers have no labels to compare.
    """
    if edge.label is None or cloud.label is None:
        return None
    p = cloud_probabilities(cloud, reading, labels)
    index = _index(edge.label, labels)
    if p is None or index is None or index >= len(p):
        return float(edge.label != cloud.label)
    return believed_excess(p, index) if kind == "excess" else _wrong(p, index)


def cloud_amount(
    kind: Kind, cloud: Answer, reading: CloudReading | None, labels: Sequence[str]
) -> float | None:
    """The same where the cloud's answer was given: no excess; an error it may be."""
    if kind == "excess":
        return 0.0
    p = cloud_probabilities(cloud, reading, labels)
    if p is not None:
        return _wrong(p, int(p.argmax()))
    if cloud.confidence is None or not 0 <= cloud.confidence <= 1:
        return None
    return 1.0 - cloud.confidence


def _wrong(p: NDArray[np.floating[Any]], index: int) -> float:
    return min(1.0, max(0.0, 1.0 - float(p[index])))


def _index(label: str, labels: Sequence[str]) -> int | None:
    """Where the manifest has no name for a class, its number stands for it."""
    if label in labels:
        return list(labels).index(label)
    return int(label) if label.isdecimal() else None
