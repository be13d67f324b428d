"""The examples' data sets in small: what lies in the checkout, and no package."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from builder.core.labelled import Labelled, labelled
from examples.diamonds import rows
from examples.spoken import recordings


def diamonds() -> Labelled:
    """1,000 diamonds, of which a model learns here what it may not elsewhere."""
    numbers, cuts = rows.samples()
    return labelled(numbers, cuts, rows.CUTS, parts=in_turn(cuts), columns=rows.COLUMNS)


def spoken() -> Labelled:
    """The recordings of the checkout that fit."""
    series, digits = recordings.samples()
    fits = [at for at, each in enumerate(series) if len(each) <= recordings.FRAMES]
    return labelled(
        np.stack([recordings.padded(series[at]) for at in fits]),
        digits[fits],
        recordings.DIGITS,
        parts=in_turn(digits[fits]),
    )


def in_turn(labels: NDArray[np.int64]) -> NDArray[np.int64]:
    """Parts of which each has as much of every class."""
    return np.argsort(np.argsort(labels, kind="stable")) % 4
