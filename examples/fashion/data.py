"""Read Fashion-MNIST and split it. The test set is only ever measured, never chosen on."""

from __future__ import annotations

import gzip
import struct
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Final

import numpy as np

if TYPE_CHECKING:
    from numpy.typing import NDArray

PACKAGE: Final = "dataset-fashion-mnist"
DEFAULT_FOLDER: Final = Path("/usr/share/datasets/fashion-mnist")
LABELS: Final = (
    "T-shirt/top",
    "Trouser",
    "Pullover",
    "Dress",
    "Coat",
    "Sandal",
    "Shirt",
    "Sneaker",
    "Bag",
    "Ankle boot",
)
SIDE: Final = 28
VALIDATION_IMAGES: Final = 5_000
# A constant and no option: with another split, thresholds would be chosen on
# images that one of the committed models was trained on.
SPLIT_SEED: Final = 2026
# What turns a stored byte into the models' input; the manifests carry the same number.
SCALE: Final = 1 / 255


class MissingDatasetError(Exception):
    """The data set is not installed; the message names the package that brings it."""


@dataclass(frozen=True, slots=True)
class Split:
    """Images uint8 [n, 28, 28] and their labels uint8 [n]."""

    images: NDArray[np.uint8]
    labels: NDArray[np.uint8]


@dataclass(frozen=True, slots=True)
class FashionMnist:
    """55,000 images to train, 5,000 to choose thresholds on, 10,000 to measure with."""

    train: Split
    validation: Split
    test: Split


def load(folder: Path = DEFAULT_FOLDER) -> FashionMnist:
    """Read the four idx files below ``folder`` and split them, always the same way.

    Raises:
        MissingDatasetError: a file is not there.
        ValueError: a file is there and is no idx file of bytes.
    """
    images = _read_idx(folder / "train-images-idx3-ubyte.gz")
    labels = _read_idx(folder / "train-labels-idx1-ubyte.gz")
    order = np.random.default_rng(SPLIT_SEED).permutation(len(images))
    held_out, kept = order[:VALIDATION_IMAGES], order[VALIDATION_IMAGES:]
    test = Split(
        _read_idx(folder / "t10k-images-idx3-ubyte.gz"),
        _read_idx(folder / "t10k-labels-idx1-ubyte.gz"),
    )
    return FashionMnist(
        Split(images[kept], labels[kept]),
        Split(images[held_out], labels[held_out]),
        test,
    )


def as_input(images: NDArray[np.uint8]) -> NDArray[np.float32]:
    """Turn bytes [n, 28, 28] into what every model here takes.

    Returns:
        float32 [n, 28, 28, 1] with values in 0..1.
    """
    return images[..., np.newaxis].astype(np.float32) * np.float32(SCALE)


def _read_idx(path: Path) -> NDArray[np.uint8]:
    try:
        raw = gzip.decompress(path.read_bytes())
    except FileNotFoundError:
        message = f"{path} is missing: run `apt-get install {PACKAGE}`, or pass --data"
        raise MissingDatasetError(message) from None
    # Layout: two zero bytes, 8 for unsigned bytes, the rank, then the sizes big-endian.
    zeros, kind, rank = struct.unpack_from(">HBB", raw)
    if zeros != 0 or kind != 8:
        raise ValueError(f"{path} is not an idx file of unsigned bytes")
    shape = struct.unpack_from(f">{rank}I", raw, 4)
    return np.frombuffer(raw, np.uint8, offset=4 + 4 * rank).reshape(shape)
