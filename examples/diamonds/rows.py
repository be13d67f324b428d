"""Diamonds as rows of nine numbers, and the grade of the cut as their class.

The data set is the one that ggplot2 made known: 53,940 round-cut diamonds of about
2008. It ships in the wheel of plotnine, under the MIT licence.
"""

from __future__ import annotations

import csv
from pathlib import Path
from typing import TYPE_CHECKING, Final

import numpy as np

from builder.core.labelled import Labelled, labelled
from examples.packaged import packaged_file

if TYPE_CHECKING:
    from collections.abc import Mapping

    from numpy.typing import NDArray

PACKAGE: Final = "plotnine"
FILE: Final = "data/diamonds.csv"

COLUMNS: Final = (
    *("carat", "color", "clarity", "depth", "table", "price"),
    *("x", "y", "z"),
)
CUTS: Final = ("Fair", "Good", "Very Good", "Premium", "Ideal")
# Grades are numbers in a row: their place here, best colour and worst clarity first.
COLORS: Final = "DEFGHIJ"
CLARITIES: Final = ("I1", "SI2", "SI1", "VS2", "VS1", "VVS2", "VVS1", "IF")

SPLIT_SEED: Final = 2026
# Of train, choose, calibrate and test.
SHARES: Final = (0.6, 0.1, 0.15, 0.15)


def load() -> Labelled:
    """Return every diamond once, with the part that it belongs to.

    Raises:
        MissingPackage: plotnine is not installed.
    """
    with packaged_file(PACKAGE, FILE).open(newline="", encoding="utf-8") as file:
        lines = list(csv.DictReader(file))
    numbers = np.array([row(line) for line in lines], np.float32)
    # 145 are listed twice, some in two grades: no part may hold what another does.
    _, first = np.unique(numbers, axis=0, return_index=True)
    kept = np.sort(first)
    return labelled(
        numbers[kept],
        np.array([lines[each]["cut"] for each in kept]),
        CUTS,
        parts=parts(len(kept)),
        columns=COLUMNS,
    )


def row(line: Mapping[str, str]) -> list[float]:
    """One diamond as a device sends it: nine numbers in the order of `COLUMNS`."""
    grades = {
        "color": COLORS.index(line["color"]),
        "clarity": CLARITIES.index(line["clarity"]),
    }
    return [float(grades.get(name, line[name])) for name in COLUMNS]


def parts(count: int) -> NDArray[np.int64]:
    """By chance and for good: what a model learnt from must stay in train."""
    chance = np.random.default_rng(SPLIT_SEED)
    return chance.choice(len(SHARES), count, p=SHARES).astype(np.int64)


def samples() -> tuple[NDArray[np.float32], NDArray[np.int64]]:
    """Rows of the test part that lie in the checkout, and their classes."""
    with np.load(Path(__file__).parent / "rows.npz") as file:
        return file["row"], file["cut"]
