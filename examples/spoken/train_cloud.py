"""Train the cloud model, save it where a worker finds it, and keep a few recordings."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Final

import numpy as np

from builder.core.splits import PARTS
from examples import cloud_models
from examples.packaged import MissingPackage
from examples.spoken import architectures, recordings

HERE: Final = Path(__file__).resolve().parent
SAMPLES: Final = 300
# Recordings that are too long for the edge share batches when they are filled up.
PAD: Final = {"axis": 1, "sizes": [recordings.FRAMES, 64, 96]}
RECIPE: Final = cloud_models.Recipe(
    epochs=25, batch=32, peak_rate=3e-3, weight_decay=1e-2
)


def main() -> None:
    """Train, save, and say how often it is right on the test part."""
    options = _parser().parse_args()
    try:
        data = recordings.load()
    except MissingPackage as error:
        raise SystemExit(f"train_cloud: {error}") from None

    import tensorflow as tf
    from tensorflow import keras

    keras.utils.set_random_seed(options.seed)
    model = architectures.build_cloud()
    print(f"{model.count_params():,} parameters")
    cloud_models.train(model, data, RECIPE)
    taken = tf.TensorSpec(
        (None, None, recordings.COEFFICIENTS), tf.float32, name="frames"
    )
    sidecar = {"labels": list(recordings.DIGITS), "pad": PAD}
    cloud_models.save(model, options.out, taken, sidecar)
    print(
        f"saved {options.out}; right on {cloud_models.accuracy(model, data, 'test'):.2%}"
    )
    save_samples(HERE / "recordings.npz")


def save_samples(path: Path) -> None:
    """Recordings of the test part, too long ones among them, in half precision."""
    series, digits = recordings.recordings()
    test = np.flatnonzero(recordings.parts(len(series)) == PARTS.index("test"))
    kept = np.random.default_rng(recordings.SPLIT_SEED).permutation(test)[:SAMPLES]
    np.savez_compressed(
        path,
        frames=np.concatenate([series[at] for at in kept]).astype(np.float16),
        lengths=np.array([len(series[at]) for at in kept]),
        digit=digits[kept],
    )


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seed", type=int, default=1, help="default %(default)s")
    parser.add_argument(
        "--out",
        type=Path,
        default=HERE / "cloud" / "spoken" / "1",
        help="version folder to write",
    )
    return parser


if __name__ == "__main__":
    main()
