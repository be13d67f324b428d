"""Fashion-MNIST as `overspill model build` takes it, split as both models were trained."""

from __future__ import annotations

import numpy as np

from builder.core.labelled import Labelled, labelled
from examples.fashion import data


def load() -> Labelled:
    """Return all 70,000 images with the part that each belongs to.

    Raises:
        data.MissingDatasetError: the data set is not installed.
    """
    fashion = data.load()
    splits = (fashion.train, fashion.validation, fashion.test)
    # Train, calibrate (from which the builder takes a share to choose on) and test.
    parts = [
        np.full(len(split.labels), at)
        for split, at in zip(splits, (0, 2, 3), strict=True)
    ]
    return labelled(
        np.concatenate([split.images for split in splits]),
        np.concatenate([split.labels for split in splits]),
        data.LABELS,
        parts=np.concatenate(parts).astype(np.int64),
        scale=data.SCALE,
    )
