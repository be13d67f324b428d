"""Train a small cloud model, and save it where a cloud worker finds it."""

from __future__ import annotations

import json
import shutil
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from builder.core.splits import PARTS

if TYPE_CHECKING:
    from pathlib import Path

    import tensorflow as tf
    from numpy.typing import NDArray
    from tensorflow import keras

    from builder.core.labelled import Labelled

OUTPUT = "logits"
MAX_BATCH = 64


@dataclass(frozen=True, slots=True)
class Recipe:
    """How a cloud model learns.

    Attributes:
        epochs: over the train part.
        batch: examples a step.
        peak_rate: of AdamW, falling to zero by a cosine.
        weight_decay: decoupled.
    """

    epochs: int
    batch: int
    peak_rate: float
    weight_decay: float = 4e-3


def rows_of(data: Labelled, part: str) -> NDArray[np.int64]:
    """The rows of a data set that belong to one of its parts, by the part's name."""
    if data.parts is None:
        raise ValueError(
            "the data set does not say which examples models may learn from"
        )
    return np.flatnonzero(data.parts == PARTS.index(part)).astype(np.int64)


def train(model: keras.Model, data: Labelled, recipe: Recipe) -> None:
    """Train `model`, which gives logits, in place on the train part and nothing else."""
    from tensorflow import keras

    rows = rows_of(data, "train")
    steps = max(1, len(rows) // recipe.batch) * recipe.epochs
    model.compile(
        keras.optimizers.AdamW(
            keras.optimizers.schedules.CosineDecay(recipe.peak_rate, steps),
            weight_decay=recipe.weight_decay,
        ),
        keras.losses.SparseCategoricalCrossentropy(from_logits=True),
    )
    model.fit(
        data.model_inputs(rows),
        data.labels[rows],
        epochs=recipe.epochs,
        batch_size=recipe.batch,
        verbose=2,
    )


def accuracy(model: keras.Model, data: Labelled, part: str) -> float:
    """How often the model is right on one part, 0..1."""
    rows = rows_of(data, part)
    said = model.predict(data.model_inputs(rows), batch_size=512, verbose=0)
    return float((said.argmax(axis=-1) == data.labels[rows]).mean())


def save(
    model: keras.Model, folder: Path, taken: tf.TensorSpec, sidecar: dict[str, Any]
) -> None:
    """Write a SavedModel whose one signature takes `taken` and gives `logits`.

    Args:
        model: gives logits.
        folder: of the version, replaced.
        taken: the input, named as requests name it, with a free first side.
        sidecar: what `model.json` says beside the decision and the largest batch.
    """
    import tensorflow as tf

    def serve(batch: tf.Tensor) -> dict[str, tf.Tensor]:
        return {OUTPUT: model(batch, training=False)}

    # A bare module and not model.export(): no optimizer, no second copy of the graph.
    module = tf.Module()
    module.weights = [variable.value for variable in model.variables]
    signature = tf.function(serve, input_signature=[taken])
    shutil.rmtree(folder, ignore_errors=True)
    tf.saved_model.save(module, str(folder), signatures={"serving_default": signature})
    # Of no use to a worker, and other in each run.
    (folder / "fingerprint.pb").unlink(missing_ok=True)
    content = {
        **sidecar,
        "max_batch": MAX_BATCH,
        "decision": {"output": OUTPUT, "activation": "logits"},
    }
    text = json.dumps(content, indent=2) + "\n"
    (folder / "model.json").write_text(text, encoding="utf-8")
