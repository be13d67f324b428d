"""Train a student on soft and hard targets, and zero its small weights by fine-tuning.

Distillation as in Hinton, Vinyals and Dean, "Distilling the knowledge in a neural
network" (2015). Pruning by magnitude, a little more each step, as in Zhu and Gupta, "To
prune, or not to prune" (2017).
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, Final

import numpy as np
from numpy.typing import NDArray

from builder.core.soft_targets import softened

if TYPE_CHECKING:
    import tensorflow as tf
    from tensorflow import keras

# Layers with fewer weights than this are not worth a zero.
MIN_PRUNED_WEIGHTS: Final = 1_000


@dataclass(frozen=True, slots=True)
class Recipe:
    """How a student learns.

    Attributes:
        epochs: over the train part and its mirror images.
        batch: examples a step.
        peak_rate: of Adam, after half an epoch; then a cosine to zero.
        soft_share: of the loss that follows the cloud's soft targets, 0..1.
        temperature: what both models' logits are softened by.
        mirror: whether pictures are shown from left to right too.
    """

    epochs: int = 6
    batch: int = 128
    peak_rate: float = 3e-3
    soft_share: float = 0.8
    temperature: float = 4.0
    mirror: bool = False


@dataclass(frozen=True, slots=True, eq=False)
class Lessons:
    """What a student learns from.

    Attributes:
        batch_of: gives the models' inputs of these rows.
        hard: float32 [n, classes], one-hot.
        soft: float32 [n, classes], the cloud's probabilities, softened.
    """

    batch_of: Callable[[NDArray[np.int64]], NDArray[Any]]
    hard: NDArray[np.float32]
    soft: NDArray[np.float32]


def lessons(
    batch_of: Callable[[NDArray[np.int64]], NDArray[Any]],
    labels: NDArray[np.int64],
    classes: int,
    cloud_logits: NDArray[np.float32] | None,
    recipe: Recipe,
) -> Lessons:
    """Targets for each example; without a cloud model the hard ones serve as both."""
    hard = np.eye(classes, dtype=np.float32)[labels]
    if cloud_logits is None:
        return Lessons(batch_of, hard, hard)
    return Lessons(batch_of, hard, softened(cloud_logits, recipe.temperature))


def train(
    model: keras.Model,
    learnt: Lessons,
    recipe: Recipe,
    seed: int,
    told: Callable[[int, int, float], None],
    *,
    pruned: float = 0.0,
) -> None:
    """Train `model` in place.

    Args:
        model: gives logits.
        learnt: what from.
        recipe: how.
        seed: of the order of examples.
        told: called with steps done, all steps, and the mean loss since last time.
        pruned: the share of weights that are zero at the end. They become so over the
            first half of the steps; what is left learns to do without them.
    """
    import tensorflow as tf
    from tensorflow import keras

    n = len(learnt.hard)
    batch = min(recipe.batch, n)
    per_epoch = n // batch
    steps = per_epoch * recipe.epochs
    warm = per_epoch // 2
    optimizer = keras.optimizers.Adam(
        keras.optimizers.schedules.CosineDecay(
            initial_learning_rate=0.0,
            decay_steps=max(1, steps - warm),
            warmup_target=recipe.peak_rate,
            warmup_steps=warm,
        )
    )
    kernels = _prunable(model) if pruned else []
    masks = [tf.Variable(tf.ones_like(kernel.value)) for kernel in kernels]
    step = _step(model, optimizer, recipe, list(zip(kernels, masks, strict=True)))
    rng = np.random.default_rng(seed)
    losses: list[float] = []
    order = rng.permutation(n)
    for done in range(steps):
        if done and done % per_epoch == 0:
            order = rng.permutation(n)
        at = (done % per_epoch) * batch
        rows = order[at : at + batch]
        if kernels and done % 10 == 0 and done <= steps // 2:
            _shrink(kernels, masks, pruned * _ramp(done / max(1, steps // 2)))
        losses.append(
            float(step(learnt.batch_of(rows), learnt.hard[rows], learnt.soft[rows]))
        )
        if (done + 1) % 50 == 0 or done + 1 == steps:
            told(done + 1, steps, float(np.mean(losses)))
            losses.clear()
    if kernels:
        _shrink(kernels, masks, pruned)
        for kernel, mask in zip(kernels, masks, strict=True):
            kernel.assign(kernel.value * mask)


def without_cloud(recipe: Recipe) -> Recipe:
    """The same with nobody to learn from but the labels."""
    return replace(recipe, soft_share=0.0)


def for_pruning(recipe: Recipe, epochs: int) -> Recipe:
    """Fine-tuning: shorter, and a third as fast."""
    return replace(recipe, epochs=epochs, peak_rate=recipe.peak_rate / 3)


def _step(
    model: keras.Model,
    optimizer: keras.optimizers.Optimizer,
    recipe: Recipe,
    masked: list[tuple[Any, Any]],
) -> Callable[..., tf.Tensor]:
    import tensorflow as tf

    # Softening shrinks the gradient by about T², of which T is given back: with the
    # learning rates of Adam that is where the example's students did best.
    soft_scale = recipe.temperature

    def step(batch: tf.Tensor, hard: tf.Tensor, soft: tf.Tensor) -> tf.Tensor:
        with tf.GradientTape() as tape:
            logits = model(batch, training=True)
            loss_hard = tf.nn.softmax_cross_entropy_with_logits(hard, logits)
            loss_soft = tf.nn.softmax_cross_entropy_with_logits(
                soft, logits / recipe.temperature
            )
            share = recipe.soft_share
            loss = tf.reduce_mean(
                (1 - share) * loss_hard + share * soft_scale * loss_soft
            )
        variables = model.trainable_variables
        optimizer.apply(tape.gradient(loss, variables), variables)
        for kernel, mask in masked:
            kernel.assign(kernel.value * mask)
        return loss

    compiled: Callable[..., tf.Tensor] = tf.function(step, reduce_retracing=True)
    return compiled


def _prunable(model: keras.Model) -> list[Any]:
    """Kernels of all but the last layer that have enough weights to spare."""
    return [
        layer.kernel
        for layer in model.layers[:-1]
        if hasattr(layer, "kernel")
        and int(np.prod(layer.kernel.shape)) >= MIN_PRUNED_WEIGHTS
    ]


def _shrink(kernels: list[Any], masks: list[Any], share: float) -> None:
    for kernel, mask in zip(kernels, masks, strict=True):
        size = np.abs(np.asarray(kernel))
        mask.assign((size >= np.quantile(size, share)).astype(np.float32))


def _ramp(progress: float) -> float:
    """Much at first and less and less towards the end: 0..1."""
    return 1 - (1 - min(1.0, progress)) ** 3
