"""Quantise a `.tflite` file that is float: for people who have no other model."""

from __future__ import annotations

from importlib.util import find_spec
from pathlib import Path
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from builder.core.candidates import Quantization
from builder.core.refusal import BuildRefused

# What `ai-edge-quantizer` can make of a file; float16 it leaves to the converter.
REQUANTIZED: Final[tuple[Quantization, ...]] = ("dynamic", "int8")
# These stay float: inputs and outputs so that agents need not know, pooling and dense
# layers as in `conversion.py`, so that logits do not tie.
_FLOAT: Final = ("INPUT", "OUTPUT", "MEAN", "FULLY_CONNECTED")


def installed() -> bool:
    """Whether `ai-edge-quantizer` is there; it is an extra."""
    return find_spec("ai_edge_quantizer") is not None


def requantized(
    model: Path,
    quantization: Quantization,
    representative: NDArray[Any],
    input_name: str,
) -> bytes:
    """Quantise a float `.tflite` file.

    Args:
        model: with one signature.
        quantization: one of `REQUANTIZED`.
        representative: [n, ...], from which int8 ranges are learnt.
        input_name: of the signature's one input.

    Raises:
        BuildRefused: the quantiser cannot.
    """
    from ai_edge_quantizer import quantizer, recipe

    try:
        made = quantizer.Quantizer(str(model))
        if quantization == "dynamic":
            made.load_quantization_recipe(recipe.dynamic_wi8_afp32())
            return bytes(made.quantize().quantized_model)
        rules = recipe.static_wi8_ai8()
        left = {**rules[0], "algorithm_key": "no_quantize"}
        made.load_quantization_recipe(
            [*rules, *({**left, "operation": operator} for operator in _FLOAT)]
        )
        samples = [{input_name: one[np.newaxis]} for one in representative]
        ranges = made.calibrate({_signature(model): samples})
        return bytes(made.quantize(ranges).quantized_model)
    except (ValueError, RuntimeError, TypeError, KeyError) as error:
        first = str(error).strip().partition("\n")[0]
        raise BuildRefused(
            f"{model.name} cannot be quantised ({quantization}): {first}"
        ) from error


def is_float(model: Path) -> bool:
    """Whether nothing in a file is quantised yet."""
    from ai_edge_litert.interpreter import Interpreter

    tensors = Interpreter(model_path=str(model)).get_tensor_details()
    return all(each["dtype"] not in (np.int8, np.uint8, np.float16) for each in tensors)


def _signature(model: Path) -> str:
    from ai_edge_litert.interpreter import Interpreter

    names = list(Interpreter(model_path=str(model)).get_signature_list())
    if len(names) != 1:
        raise BuildRefused(f"{model.name} has {len(names)} signatures; one is needed")
    return str(names[0])
