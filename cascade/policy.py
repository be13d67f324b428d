"""Whether an edge answer stands. Never crashes on what a model says, however odd.

The reject option of Chow ("On Optimum Recognition Error and Reject Tradeoff", IEEE
Transactions on Information Theory, 1970): keep an answer whose confidence reaches
the threshold, and ask somebody better about the rest.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, TypeAlias

import numpy as np

from cascade.scores import (
    Activation,
    NoClasses,
    NotANumber,
    Numbers,
    Score,
    as_rows,
    score_rows,
)

Task: TypeAlias = Literal["classify", "detect", "other"]


@dataclass(frozen=True, slots=True)
class Judgement:
    """What to think of one edge answer.

    Attributes:
        label_index: the class, or None where the output names none.
        confidence: 0..1; 0 when the output is not a number or is empty.
        hard: True when the cloud should be asked.
        why: why it is hard, for people; None when it is not.
    """

    label_index: int | None
    confidence: float
    hard: bool
    why: str | None = None


@dataclass(frozen=True, slots=True)
class Rule:
    """How to read confidence from one output, and how much of it is enough.

    The fields are those of a manifest's decision, with the manifest's task.
    """

    score: Score = "max_softmax"
    activation: Activation = "logits"
    temperature: float = 1.0
    threshold: float = 0.0
    task: Task = "classify"


def judge(output: Numbers, rule: Rule) -> Judgement:
    """Judge one answer by the output its manifest names.

    Args:
        output: any shape [..., classes]. Several rows are as sure as their least
            sure one, and have no label.
        rule: how to read it.

    Returns:
        The judgement. An output that is NaN, infinite or empty is hard with
        confidence 0, and so is a detection in which nothing was found.
    """
    if rule.task == "detect" and not np.any(output):
        # Detectors pad with zeros: all zeros is what "nothing there" looks like.
        return Judgement(None, 0.0, hard=True, why="nothing was detected")
    try:
        rows = as_rows(output)
    except (NotANumber, NoClasses) as error:
        return Judgement(None, 0.0, hard=True, why=str(error))
    if rule.score == "value":
        # The first item of all, whatever the shape: it names no class.
        rows = rows[:1, :1]
    each = score_rows(rows, rule.score, rule.activation, rule.temperature)
    sure = float(each[0] if len(each) == 1 else each.min())
    one_answer = len(rows) == 1 and rule.score != "value"
    label = int(rows[0].argmax()) if one_answer else None
    if sure < rule.threshold:
        why = f"confidence {sure:.3f} is under the threshold {rule.threshold:.3f}"
        return Judgement(label, sure, hard=True, why=why)
    return Judgement(label, sure, hard=False)
