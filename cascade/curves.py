"""Accuracy against the share spilled: what a cascade buys, and what it could buy.

The accuracy-rejection curve of Chow (1970), with the rejected answered by the cloud
in place of nobody. Beside it stand spilling at random, which any score must beat, and
an oracle that spills exactly where the cloud is right and the edge is not.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, TypeAlias

import numpy as np
from numpy.typing import NDArray

Floats: TypeAlias = NDArray[np.float64]
Flags: TypeAlias = NDArray[np.bool_]


@dataclass(frozen=True, slots=True, eq=False)
class Curve:
    """Points of one curve, from nothing spilled to everything.

    Attributes:
        spilled: float64 [points], the share spilled, 0..1, rising.
        accuracy: float64 [points], of the cascade as a whole, 0..1.
        threshold: float64 [points], answers under it are spilled; NaN where no
            threshold gives the point.
    """

    spilled: Floats
    accuracy: Floats
    threshold: Floats

    def accuracy_at(self, spilled: float) -> float:
        """The accuracy at a share spilled, between points along a straight line.

        Args:
            spilled: 0..1.
        """
        return float(np.interp(spilled, self.spilled, self.accuracy))


def threshold_curve(
    confidence: NDArray[np.floating[Any]], edge_right: Flags, cloud_right: Flags
) -> Curve:
    """The curve of every threshold: the least sure are spilled first.

    Equal confidences spill together, as they do under any threshold, so coarse
    scores give few points.

    Args:
        confidence: [n], of the edge's answers, no NaN; -inf where one is unusable.
        edge_right: [n], whether the edge's answer is right.
        cloud_right: [n], whether the cloud's is.

    Raises:
        ValueError: the lengths differ, there is nothing, or a confidence is NaN.
    """
    sure = np.asarray(confidence, np.float64)
    _check(sure, edge_right, cloud_right)
    if np.isnan(sure).any():
        raise ValueError("a confidence is NaN; judge such answers hard (0) first")
    order = np.argsort(sure, kind="stable")
    ordered = sure[order]
    accuracy = _spilled_in(order, edge_right, cloud_right)
    # Where the next confidence is another, a threshold can fall between the two.
    apart = np.flatnonzero(ordered[1:] > ordered[:-1]) + 1
    ends = np.concatenate(([0], apart, [len(sure)]))
    threshold = np.append(ordered, np.inf)[ends]
    return Curve(ends / len(sure), accuracy[ends], threshold)


def random_curve(edge_right: Flags, cloud_right: Flags) -> Curve:
    """What spilling at random gives on average: a straight line.

    Args:
        edge_right: [n], whether the edge's answer is right.
        cloud_right: [n], whether the cloud's is.

    Raises:
        ValueError: the lengths differ or there is nothing.
    """
    _check(edge_right, edge_right, cloud_right)
    ends = np.array([edge_right.mean(), cloud_right.mean()], np.float64)
    return Curve(np.array([0.0, 1.0]), ends, np.full(2, np.nan))


def oracle_curve(edge_right: Flags, cloud_right: Flags) -> Curve:
    """The best any spilling could do, knowing who is right.

    Args:
        edge_right: [n], whether the edge's answer is right.
        cloud_right: [n], whether the cloud's is.

    Raises:
        ValueError: the lengths differ or there is nothing.
    """
    _check(edge_right, edge_right, cloud_right)
    gain = cloud_right.astype(np.int8) - edge_right.astype(np.int8)
    order = np.argsort(-gain, kind="stable")
    accuracy = _spilled_in(order, edge_right, cloud_right)
    share = np.arange(len(accuracy)) / len(order)
    return Curve(share, accuracy, np.full(len(accuracy), np.nan))


def _spilled_in(
    order: NDArray[np.intp], edge_right: Flags, cloud_right: Flags
) -> Floats:
    """Accuracy once the first 0, 1, … n of `order` are spilled: [n + 1]."""
    gain = cloud_right[order].astype(np.int64) - edge_right[order].astype(np.int64)
    right = int(edge_right.sum()) + np.concatenate(([0], np.cumsum(gain)))
    result: Floats = right / len(order)
    return result


def _check(confidence: NDArray[Any], edge_right: Flags, cloud_right: Flags) -> None:
    shapes = {confidence.shape, edge_right.shape, cloud_right.shape}
    if len(shapes) != 1 or confidence.ndim != 1 or not confidence.size:
        raise ValueError(
            f"a curve needs three arrays of one length, got shapes {sorted(shapes)}"
        )
    if edge_right.dtype != np.bool_ or cloud_right.dtype != np.bool_:
        raise ValueError("whether an answer is right is a bool, one an answer")
