"""Train the cloud model, save it where a worker finds it, and keep a sample of rows."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import TYPE_CHECKING, Final

import numpy as np

from examples import cloud_models
from examples.diamonds import architectures, rows
from examples.packaged import MissingPackage

if TYPE_CHECKING:
    from builder.core.labelled import Labelled

HERE: Final = Path(__file__).resolve().parent
SAMPLES: Final = 1_000
RECIPE: Final = cloud_models.Recipe(epochs=25, batch=256, peak_rate=3e-3)


def main() -> None:
    """Train, save, and say how often it is right on the test part."""
    options = _parser().parse_args()
    try:
        data = rows.load()
    except MissingPackage as error:
        raise SystemExit(f"train_cloud: {error}") from None

    import tensorflow as tf
    from tensorflow import keras

    keras.utils.set_random_seed(options.seed)
    model = architectures.build_cloud()
    print(f"{model.count_params():,} parameters")
    cloud_models.train(model, data, RECIPE)
    taken = tf.TensorSpec((None, len(rows.COLUMNS)), tf.float32, name="row")
    cloud_models.save(model, options.out, taken, {"labels": list(rows.CUTS)})
    print(
        f"saved {options.out}; right on {cloud_models.accuracy(model, data, 'test'):.2%}"
    )
    save_samples(data, HERE / "rows.npz")


def save_samples(data: Labelled, path: Path) -> None:
    """Some rows of the test part: by chance, for the data set is sorted by price."""
    chance = np.random.default_rng(rows.SPLIT_SEED)
    sample = chance.permutation(cloud_models.rows_of(data, "test"))[:SAMPLES]
    np.savez_compressed(path, row=data.model_inputs(sample), cut=data.labels[sample])


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seed", type=int, default=1, help="default %(default)s")
    parser.add_argument(
        "--out",
        type=Path,
        default=HERE / "cloud" / "diamonds" / "1",
        help="version folder to write",
    )
    return parser


if __name__ == "__main__":
    main()
