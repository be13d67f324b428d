"""Which examples show a person what is hard, and what one answer hangs on."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from builder.core.quality import Answers


@dataclass(frozen=True, slots=True)
class Confused:
    """One example that the edge gets wrong and the cloud right.

    Attributes:
        row: among the examples measured.
        truth: its class.
        said: what the edge says.
        confidence: how sure of it the edge is.
        spilled: whether the threshold sends it to the cloud, so that it comes right.
        times: how often these two classes are confused so.
    """

    row: int
    truth: int
    said: int
    confidence: float
    spilled: bool
    times: int


def confused(
    edge: Answers, cloud: Answers, threshold: float, most: int = 40, each: int = 4
) -> list[Confused]:
    """The commonest confusions first, the surest examples of each first.

    Args:
        edge: of labelled examples.
        cloud: of the same.
        threshold: answers under it are spilled.
        most: how many examples.
        each: how many of one pair of classes.
    """
    sure = edge.confidence
    rows = np.flatnonzero(~edge.right & cloud.right & edge.readable)
    pairs: dict[tuple[int, int], list[int]] = {}
    for row in rows[np.argsort(-sure[rows], kind="stable")]:
        pair = (int(edge.labels[row]), int(edge.answered[row]))
        pairs.setdefault(pair, []).append(int(row))
    shown: list[Confused] = []
    for (truth, said), members in sorted(
        pairs.items(), key=lambda item: (-len(item[1]), item[0])
    ):
        for row in members[:each]:
            confidence = float(sure[row])
            shown.append(
                Confused(
                    row, truth, said, confidence, confidence < threshold, len(members)
                )
            )
    return shown[:most]


def occlusion_map(
    predict: Callable[[NDArray[Any]], NDArray[np.floating[Any]]],
    example: NDArray[Any],
    label: int,
    *,
    patch: int,
    fill: NDArray[Any],
) -> NDArray[np.float64]:
    """How much the probability of a label falls when a part of the input is covered.

    Args:
        predict: probabilities [n, classes] of inputs [n, ...].
        example: one input: [height, width, channels], [steps, channels] or [features].
        label: whose probability.
        patch: side of what is covered, in pixels or steps; rows are covered one
            feature at a time.
        fill: what it is covered with, of the example's shape.

    Returns:
        float64, the example's shape without channels; positive where the answer
        hangs on it.

    Source: Zeiler and Fergus, "Visualizing and understanding convolutional networks",
    2014.
    """
    sides = example.shape[:-1] if example.ndim > 1 else example.shape
    size = patch if example.ndim > 1 else 1
    step = max(1, size // 2)
    total, seen = np.zeros(sides), np.zeros(sides)
    places = np.stack(
        np.meshgrid(*(_starts(side, size, step) for side in sides), indexing="ij"), -1
    ).reshape(-1, len(sides))
    covered = np.repeat(example[np.newaxis], len(places), axis=0).copy()
    windows = [
        tuple(slice(int(at), int(at) + size) for at in place) for place in places
    ]
    for index, window in enumerate(windows):
        covered[index][window] = fill[window]
    before = float(predict(example[np.newaxis])[0, label])
    falls = before - predict(covered)[:, label]
    for fall, window in zip(falls, windows, strict=True):
        total[window] += fall
        seen[window] += 1
    result: NDArray[np.float64] = total / np.maximum(seen, 1)
    return result


def _starts(side: int, size: int, step: int) -> NDArray[np.int64]:
    last = max(0, side - size)
    return np.unique(np.append(np.arange(0, last + 1, step), last))
