"""Run a .tflite file as an agent does: LiteRT, one thread, one image at a time."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from pathlib import Path

    from ai_edge_litert.interpreter import Interpreter
    from numpy.typing import NDArray


def logits_of(
    path: Path, inputs: NDArray[np.float32], *, reference: bool = False
) -> NDArray[np.float32]:
    """Return logits float32 [n, 10] of the model at ``path``.

    Args:
        path: a .tflite file.
        inputs: float32 [n, 28, 28, 1] in 0..1.
        reference: use LiteRT's plain kernels, which round as no processor's own do.
    """
    run = _open(path, reference=reference).get_signature_runner()
    return np.concatenate([run(image=one[np.newaxis])["logits"] for one in inputs])


def invoke_p50_ms(path: Path, one: NDArray[np.float32], runs: int = 5_000) -> float:
    """Return the median milliseconds of ``Interpreter.invoke`` on ``one`` [28, 28, 1]."""
    interpreter = _open(path)
    (details,) = interpreter.get_input_details()
    interpreter.set_tensor(details["index"], one[np.newaxis])
    spent_ns = []
    for _ in range(runs):
        began = time.perf_counter_ns()
        interpreter.invoke()
        spent_ns.append(time.perf_counter_ns() - began)
    return float(np.median(spent_ns)) / 1e6


def _open(path: Path, *, reference: bool = False) -> Interpreter:
    from ai_edge_litert.interpreter import Interpreter, OpResolverType

    kernels = OpResolverType.BUILTIN_REF if reference else OpResolverType.AUTO
    interpreter = Interpreter(
        model_path=str(path), num_threads=1, experimental_op_resolver_type=kernels
    )
    interpreter.allocate_tensors()
    return interpreter
