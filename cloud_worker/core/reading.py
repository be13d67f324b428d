"""Read labels and confidences out of a batch, as the model's decision says."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from bundle.manifest import Decision
from cascade.scores import (
    NoClasses,
    NotANumber,
    Score,
    confidence,
    confidences,
    top_label,
)
from cloud_worker.core.outputs import BatchOutputs, OutputBlock
from cloud_worker.core.spec import ServedModel


@dataclass(frozen=True, slots=True)
class Reading:
    """What one request's outputs mean; both None when the model says nothing of it."""

    label: str | None = None
    confidence: float | None = None


@dataclass(frozen=True, slots=True)
class Unreadable:
    """The outputs cannot be read: they hold NaN, or no class at all."""

    reason: str


SILENT = Reading()


def read(outputs: BatchOutputs, model: ServedModel) -> list[Reading | Unreadable]:
    """The reading of each request of a batch, in order."""
    decision = model.decision
    if decision is None:
        return [SILENT] * outputs.count
    block = _block(outputs, decision.output)
    sure = block
    if decision.confidence_output is not None:
        sure = _block(outputs, decision.confidence_output)
    rows = _one_row_each(block, outputs.count)
    sure_rows = rows if sure is block else _one_row_each(sure, outputs.count)
    if rows is not None and sure_rows is not None and decision.empty == "unsure":
        return _read_rows(rows, sure_rows, decision, model.labels)
    return [
        _read_one(_array(block, index), _array(sure, index), decision, model)
        for index in range(outputs.count)
    ]


def _block(outputs: BatchOutputs, name: str) -> OutputBlock:
    return next(each for each in outputs.blocks if each.name == name)


def _one_row_each(block: OutputBlock, count: int) -> NDArray[np.generic] | None:
    """The output as [count, classes] if that is all it is and all of it is finite."""
    shape = block.shapes[0]
    if len(block.shapes) != 1 or len(shape) != 2 or shape[0] != 1 or not shape[1]:
        return None
    rows = np.frombuffer(block.data, block.dtype).reshape(count, shape[1])
    return rows if np.isfinite(rows).all() else None


def _read_rows(
    rows: NDArray[np.generic],
    sure_rows: NDArray[np.generic],
    decision: Decision,
    labels: tuple[str, ...],
) -> list[Reading | Unreadable]:
    sure = confidences(
        sure_rows,  # type: ignore[arg-type] # a numeric dtype, by the spec
        score=_score(decision),
        activation=decision.activation,
        temperature=decision.temperature,
        norm=decision.norm,
    )
    best = rows.argmax(axis=-1)
    return [
        Reading(_name(labels, int(index)), float(value))
        for index, value in zip(best, sure, strict=True)
    ]


def _score(decision: Decision) -> Score:
    """An output that is there for the confidence is the confidence."""
    return decision.score if decision.confidence_output is None else "value"


def _read_one(
    output: NDArray[np.generic],
    sure: NDArray[np.generic],
    decision: Decision,
    model: ServedModel,
) -> Reading | Unreadable:
    if decision.empty == "sure" and not output.any():
        # Nothing was found, and the model's maker says that this can be relied on.
        return Reading(None, 1.0)
    try:
        value = confidence(
            sure,  # type: ignore[arg-type] # a numeric dtype, by the spec
            score=_score(decision),
            activation=decision.activation,
            temperature=decision.temperature,
            norm=decision.norm,
        )
        best = top_label(output)  # type: ignore[arg-type] # as above
    except NoClasses:
        # An empty detection: an answer, and the least sure of all.
        return Reading(None, 0.0)
    except NotANumber as error:
        return Unreadable(
            f"output {decision.output!r} of model {model.name!r} "
            f"version {model.version} is not a number: {error}"
        )
    return Reading(_name(model.labels, best), value)


def _array(block: OutputBlock, index: int) -> NDArray[np.generic]:
    part = block.part(index)
    return np.frombuffer(part.data, part.dtype).reshape(part.shape)


def _name(labels: tuple[str, ...], index: int) -> str | None:
    return labels[index] if index < len(labels) else None
