"""Runs in a process of its own: one `.tflite` file over many examples, one thread.

Started by `measuring.py` with the paths of the model, of the inputs (`.npy`, [n, ...]) and
of the outputs. One example at a time, as an agent does it. A model that crashes or eats
memory does so here.
"""

from __future__ import annotations

import json
import resource
import sys
import time
from pathlib import Path
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

WARM_UP: Final = 50
TIMED: Final = 2_000


def main(arguments: list[str]) -> None:
    """Run, write the outputs, and print what it took as one line of JSON."""
    model, inputs, outputs = (Path(each) for each in arguments)
    from ai_edge_litert.interpreter import Interpreter

    examples = np.load(inputs, mmap_mode="r")
    before_kb = _resident_kb()
    interpreter = Interpreter(model_path=str(model), num_threads=1)
    (taken,), given = interpreter.get_input_details(), interpreter.get_output_details()
    _fit(interpreter, taken, examples.shape[1:])
    rows = [_run(interpreter, taken, given[0], one) for one in examples]
    np.save(outputs, np.stack(rows) if rows else np.empty((0, 0), np.float32))
    spent_ms = _timed(interpreter, taken, examples)
    sys.stdout.write(
        json.dumps(
            {
                "p50_ms": float(np.quantile(spent_ms, 0.5)),
                "p99_ms": float(np.quantile(spent_ms, 0.99)),
                "peak_memory_kb": max(0, _peak_kb() - before_kb),
                "outputs": [each["name"] for each in given],
            }
        )
    )


def _fit(interpreter: Any, taken: Any, shape: tuple[int, ...]) -> None:  # noqa: ANN401 - LiteRT has no types
    if tuple(taken["shape"]) != (1, *shape):
        interpreter.resize_tensor_input(taken["index"], (1, *shape))
    interpreter.allocate_tensors()


def _run(interpreter: Any, taken: Any, given: Any, one: NDArray[Any]) -> NDArray[Any]:  # noqa: ANN401 - LiteRT has no types
    interpreter.set_tensor(taken["index"], one[np.newaxis].astype(taken["dtype"]))
    interpreter.invoke()
    row = interpreter.get_tensor(given["index"])[0]
    scale, zero = given["quantization"]
    if not np.issubdtype(row.dtype, np.floating) and scale:
        row = (row.astype(np.float32) - zero) * scale
    result: NDArray[Any] = np.asarray(row, np.float32)
    return result


def _timed(interpreter: Any, taken: Any, examples: NDArray[Any]) -> NDArray[np.float64]:  # noqa: ANN401 - LiteRT has no types
    interpreter.set_tensor(
        taken["index"], np.asarray(examples[:1]).astype(taken["dtype"])
    )
    spent_ns = []
    for _ in range(WARM_UP + TIMED):
        began = time.perf_counter_ns()
        interpreter.invoke()
        spent_ns.append(time.perf_counter_ns() - began)
    return np.array(spent_ns[WARM_UP:]) / 1e6


def _peak_kb() -> int:
    # Not getrusage: a child's counts the process that it was forked from.
    for line in Path("/proc/self/status").read_text(encoding="ascii").splitlines():
        if line.startswith("VmHWM:"):
            return int(line.split()[1])
    return _resident_kb()


def _resident_kb() -> int:
    """What the process holds now; the peak of the import alone is not the model's."""
    pages = int(Path("/proc/self/statm").read_text(encoding="ascii").split()[1])
    return pages * resource.getpagesize() // 1024


if __name__ == "__main__":
    main(sys.argv[1:])
