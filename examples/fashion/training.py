"""The training loop that the cloud and the edge models share. Knows no model and no file."""

from __future__ import annotations

import time
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from examples.fashion.data import as_input

if TYPE_CHECKING:
    from collections.abc import Callable

    import tensorflow as tf
    from numpy.typing import NDArray
    from tensorflow import keras


@dataclass(frozen=True, slots=True)
class Plan:
    """How long and how fast: a linear warm-up to ``peak_rate``, then a cosine to zero."""

    epochs: int
    batch: int
    peak_rate: float
    warmup_epochs: float = 1.0

    def rate(self, images: int) -> keras.optimizers.schedules.LearningRateSchedule:
        """Return the learning rate per step for epochs of ``images`` images."""
        from tensorflow import keras

        per_epoch = images // self.batch
        warmup = round(per_epoch * self.warmup_epochs)
        return keras.optimizers.schedules.CosineDecay(
            initial_learning_rate=0.0,
            decay_steps=max(1, per_epoch * self.epochs - warmup),
            warmup_target=self.peak_rate,
            warmup_steps=warmup,
        )


def fit(
    model: keras.Model,
    optimizer: keras.optimizers.Optimizer,
    loss: Callable[[tf.Tensor, tf.Tensor], tf.Tensor],
    epoch_of: Callable[[int], tuple[NDArray[np.uint8], NDArray[np.float32]]],
    plan: Plan,
    after_epoch: Callable[[int], str],
) -> float:
    """Train ``model`` in place and print a line every hundred steps and every epoch.

    Args:
        model: maps float32 [n, 28, 28, 1] to logits [n, 10].
        optimizer: already given the plan's learning rate.
        loss: takes (targets, logits) and returns a scalar tensor.
        epoch_of: gives an epoch's images uint8 [n, 28, 28] and targets float32 [n, ...],
            already shuffled.
        plan: epochs and batch size; the remainder of an epoch is left out.
        after_epoch: called with the epoch's number; what it returns is printed.

    Returns:
        Seconds that training took.
    """
    import tensorflow as tf

    def step(images: tf.Tensor, targets: tf.Tensor) -> tf.Tensor:
        with tf.GradientTape() as tape:
            value = loss(targets, tf.cast(model(images, training=True), tf.float32))
        variables = model.trainable_variables
        optimizer.apply(tape.gradient(value, variables), variables)
        return value

    fast_step = tf.function(step, reduce_retracing=True)
    began = time.monotonic()
    for epoch in range(plan.epochs):
        images, targets = epoch_of(epoch)
        steps = len(images) // plan.batch
        values: list[float] = []
        for index in range(steps):
            rows = slice(index * plan.batch, (index + 1) * plan.batch)
            values.append(float(fast_step(as_input(images[rows]), targets[rows])))
            if (index + 1) % 100 == 0:
                spent_s = time.monotonic() - began
                print(
                    f"  epoch {epoch + 1}/{plan.epochs} step {index + 1}/{steps} "
                    f"loss {np.mean(values[-100:]):.4f} {spent_s:.0f} s",
                    flush=True,
                )
        print(
            f"epoch {epoch + 1}/{plan.epochs}: loss {np.mean(values):.4f}, "
            f"{after_epoch(epoch)}, {time.monotonic() - began:.0f} s",
            flush=True,
        )
    return time.monotonic() - began


def mirrored_and_shifted(
    images: NDArray[np.uint8], rng: np.random.Generator, pixels: int
) -> NDArray[np.uint8]:
    """Return a copy in which half the images are mirrored and each is moved a little.

    Args:
        images: uint8 [n, 28, 28].
        rng: where the chances come from.
        pixels: the furthest an image moves each way; what enters is black.
    """
    flip = rng.random(len(images)) < 0.5
    out = np.where(flip[:, np.newaxis, np.newaxis], images[:, :, ::-1], images)
    if pixels == 0:
        return out
    padded = np.pad(out, ((0, 0), (pixels, pixels), (pixels, pixels)))
    windows = np.lib.stride_tricks.sliding_window_view(padded, images.shape[1:], (1, 2))
    down, right = rng.integers(0, 2 * pixels + 1, (2, len(images)))
    moved: NDArray[np.uint8] = windows[np.arange(len(images)), down, right]
    return moved


def logits_of(
    model: Callable[[NDArray[np.float32]], tf.Tensor],
    images: NDArray[np.uint8],
    batch: int = 500,
) -> NDArray[np.float32]:
    """Run a Keras or TensorFlow ``model`` over uint8 [n, 28, 28].

    Returns:
        float32 [n, 10].
    """
    import tensorflow as tf

    run = tf.function(model)
    parts = [
        np.asarray(run(as_input(images[start : start + batch])), dtype=np.float32)
        for start in range(0, len(images), batch)
    ]
    return np.concatenate(parts)


def accuracy(logits: NDArray[np.float32], labels: NDArray[np.uint8]) -> float:
    """Return the share of rows of ``logits`` [n, 10] whose largest is at ``labels`` [n]."""
    return float(np.mean(np.argmax(logits, axis=-1) == labels))
