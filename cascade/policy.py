"""Whether an edge answer stands. Never crashes on what a model says, however odd.

The reject option of Chow ("On Optimum Recognition Error and Reject Tradeoff", IEEE
Transactions on Information Theory, 1970): keep an answer whose confidence reaches
the threshold, and ask somebody better about the rest.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal, TypeAlias

import numpy as np

from cascade.scores import (
    DEFAULT_NORM,
    Activation,
    NoClasses,
    NotANumber,
    Numbers,
    Score,
    as_rows,
    check_readable,
    score_answer,
)

Task: TypeAlias = Literal["classify", "detect", "other"]


@dataclass(frozen=True, slots=True)
class Judgement:
    """What to think of one edge answer.

    Attributes:
        label_index: the class, or None where the output names none.
        confidence: by the rule's score; 0 when the output is not a number or is empty.
        hard: True when the cloud should be asked.
        why: why it is hard, for people; None when it is not.
        unusable: hard whatever the threshold: not a number, empty, nothing detected.
    """

    label_index: int | None
    confidence: float
    hard: bool
    why: str | None = None
    unusable: bool = False

    @property
    def score(self) -> float:
        """The confidence as calibration has it: -inf where the answer is unusable."""
        return -math.inf if self.unusable else self.confidence


@dataclass(frozen=True, slots=True)
class Rule:
    """How to read confidence from one output, and how much of it is enough.

    The fields are those of a manifest's decision, with the manifest's task.

    Attributes:
        empty_is_sure: a detection in which nothing was found stands, with confidence
            1. By default it is hard: a miss and an empty scene look the same.

    Raises:
        ValueError: the score cannot be read from this activation.
    """

    score: Score = "max_softmax"
    activation: Activation = "logits"
    temperature: float = 1.0
    threshold: float = 0.0
    task: Task = "classify"
    norm: float = DEFAULT_NORM
    empty_is_sure: bool = False

    def __post_init__(self) -> None:
        check_readable(self.score, self.activation)


def judge(
    output: Numbers,
    rule: Rule,
    *,
    confidence_output: Numbers | None = None,
    threshold: float | None = None,
) -> Judgement:
    """Judge one answer by the output its manifest names.

    Args:
        output: any shape [..., classes]. Several rows are as sure as their least
            sure one, and have no label.
        rule: how to read it.
        confidence_output: the first item of this other output is the confidence,
            where a manifest names one; `output` then gives the label only.
        threshold: the one in force, where it is not the rule's own.

    Returns:
        The judgement. An output that is NaN, infinite or empty is hard with
        confidence 0, and so is a detection in which nothing was found unless the
        rule says otherwise.
    """
    if rule.task == "detect" and not np.any(output):
        # Detectors pad with zeros: all zeros is what "nothing there" looks like.
        if rule.empty_is_sure:
            return Judgement(None, 1.0, hard=False)
        return Judgement(
            None, 0.0, hard=True, why="nothing was detected", unusable=True
        )
    try:
        rows = as_rows(output)
        if confidence_output is None:
            sure = score_answer(
                rows, rule.score, rule.activation, rule.temperature, rule.norm
            )
        else:
            sure = score_answer(as_rows(confidence_output), "value")
    except (NotANumber, NoClasses) as error:
        return Judgement(None, 0.0, hard=True, why=str(error), unusable=True)
    if confidence_output is None:
        names_classes = rule.score not in ("value", "expected_misses")
    else:
        names_classes = rule.task == "classify"
    label = int(rows[0].argmax()) if len(rows) == 1 and names_classes else None
    enough = rule.threshold if threshold is None else threshold
    if sure < enough:
        why = f"confidence {sure:.3f} is under the threshold {enough:.3f}"
        return Judgement(label, sure, hard=True, why=why)
    return Judgement(label, sure, hard=False)
