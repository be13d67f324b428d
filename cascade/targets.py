"""What an operator may ask of a cascade, and what calibration can answer.

A target speaks of requests like those calibrated on. With `confidence` c, calibrating
anew on other data of the same kind keeps the target in a share c of the tries.
"""

from __future__ import annotations

import math
import re
import sys
from dataclasses import dataclass
from typing import Any, Final, TypeAlias

import numpy as np
from numpy.typing import NDArray

from cascade.scores import UNBOUNDED, Score

# No data will ever show less.
_LEAST: Final = 1e-9

Floats: TypeAlias = NDArray[np.float64]
Flags: TypeAlias = NDArray[np.bool_]


@dataclass(frozen=True, slots=True)
class MaxSpill:
    """At most `share` of requests are spilled.

    Attributes:
        share: 0..1.
        confidence: above 0, under 1; None promises it on average only.
    """

    share: float
    confidence: float | None = 0.95

    def __post_init__(self) -> None:
        _check("the share spilled", self.share, none=True)
        _check_confidence(self.confidence)

    def describe(self) -> str:
        """The same in words, for people."""
        return f"at most {_percent(self.share)} spilled{_with(self.confidence)}"


@dataclass(frozen=True, slots=True)
class MaxExcess:
    """The cascade is wrong more often than the cloud by at most `excess` of requests.

    Attributes:
        excess: above 0, under 1; 0.02 is two points.
        confidence: above 0, under 1; None promises it on average only.
        per_class: the excess that each class may have among its own requests; None
            sets no limit for them.
    """

    excess: float
    confidence: float | None = 0.95
    per_class: float | None = None

    def __post_init__(self) -> None:
        _check("the excess error", self.excess)
        if self.per_class is not None:
            _check("the excess of a class", self.per_class)
        _check_confidence(self.confidence)

    def describe(self) -> str:
        """The same in words, for people."""
        each = "" if self.per_class is None else f", {_points(self.per_class)} a class"
        return (
            f"at most {_points(self.excess)} worse than the cloud"
            f"{each}{_with(self.confidence)}"
        )


@dataclass(frozen=True, slots=True)
class MaxError:
    """The cascade is wrong on at most `error` of requests.

    Attributes:
        error: above 0, under 1.
        confidence: above 0, under 1.
        per_class: the share that may be wrong of each class; None sets no limit.
    """

    error: float
    confidence: float = 0.95
    per_class: float | None = None

    def __post_init__(self) -> None:
        _check("the error", self.error)
        if self.per_class is not None:
            _check("the error of a class", self.per_class)
        _check_confidence(self.confidence)

    def describe(self) -> str:
        """The same in words, for people."""
        each = (
            ""
            if self.per_class is None
            else f", {_percent(self.per_class)} of each class"
        )
        return f"at most {_percent(self.error)} wrong{each}{_with(self.confidence)}"


Target: TypeAlias = MaxSpill | MaxExcess | MaxError

_AMOUNT: Final = r"([0-9]+(?:\.[0-9]+)?)\s*(?:%|percent|points?)"
_LIMIT: Final = re.compile(_AMOUNT)
_PER_CLASS: Final = re.compile(_AMOUNT + r"\s+(?:of\s+each|a|per)\s+class")
_SURELY: Final = re.compile(_AMOUNT + r"\s+confiden(?:ce|t)")


def parse_target(text: str) -> Target:
    """Read a target as a person writes it.

    What `describe` gives is read back. So are "2 points worse", "spill at most 15 %" and
    "at most 5% wrong, 8% of each class, with 99 % confidence". Without a confidence it
    is 95 %; "on average" promises none.

    Raises:
        ValueError: no such target, or one out of its range.
    """
    said = " ".join(text.lower().split())
    confidence: float | None = 0.95
    each: float | None = None
    if found := _SURELY.search(said):
        confidence, said = float(found[1]) / 100, said.replace(found[0], "")
    elif "on average" in said:
        confidence = None
    if found := _PER_CLASS.search(said):
        each, said = float(found[1]) / 100, said.replace(found[0], "")
    limits = _LIMIT.findall(said)
    kinds = [kind for kind in ("spill", "worse", "wrong") if kind in said]
    if len(limits) != 1 or len(kinds) != 1 or (kinds == ["spill"] and each):
        raise ValueError(
            "a target reads like '2 points worse', '15% spilled' or '5% wrong', each "
            f"with or without '95% confidence', got {text!r}"
        )
    limit = float(limits[0]) / 100
    match kinds[0]:
        case "spill":
            return MaxSpill(limit, confidence)
        case "worse":
            return MaxExcess(limit, confidence, each)
        case _:
            if confidence is None:
                raise ValueError("an error in all is promised with a confidence only")
            return MaxError(limit, confidence, each)


