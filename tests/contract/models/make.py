"""Make the tiny models of tests/contract/test_runtime.py; needs the cloud extra.

    python tests/contract/models/make.py

Each shows one way in which a .tflite file may be ordinary or odd. They are committed,
so that the tests need no TensorFlow; only this script does.
"""

from __future__ import annotations

import os
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")

import flatbuffers  # type: ignore[import-untyped] # it has no stubs
import numpy as np
import tensorflow as tf  # noqa: TID253 - this script is nothing without it
from ai_edge_litert import (  # noqa: TID253 - it knows the format of the files
    schema_py_generated as schema,
)

HERE = Path(__file__).parent
WEIGHTS = np.arange(12, dtype=np.float32).reshape(4, 3) / 12 - 0.4


def spec(shape: list[int | None], dtype: Any = tf.float32, name: str = "x") -> Any:
    return tf.TensorSpec(shape, dtype, name=name)


def convert(
    function: Callable[..., dict[str, Any]],
    *inputs: Any,
    tune: Callable[[Any], None] | None = None,
    holds: Any = None,
) -> bytes:
    module = tf.Module()
    module.holds = holds
    module.serve = tf.function(function, input_signature=inputs)
    with tempfile.TemporaryDirectory() as folder:
        tf.saved_model.save(module, folder, {"serving_default": module.serve})
        converter = tf.lite.TFLiteConverter.from_saved_model(folder)
        if tune is not None:
            tune(converter)
        model: bytes = converter.convert()
    return model


def dense(x: Any) -> dict[str, Any]:
    return {"logits": tf.matmul(x, WEIGHTS)}


def quantised(kind: Any) -> Callable[[Any], None]:
    def examples() -> Iterator[list[Any]]:
        draw = np.random.default_rng(0)
        for _ in range(64):
            yield [draw.uniform(-1, 1, (1, 4)).astype(np.float32)]

    def tune(converter: Any) -> None:
        converter.optimizations = [tf.lite.Optimize.DEFAULT]
        converter.representative_dataset = examples
        converter.target_spec.supported_ops = [tf.lite.OpsSet.TFLITE_BUILTINS_INT8]
        converter.inference_input_type = kind
        converter.inference_output_type = kind

    return tune


def two(a: Any, b: Any) -> dict[str, Any]:
    return {"total": a + b, "difference": a - b}


def fold(x: Any) -> dict[str, Any]:
    return {"logits": tf.reshape(tf.matmul(x, WEIGHTS), [1, -1])}


def determinant(x: Any) -> dict[str, Any]:
    return {"y": tf.linalg.det(tf.reshape(x, [1, 2, 2]))}


def allow_custom(converter: Any) -> None:
    converter.allow_custom_ops = True


def allow_flex(converter: Any) -> None:
    converter.target_spec.supported_ops = [
        tf.lite.OpsSet.TFLITE_BUILTINS,
        tf.lite.OpsSet.SELECT_TF_OPS,
    ]


def lookup(ids: Any) -> dict[str, Any]:
    return {"rows": tf.gather(tf.constant(WEIGHTS), ids)}


def inverse(x: Any) -> dict[str, Any]:
    return {"y": 1.0 / x}


def counting() -> bytes:
    """A model with a resource variable: it counts its calls."""
    count = tf.Variable(0.0)

    def tune(converter: Any) -> None:
        converter.experimental_enable_resource_variables = True

    return convert(
        lambda x: {"y": x + count.assign_add(1.0)}, spec([1]), tune=tune, holds=count
    )


def remembering() -> bytes:
    """A fused RNN, written by hand: its state lives in a variable tensor.

    y = x + state; state = y. Today's converter no longer fuses, older files have it.
    """

    def tensor(name: str, shape: list[int], buffer: int) -> Any:
        made = schema.TensorT()
        made.name, made.shape, made.buffer = name, shape, buffer
        made.type = schema.TensorType.FLOAT32
        return made

    def buffer(values: Any = None) -> Any:
        made = schema.BufferT()
        if values is not None:
            made.data = np.frombuffer(
                np.asarray(values, np.float32).tobytes(), np.uint8
            )
        return made

    state = tensor("state", [1, 1], 0)
    state.isVariable = True
    graph = schema.SubGraphT()
    graph.tensors = [
        tensor("x", [1, 1], 0),
        tensor("weights", [1, 1], 1),
        tensor("recurrent", [1, 1], 2),
        tensor("bias", [1], 3),
        state,
        tensor("y", [1, 1], 0),
    ]
    graph.inputs, graph.outputs = [0], [5]
    code = schema.OperatorCodeT()
    code.builtinCode = code.deprecatedBuiltinCode = schema.BuiltinOperator.RNN
    code.version = 1
    options = schema.RNNOptionsT()
    operator = schema.OperatorT()
    operator.opcodeIndex = 0
    operator.inputs, operator.outputs = [0, 1, 2, 3, 4], [5]
    operator.builtinOptionsType = schema.BuiltinOptions.RNNOptions
    operator.builtinOptions = options
    graph.operators = [operator]
    model = schema.ModelT()
    model.version = 3
    model.operatorCodes, model.subgraphs = [code], [graph]
    model.buffers = [buffer(), buffer([[1.0]]), buffer([[1.0]]), buffer([0.0])]
    return packed(model)


def packed(model: Any) -> bytes:
    builder = flatbuffers.Builder(1024)
    builder.Finish(model.Pack(builder), b"TFL3")
    return bytes(builder.Output())


def without_signature(model: bytes) -> bytes:
    table = schema.ModelT.InitFromPackedBuf(model, 0)
    table.signatureDefs = []
    return packed(table)


def main() -> None:
    dense_any = convert(dense, spec([None, 4]))
    models = {
        "dense": convert(dense, spec([1, 4])),
        "dense_int8": convert(dense, spec([1, 4]), tune=quantised(tf.int8)),
        "dense_uint8": convert(dense, spec([1, 4]), tune=quantised(tf.uint8)),
        "two": convert(two, spec([1, 2], name="a"), spec([1, 2], name="b")),
        "any_batch": dense_any,
        "any_shape": convert(lambda x: {"y": x * 2.0}, spec([None, None])),
        "folds_batch": convert(fold, spec([None, 4])),
        "no_signature": without_signature(dense_any),
        "custom_op": convert(determinant, spec([1, 4]), tune=allow_custom),
        "flex_op": convert(determinant, spec([1, 4]), tune=allow_flex),
        "lookup": convert(lookup, spec([1, 2], tf.int32, "ids")),
        "inverse": convert(inverse, spec([1, 2])),
        "text": convert(lambda x: {"y": tf.reshape(x, [1, 1])}, spec([1], tf.string)),
        "counting": counting(),
        "remembering": remembering(),
    }
    for name, model in models.items():
        (HERE / f"{name}.tflite").write_bytes(model)
        print(f"{name}.tflite {len(model)} bytes")  # noqa: T201 - says what it made


if __name__ == "__main__":
    main()
