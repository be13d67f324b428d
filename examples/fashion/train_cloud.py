"""Train the cloud model and save it where a cloud worker finds it."""

from __future__ import annotations

import argparse
import functools
import shutil
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from examples.fashion import (
    architectures,
    cloud_model,
    data,
    manifests,
    reports,
    training,
)

if TYPE_CHECKING:
    import tensorflow as tf
    from numpy.typing import NDArray
    from tensorflow import keras


def main() -> None:
    """Train, save, measure on validation and test images, and write a report."""
    options = _parser().parse_args()
    try:
        fashion = data.load(options.data)
    except data.MissingDatasetError as error:
        raise SystemExit(f"train_cloud: {error}") from None

    from tensorflow import keras

    keras.utils.set_random_seed(options.seed)
    model, seconds = train(fashion, options)
    save(model, options.out)
    print(f"saved {options.out}")

    test = training.logits_of(
        functools.partial(model, training=False), fashion.test.images
    )
    validation = training.logits_of(
        functools.partial(model, training=False), fashion.validation.images
    )
    reports.write(
        reports.FOLDER / "train_cloud.json",
        {
            "seed": options.seed,
            "epochs": options.epochs,
            "batch": options.batch,
            "peak_rate": options.rate,
            "bfloat16": options.bfloat16,
            "parameters": model.count_params(),
            "training_s": round(seconds, 1),
            "validation_accuracy": training.accuracy(
                validation, fashion.validation.labels
            ),
            "test_accuracy": training.accuracy(test, fashion.test.labels),
        },
    )


def train(
    fashion: data.FashionMnist, options: argparse.Namespace
) -> tuple[keras.Model, float]:
    """Return the trained model, in float32, and the seconds it took."""
    import tensorflow as tf
    from tensorflow import keras

    # Only the arithmetic of training is in bfloat16; the variables stay float32.
    keras.mixed_precision.set_global_policy(
        "mixed_bfloat16" if options.bfloat16 else "float32"
    )
    model = architectures.build_cloud()
    print(f"{model.count_params():,} parameters")
    plan = training.Plan(options.epochs, options.batch, options.rate)
    optimizer = keras.optimizers.SGD(
        plan.rate(len(fashion.train.images)),
        momentum=0.9,
        nesterov=True,
        weight_decay=options.weight_decay,
    )
    optimizer.exclude_from_weight_decay(var_names=["gamma", "beta", "bias"])
    rng = np.random.default_rng(options.seed)
    one_hot = np.eye(architectures.CLASSES, dtype=np.float32)

    def epoch_of(_: int) -> tuple[NDArray[np.uint8], NDArray[np.float32]]:
        order = rng.permutation(len(fashion.train.images))
        images = training.mirrored_and_shifted(
            fashion.train.images[order], rng, options.shift
        )
        return images, one_hot[fashion.train.labels[order]]

    def loss(targets: tf.Tensor, logits: tf.Tensor) -> tf.Tensor:
        return tf.reduce_mean(tf.nn.softmax_cross_entropy_with_logits(targets, logits))

    def after_epoch(_: int) -> str:
        logits = training.logits_of(
            functools.partial(model, training=False), fashion.validation.images
        )
        share = training.accuracy(logits, fashion.validation.labels)
        save(_in_float32(model), options.out)
        return f"validation accuracy {share:.4f}"

    seconds = training.fit(model, optimizer, loss, epoch_of, plan, after_epoch)
    return _in_float32(model), seconds


def save(model: keras.Model, folder: Path) -> None:
    """Write a SavedModel whose one signature takes ``image`` and gives ``logits``."""
    import tensorflow as tf

    def serve(image: tf.Tensor) -> dict[str, tf.Tensor]:
        return {"logits": model(image, training=False)}

    image = tf.TensorSpec((None, *architectures.IMAGE_SHAPE), tf.float32, name="image")
    signature = tf.function(serve, input_signature=[image])

    # A bare module and not model.export(): no optimizer, no second copy of the graph.
    module = tf.Module()
    module.weights = [variable.value for variable in model.variables]
    shutil.rmtree(folder / "variables", ignore_errors=True)
    tf.saved_model.save(module, str(folder), signatures={"serving_default": signature})
    manifests.write(folder / "model.json", manifests.cloud_model())


def _in_float32(model: keras.Model) -> keras.Model:
    from tensorflow import keras

    keras.mixed_precision.set_global_policy("float32")
    plain = architectures.build_cloud()
    plain.set_weights(model.get_weights())
    return plain


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seed", type=int, default=1, help="default %(default)s")
    parser.add_argument("--epochs", type=int, default=10, help="default %(default)s")
    parser.add_argument("--batch", type=int, default=128, help="default %(default)s")
    parser.add_argument(
        "--rate",
        type=float,
        default=0.1,
        help="peak learning rate, default %(default)s",
    )
    parser.add_argument(
        "--weight-decay",
        type=float,
        default=5e-3,
        help="decoupled, per unit of learning rate, default %(default)s",
    )
    parser.add_argument(
        "--shift", type=int, default=1, help="pixels images move, default %(default)s"
    )
    parser.add_argument(
        "--bfloat16",
        action="store_true",
        help="train in mixed bfloat16: twice as fast on processors that have it",
    )
    parser.add_argument(
        "--data",
        type=Path,
        default=data.DEFAULT_FOLDER,
        help="idx files, default %(default)s",
    )
    parser.add_argument(
        "--out",
        type=Path,
        default=cloud_model.DEFAULT_FOLDER,
        help="version folder to write",
    )
    return parser


if __name__ == "__main__":
    main()