@dataclass(frozen=True, slots=True)
class Calibrated:
    """A threshold that keeps its target.

    Attributes:
        threshold: answers under it are spilled; -inf spills none but those that
            are not a number. See `manifest_threshold`.
        target: what it keeps.
        spilled: the share of the calibration data under it, 0..1.
        measured: what the target limits, as found on the calibration data.
        examples: how many were calibrated on.
    """

    threshold: float
    target: Target
    spilled: float
    measured: float
    examples: int


@dataclass(frozen=True, slots=True)
class Unsupported:
    """The data cannot support the target.

    Attributes:
        target: what was asked.
        why: for people.
        examples_needed: how many examples like these would support it; None when no
            number would, or when none is known to.
        nearest: the nearest target of its kind that these examples support, or None.
    """

    target: Target
    why: str
    examples_needed: int | None = None
    nearest: Target | None = None

    def describe(self) -> str:
        """The same in words, for people."""
        more = (
            f" About {self.examples_needed} examples would do."
            if self.examples_needed
            else ""
        )
        near = (
            f" The nearest that can be met: {self.nearest.describe()}."
            if self.nearest
            else ""
        )
        return f"{self.target.describe()}: {self.why}.{more}{near}"


@dataclass(frozen=True, slots=True, eq=False)
class Examples:
    """Held-out examples, on which neither model was trained.

    Attributes:
        confidence: [n], of the edge's answers; -inf where the answer is not a number
            or empty, which is spilled under any threshold.
        edge_right: bool [n].
        cloud_right: bool [n].
        classes: integers [n], the true class of each; needed for limits by class.

    Raises:
        ValueError: the lengths differ, there is nothing, or a confidence is NaN.
    """

    confidence: Floats
    edge_right: Flags
    cloud_right: Flags
    classes: NDArray[np.integer[Any]] | None = None

    def __post_init__(self) -> None:
        arrays: list[NDArray[Any]] = [
            self.confidence,
            self.edge_right,
            self.cloud_right,
        ]
        if self.classes is not None:
            arrays.append(self.classes)
        shapes = {each.shape for each in arrays}
        if len(shapes) != 1 or self.confidence.ndim != 1 or not self.confidence.size:
            raise ValueError(f"examples need arrays of one length, got {shapes}")
        if self.edge_right.dtype != np.bool_ or self.cloud_right.dtype != np.bool_:
            raise ValueError("whether an answer is right is a bool, one an answer")
        if np.isnan(self.confidence).any():
            raise ValueError("a confidence is NaN; give -inf for an unusable answer")

    def __len__(self) -> int:
        return len(self.confidence)


def manifest_threshold(threshold: float, score: Score) -> float:
    """A calibrated threshold as a manifest can hold it.

    Args:
        threshold: from `Calibrated`.
        score: whose it is.

    Raises:
        ValueError: it spills everything, so there is no use for an edge model.
    """
    if math.isnan(threshold) or threshold == math.inf:
        raise ValueError("a threshold that spills everything makes no bundle")
    if threshold == -math.inf:
        return -sys.float_info.max if score in UNBOUNDED else 0.0
    return threshold


def rounded_up(share: float) -> float:
    """A share with three digits, no less than it is: as `describe` shows it."""
    unit = 10.0 ** (math.floor(math.log10(share)) - 2)
    return round(math.ceil(share / unit - 1e-9) * unit, 12)


def _points(share: float) -> str:
    return f"{100 * share:.3g} {'point' if share == 0.01 else 'points'}"


def _percent(share: float) -> str:
    return f"{100 * share:.3g}%"


def _with(confidence: float | None) -> str:
    return (
        " on average"
        if confidence is None
        else f" with {100 * confidence:.4g}% confidence"
    )


def _check(what: str, value: float, *, none: bool = False) -> None:
    if not _LEAST <= value < 1 and not (none and value == 0):
        raise ValueError(f"{what} is a share of requests under 1, got {value}")


def _check_confidence(confidence: float | None) -> None:
    if confidence is not None and not 0 < confidence < 1:
        raise ValueError(f"a confidence is above 0 and under 1, got {confidence}")
