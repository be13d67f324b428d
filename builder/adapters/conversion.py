"""Turn a network into a `.tflite` file, quantised or not, with float logits as output."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any, Final

import numpy as np
from numpy.typing import NDArray

from builder.adapters.models import Network
from builder.core.candidates import Quantization
from builder.core.refusal import BuildRefused

if TYPE_CHECKING:
    import tensorflow as tf

INPUT: Final = "input"
OUTPUT: Final = "logits"
_CONVOLUTIONS: Final = frozenset({"CONV_2D", "DEPTHWISE_CONV_2D"})


def to_tflite(
    network: Network,
    representative: NDArray[Any],
    quantization: Quantization,
    input_name: str = INPUT,
) -> bytes:
    """Convert a network to a flatbuffer with one signature, `input_name` to logits.

    Args:
        network: a row of logits for each example.
        representative: float32 or int32 [n, ...], from which int8 ranges are learnt;
            its shape and dtype are those of the input.
        quantization: what becomes of the weights, and with int8 of the activations.
        input_name: of the signature's one input.

    Raises:
        BuildRefused: the converter cannot.
    """
    import tensorflow as tf
    from tensorflow.lite.python.convert_phase import ConverterError

    def serve(batch: tf.Tensor) -> dict[str, tf.Tensor]:
        return {OUTPUT: network.call(batch)}

    spec = tf.TensorSpec(
        (1, *representative.shape[1:]), representative.dtype, name=input_name
    )
    signature = tf.function(serve, input_signature=[spec])
    # A bare module and no export: no optimizer, no second copy of the graph.
    module = tf.Module()
    module.held = network.held
    with tempfile.TemporaryDirectory() as folder:
        try:
            tf.saved_model.save(
                module, folder, signatures={"serving_default": signature}
            )
            converter = tf.lite.TFLiteConverter.from_saved_model(folder)
            return _converted(converter, representative, quantization, input_name)
        except (ValueError, RuntimeError, ConverterError, tf.errors.OpError) as error:
            first = str(error).strip().partition("\n")[0]
            raise BuildRefused(
                f"the model cannot be converted ({quantization}): {first}"
            ) from error


def _converted(
    converter: Any,  # noqa: ANN401 - TensorFlow has no types
    representative: NDArray[Any],
    quantization: Quantization,
    input_name: str,
) -> bytes:
    import tensorflow as tf

    if quantization != "float32":
        converter.optimizations = [tf.lite.Optimize.DEFAULT]
    if quantization == "float16":
        converter.target_spec.supported_types = [tf.float16]
    if quantization == "int8":
        return _to_int8(converter, representative, input_name)
    flatbuffer: bytes = converter.convert()
    return flatbuffer


def _to_int8(
    converter: Any,  # noqa: ANN401 - TensorFlow has no types
    representative: NDArray[Any],
    input_name: str,
) -> bytes:
    """Convolutions in int8; pooling and the last layer, a thousand weights, stay float.

    Quantised logits tie, and where confidences tie no threshold parts them; and
    rounding, which differs between processors, is averaged out instead of added.
    """
    import tensorflow as tf

    def samples() -> Iterator[dict[str, NDArray[Any]]]:
        for one in representative:
            yield {input_name: one[np.newaxis]}

    converter.optimizations = []
    plain: bytes = converter.convert()
    converter.optimizations = [tf.lite.Optimize.DEFAULT]
    converter.representative_dataset = samples
    operators, last = _operators(plain)
    # A network of nothing but dense layers keeps its last one as float, by name.
    options = tf.lite.experimental.QuantizationDebugOptions(
        **(
            {"denylisted_ops": ["MEAN", "FULLY_CONNECTED"]}
            if operators & _CONVOLUTIONS
            else {"denylisted_nodes": [last]}
        )
    )
    # The debugger is the converter's one door to choosing operators.
    debugger = tf.lite.experimental.QuantizationDebugger(
        converter=converter, debug_dataset=samples, debug_options=options
    )
    flatbuffer: bytes = debugger.get_nondebug_quantized_model()
    return flatbuffer


def _operators(flatbuffer: bytes) -> tuple[frozenset[str], str]:
    """The kinds of operators, and the name of the last dense layer's output."""
    from ai_edge_litert.interpreter import Interpreter

    interpreter = Interpreter(model_content=flatbuffer)
    details = interpreter._get_ops_details()  # noqa: SLF001 - there is no other way to ask
    names = {each["index"]: each["name"] for each in interpreter.get_tensor_details()}
    dense = [each for each in details if each["op_name"] == "FULLY_CONNECTED"]
    last = names[dense[-1]["outputs"][0]] if dense else ""
    return frozenset(each["op_name"] for each in details), last
