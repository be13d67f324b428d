"""Make the tiny model repository of the worker's tests; needs the cloud extra.

    pip install onnx; pip install --no-deps tf_keras
    python tests/contract/worker_models/make.py

`line_*` are one function, y = 2x + 1, in each format that a worker serves. `fragile`
breaks in every way there is, on inputs that ask for it, and so does `ill`, which is back
sooner. `copy` copies 1 KB. `bright` takes an image. `total` sums rows of any length.
`weighing` has weights, and two of each; `counting` writes to a variable. They are committed, so that most tests need no TensorFlow; only this script and those models do.
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
import onnx
import tensorflow as tf  # noqa: TID253 - this script is nothing without it
import tf_keras  # noqa: TID253 - as above
from onnx import helper, numpy_helper

HERE = Path(__file__).parent
CRASH, REFUSE, HANG = 666.0, 13.0, 99.0
SPOIL, SHORT_ROWS, CRASH_ROWS = 55.0, 5, 7


def spec(columns: int, name: str = "x") -> Any:
    return tf.TensorSpec([None, columns], tf.float32, name=name)


def save(function: Any, folder: Path, *inputs: Any) -> None:
    module = tf.Module()
    module.serve = tf.function(function, input_signature=inputs)
    save_module(module, folder)


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


def line_onnx() -> Any:
    """y = 2x + 1 as a graph of two operators."""
    kind = onnx.TensorProto.FLOAT

    def constant(name: str, value: float) -> Any:
        return helper.make_tensor(name, kind, [1], [value])

    graph = helper.make_graph(
        [
            helper.make_node("Mul", ["x", "two"], ["doubled"]),
            helper.make_node("Add", ["doubled", "one"], ["y"]),
        ],
        "line",
        [helper.make_tensor_value_info("x", kind, ["batch", 4])],
        [helper.make_tensor_value_info("y", kind, ["batch", 4])],
        [constant("two", 2.0), constant("one", 1.0)],
    )
    return helper.make_model(
        graph, opset_imports=[helper.make_opsetid("", 13)], ir_version=8
    )


def ill_onnx() -> Any:
    """y = 2x, unless an item asks to hang or for NaN, or the rows are 5 or 7.

    Of five rows it loses one. At seven it dies: the least integer over -1 is a fault
    of the processor, on x86.
    """
    kind, whole = onnx.TensorProto.FLOAT, onnx.TensorProto.INT64

    def node(op: str, inputs: str, output: str, **attributes: Any) -> Any:
        return helper.make_node(op, inputs.split(), output.split(), **attributes)

    def truth(name: str) -> Any:
        return helper.make_tensor_value_info(name, onnx.TensorProto.BOOL, [])

    spin = helper.make_graph(
        [node("Identity", "going", "goes_on"), node("Identity", "was", "is")],
        "spin",
        [
            helper.make_tensor_value_info("turn", whole, []),
            truth("going"),
            truth("was"),
        ],
        [truth("goes_on"), truth("is")],
    )
    nodes = [
        node("Shape", "x", "shape"),
        node("Gather", "shape zero", "rows"),
        node("Equal", "rows crash_rows", "crashes"),
        node("Cast", "crashes", "crash", to=whole),
        node("Add", "crash crash", "twice"),
        node("Sub", "one twice", "sign"),
        node("Div", "least sign", "quotient"),
        node("Mul", "quotient zero", "nothing"),
        node("Equal", "x hang", "hanging"),
        node("Cast", "hanging", "hanging_at", to=kind),
        node("ReduceMax", "hanging_at", "hangs_at", keepdims=0),
        node("Cast", "hangs_at", "hangs", to=onnx.TensorProto.BOOL),
        node("Loop", "for_ever hangs hangs", "hung", body=spin),
        node("Cast", "hung", "late", to=whole),
        node("Equal", "rows short_rows", "shortens"),
        node("Cast", "shortens", "missing", to=whole),
        node("Sub", "rows missing", "kept"),
        # What must have been computed before.
        node("Add", "kept nothing", "kept_alive"),
        node("Add", "kept_alive late", "kept_in_time"),
        node("Reshape", "kept_in_time vector", "ends"),
        node("Equal", "x spoil", "spoils"),
        node("Where", "spoils nan x", "spoilt"),
        node("Slice", "spoilt starts ends", "cut"),
        node("Add", "cut cut", "y"),
    ]
    constants = {
        "zero": np.int64(0),
        "one": np.int64(1),
        "least": np.int64(-(2**63)),
        "for_ever": np.int64(2**62),
        "crash_rows": np.int64(CRASH_ROWS),
        "short_rows": np.int64(SHORT_ROWS),
        "vector": np.array([1], np.int64),
        "starts": np.array([0], np.int64),
        "hang": np.float32(HANG),
        "spoil": np.float32(SPOIL),
        "nan": np.float32("nan"),
    }
    graph = helper.make_graph(
        nodes,
        "ill",
        [helper.make_tensor_value_info("x", kind, ["batch", 4])],
        [helper.make_tensor_value_info("y", kind, ["batch", 4])],
        [
            numpy_helper.from_array(np.array(value), name)
            for name, value in constants.items()
        ],
    )
    model = helper.make_model(
        graph, opset_imports=[helper.make_opsetid("", 13)], ir_version=8
    )
    onnx.checker.check_model(model)
    return model


def as_h5(folder: Path, *layers: Any) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    model = tf_keras.Sequential([tf_keras.Input((4,), name="x"), *layers])
    model.save(folder / "line.h5")


def total(x: Any) -> dict[str, Any]:
    """The sum of a row, which zeros behind it do not change."""
    return {"y": tf.reduce_sum(x, axis=1, keepdims=True)}


class Weighing(tf.Module):  # type: ignore[misc] # TensorFlow is untyped
    """z = aW and y = b - a: neither in the order of its name."""

    def __init__(self) -> None:
        self.weights = tf.Variable([[1.0, 2.0], [3.0, 4.0]])

    @tf.function(input_signature=[spec(2, "b"), spec(2, "a")])  # type: ignore[untyped-decorator] # as above
    def serve(self, b: Any, a: Any) -> dict[str, Any]:
        return {"z": tf.matmul(a, self.weights), "y": b - a}


class Counting(tf.Module):  # type: ignore[misc] # as above
    """y = x + how often it was called."""

    def __init__(self) -> None:
        self.calls = tf.Variable(0.0)

    @tf.function(input_signature=[spec(2)])  # type: ignore[untyped-decorator] # as above
    def serve(self, x: Any) -> dict[str, Any]:
        return {"y": x + self.calls.assign_add(1.0)}


def save_module(module: Any, folder: Path) -> None:
    shutil.rmtree(folder, ignore_errors=True)
    tf.saved_model.save(module, str(folder), {"serving_default": module.serve})
    shutil.rmtree(folder / "assets", ignore_errors=True)


def main() -> None:
    save(line, HERE / "line_saved" / "1", spec(4))
    save(fragile, HERE / "fragile" / "1", spec(4))
    save_module(Weighing(), HERE / "weighing" / "1")
    save_module(Counting(), HERE / "counting" / "1")

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
    dense = keras.layers.Dense(4, name="y")
    sequential = keras.Sequential([keras.Input((4,), name="x"), dense])
    dense.set_weights([2.0 * np.eye(4), np.ones(4)])
    (HERE / "sequential" / "1").mkdir(parents=True, exist_ok=True)
    sequential.save(HERE / "sequential" / "1" / "line.keras")

    dense = tf_keras.layers.Dense(4, name="y")
    dense.build((None, 4))
    dense.set_weights([2.0 * np.eye(4), np.ones(4)])
    as_h5(HERE / "line_h5" / "1", dense)
    as_h5(HERE / "code_h5" / "1", tf_keras.layers.Lambda(lambda x: x, name="y"))

    (HERE / "line_onnx" / "1").mkdir(parents=True, exist_ok=True)
    onnx.save(line_onnx(), HERE / "line_onnx" / "1" / "line.onnx")
    (HERE / "ill" / "1").mkdir(parents=True, exist_ok=True)
    onnx.save(ill_onnx(), HERE / "ill" / "1" / "ill.onnx")


if __name__ == "__main__":
    main()
