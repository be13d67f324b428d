"""Train an edge model in float32: tiny on labels alone, small distilled from the cloud's."""

from __future__ import annotations

import argparse
import functools
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Final, get_args

import numpy as np

from examples.fashion import architectures, cloud_model, data, reports, training

if TYPE_CHECKING:
    from numpy.typing import NDArray
    from tensorflow import keras

HERE = Path(__file__).resolve().parent


@dataclass(frozen=True, slots=True)
class Recipe:
    """How one edge model is trained when no option says otherwise."""

    epochs: int
    peak_rate: float
    # The share of the loss that follows the cloud's soft targets; 0 needs no cloud model.
    soft_share: float


RECIPES: Final[dict[architectures.EdgeSize, Recipe]] = {
    "tiny": Recipe(epochs=16, peak_rate=3e-3, soft_share=0.0),
    "small": Recipe(epochs=6, peak_rate=3e-3, soft_share=0.8),
}
# Both halves of Hinton, Vinyals and Dean, "Distilling the knowledge in a neural network":
# logits are softened by T, and the soft loss is scaled up again.
SOFT_TEMPERATURE: Final = 4.0
SOFT_SCALE: Final = 4.0


def main() -> None:
    """Train, save the weights, measure, and write a report."""
    options = _parser().parse_args()
    size: architectures.EdgeSize = options.size
    recipe = RECIPES[size]
    epochs = options.epochs or recipe.epochs
    try:
        fashion = data.load(options.data)
    except data.MissingDatasetError as error:
        raise SystemExit(f"train_edge: {error}") from None

    from tensorflow import keras

    keras.utils.set_random_seed(options.seed)
    model = architectures.build_edge(size)
    print(f"{size}: {model.count_params():,} parameters")
    pool = _with_mirror_images(fashion.train, recipe, options.cloud)
    plan = training.Plan(epochs, options.batch, recipe.peak_rate, warmup_epochs=0.5)
    seconds = _train(model, pool, fashion.validation, recipe, plan, options.seed)
    out = options.out or weights_path(size)
    out.parent.mkdir(parents=True, exist_ok=True)
    model.save_weights(out)
    print(f"saved {out}")

    run = functools.partial(model, training=False)
    validation = training.logits_of(run, fashion.validation.images)
    test = training.logits_of(run, fashion.test.images)
    reports.write(
        reports.FOLDER / f"train_{size}.json",
        {
            "seed": options.seed,
            "epochs": epochs,
            "batch": options.batch,
            "peak_rate": recipe.peak_rate,
            "soft_share": recipe.soft_share,
            "parameters": model.count_params(),
            "training_s": round(seconds, 1),
            "validation_accuracy": training.accuracy(
                validation, fashion.validation.labels
            ),
            "test_accuracy": training.accuracy(test, fashion.test.labels),
        },
    )


def weights_path(size: architectures.EdgeSize) -> Path:
    """Return where the float32 weights of an edge model are kept."""
    return HERE / "weights" / f"{size}.weights.h5"


def _with_mirror_images(
    train: data.Split, recipe: Recipe, cloud_folder: Path
) -> tuple[NDArray[np.uint8], NDArray[np.float32]]:
    """Return images uint8 [2n, 28, 28] and hard and soft targets float32 [2n, 2, 10]."""
    images = np.concatenate([train.images, train.images[:, :, ::-1]])
    hard = np.eye(architectures.CLASSES, dtype=np.float32)[np.tile(train.labels, 2)]
    if recipe.soft_share == 0:
        return images, np.stack([hard, hard], axis=1)
    print(f"asking the cloud model about {len(images):,} images", flush=True)
    scaled = cloud_model.logits_of(cloud_folder, images) / SOFT_TEMPERATURE
    soft = np.exp(scaled - scaled.max(axis=-1, keepdims=True))
    soft /= soft.sum(axis=-1, keepdims=True)
    return images, np.stack([hard, soft], axis=1)


def _train(
    model: keras.Model,
    pool: tuple[NDArray[np.uint8], NDArray[np.float32]],
    validation: data.Split,
    recipe: Recipe,
    plan: training.Plan,
    seed: int,
) -> float:
    import tensorflow as tf
    from tensorflow import keras

    images, targets = pool
    rng = np.random.default_rng(seed)
    optimizer = keras.optimizers.Adam(plan.rate(len(images)))

    def epoch_of(_: int) -> tuple[NDArray[np.uint8], NDArray[np.float32]]:
        order = rng.permutation(len(images))
        return images[order], targets[order]

    def loss(both: tf.Tensor, logits: tf.Tensor) -> tf.Tensor:
        hard = tf.nn.softmax_cross_entropy_with_logits(both[:, 0], logits)
        soft = tf.nn.softmax_cross_entropy_with_logits(
            both[:, 1], logits / SOFT_TEMPERATURE
        )
        share = recipe.soft_share
        return tf.reduce_mean((1 - share) * hard + share * SOFT_SCALE * soft)

    def after_epoch(_: int) -> str:
        run = functools.partial(model, training=False)
        logits = training.logits_of(run, validation.images)
        share = training.accuracy(logits, validation.labels)
        return f"validation accuracy {share:.4f}"

    return training.fit(model, optimizer, loss, epoch_of, plan, after_epoch)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument(
        "--size", choices=get_args(architectures.EdgeSize), required=True
    )
    parser.add_argument("--seed", type=int, default=1, help="default %(default)s")
    parser.add_argument("--epochs", type=int, help="default: the recipe's")
    parser.add_argument("--batch", type=int, default=128, help="default %(default)s")
    parser.add_argument(
        "--cloud",
        type=Path,
        default=cloud_model.DEFAULT_FOLDER,
        help="the SavedModel that small learns from",
    )
    parser.add_argument(
        "--data", type=Path, default=data.DEFAULT_FOLDER, help="default %(default)s"
    )
    parser.add_argument("--out", type=Path, help="default: weights/SIZE.weights.h5")
    return parser


if __name__ == "__main__":
    main()
