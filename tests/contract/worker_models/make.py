"""Make the tiny model repository of the worker's tests; needs the cloud extra.

    python tests/contract/worker_models/make.py

`line_*` are one function, y = 2x + 1, in each format that a worker serves. `fragile`
breaks in every way there is, on inputs that ask for it. `copy` copies 1 KB. `bright`
takes an image. `total` sums rows of any length. They are committed, so that most tests need no TensorFlow; only this script and those models do.
"""

from __future__ import annotations

import os
import shutil
import tempfile
from pathlib import Path
from typing import Any

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")

import keras  # type: ignore[import-untyped] # it has no stubs
import numpy as np
import tensorflow as tf  # noqa: TID253 - this script is nothing without it

HERE = Path(__file__).parent
CRASH, REFUSE, HANG = 666.0, 13.0, 99.0


def spec(columns: int, name: str = "x") -> Any:
    return tf.TensorSpec([None, columns], tf.float32, name=name)


def save(function: Any, folder: Path, *inputs: Any) -> None:
    module = tf.Module()
    module.serve = tf.function(function, input_signature=inputs)
    shutil.rmtree(folder, ignore_errors=True)
    tf.saved_model.save(module, str(folder), {"serving_default": module.serve})
    shutil.rmtree(folder / "assets", ignore_errors=True)


def as_tflite(saved: Path) -> bytes:
    model: bytes = tf.lite.TFLiteConverter.from_saved_model(str(saved)).convert()
    return model


def line(x: Any) -> dict[str, Any]:
    return {"y": x * 2.0 + 1.0}


def fragile(x: Any) -> dict[str, Any]:
    """y = 2x, unless an item asks to crash, to be refused, or to hang."""

    def crash() -> Any:
        with tf.control_dependencies([tf.raw_ops.Abort(error_msg="asked to")]):
            return tf.constant(0.0)

    crashed = tf.cond(
        tf.reduce_any(tf.equal(x, CRASH)), crash, lambda: tf.constant(0.0)
    )
    hangs = tf.reduce_any(tf.equal(x, HANG))
    (turns,) = tf.while_loop(
        lambda turn: tf.logical_or(hangs, turn < 1.0),
        lambda turn: (turn + 1.0,),
        [tf.constant(0.0)],
    )
    fine = tf.debugging.assert_none_equal(x, REFUSE, message="13 is refused")
    with tf.control_dependencies([fine]):
        return {"y": x * 2.0 + crashed + 0.0 * turns}


def bright(image: Any) -> dict[str, Any]:
    """Two logits, bright and dark, of an image of 2 x 2 grey pixels in 0..1."""
    mean = tf.reduce_mean(image, axis=[1, 2, 3])
    return {"logits": 10.0 * tf.stack([mean - 0.5, 0.5 - mean], axis=1)}


def total(x: Any) -> dict[str, Any]:
    """The sum of a row, which zeros behind it do not change."""
    return {"y": tf.reduce_sum(x, axis=1, keepdims=True)}


def main() -> None:
    save(line, HERE / "line_saved" / "1", spec(4))
    save(fragile, HERE / "fragile" / "1", spec(4))

    (HERE / "line_lite" / "1").mkdir(parents=True, exist_ok=True)
    lite = as_tflite(HERE / "line_saved" / "1")
    (HERE / "line_lite" / "1" / "line.tflite").write_bytes(lite)

    with tempfile.TemporaryDirectory() as folder:
        save(lambda x: {"y": tf.identity(x)}, Path(folder), spec(256))
        (HERE / "copy" / "1").mkdir(parents=True, exist_ok=True)
        copy = as_tflite(Path(folder))
        (HERE / "copy" / "1" / "copy.tflite").write_bytes(copy)

    with tempfile.TemporaryDirectory() as folder:
        save(total, Path(folder), tf.TensorSpec([None, None], tf.float32, name="x"))
        (HERE / "total" / "1").mkdir(parents=True, exist_ok=True)
        lite = as_tflite(Path(folder))
        (HERE / "total" / "1" / "total.tflite").write_bytes(lite)

    with tempfile.TemporaryDirectory() as folder:
        image = tf.TensorSpec([None, 2, 2, 1], tf.float32, name="image")
        save(bright, Path(folder), image)
        (HERE / "bright" / "1").mkdir(parents=True, exist_ok=True)
        lite = as_tflite(Path(folder))
        (HERE / "bright" / "1" / "bright.tflite").write_bytes(lite)

    x = keras.Input((4,), name="x")
    dense = keras.layers.Dense(4, name="y")
    model = keras.Model(x, dense(x))
    dense.set_weights([2.0 * np.eye(4), np.ones(4)])
    (HERE / "line_keras" / "1").mkdir(parents=True, exist_ok=True)
    model.save(HERE / "line_keras" / "1" / "line.keras")


if __name__ == "__main__":
    main()
