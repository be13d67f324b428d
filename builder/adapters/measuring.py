"""What LiteRT makes of a `.tflite` file, found out in a child process."""

from __future__ import annotations

import json
import subprocess
import sys
import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from builder.core.refusal import BuildRefused

CHILD: Final = "builder.adapters.litert_child"
TIMEOUT_S: Final = 1_800.0


@dataclass(frozen=True, slots=True, eq=False)
class Run:
    """One model over the held-out examples, on this machine with one thread.

    Attributes:
        outputs: float32 [n, classes].
        p50_ms: of an invocation alone.
        p99_ms: of an invocation alone.
        peak_memory_kb: that the process grew by, model and interpreter.
    """

    outputs: NDArray[np.float32]
    p50_ms: float
    p99_ms: float
    peak_memory_kb: int


def run_tflite(model: Path, inputs: NDArray[Any], timeout_s: float = TIMEOUT_S) -> Run:
    """Run a file over inputs [n, ...] as the models take them, one at a time.

    Raises:
        BuildRefused: the model does not load, does not take the inputs, crashes, has
            several outputs, or is not done in time.
    """
    with tempfile.TemporaryDirectory() as folder:
        given, made = Path(folder) / "in.npy", Path(folder) / "out.npy"
        np.save(given, inputs)
        try:
            done = subprocess.run(  # noqa: S603 - our own interpreter and module
                [sys.executable, "-m", CHILD, str(model), str(given), str(made)],
                capture_output=True,
                check=False,
                timeout=timeout_s,
                text=True,
            )
        except subprocess.TimeoutExpired as error:
            raise BuildRefused(
                f"{model.name} is not done with {len(inputs)} examples in "
                f"{timeout_s:.0f} s"
            ) from error
        if done.returncode:
            said = done.stderr.strip().splitlines()[-1:] or ["no word"]
            raise BuildRefused(
                f"{model.name} fails in LiteRT (exit code {done.returncode}): {said[0]}"
            )
        said_of = json.loads(done.stdout)
        outputs = np.load(made)
    if len(said_of["outputs"]) != 1 or outputs.ndim != 2:
        raise BuildRefused(
            f"{model.name} gives {len(said_of['outputs'])} outputs, the first "
            f"{list(outputs.shape[1:])} for each example: one row of one number a "
            "class is needed"
        )
    return Run(outputs, said_of["p50_ms"], said_of["p99_ms"], said_of["peak_memory_kb"])


def signature_of(model: Path) -> tuple[str, str]:
    """The names of a file's one input and one output, as an agent will call them.

    Raises:
        BuildRefused: there are several, or the file is no model.
    """
    from ai_edge_litert.interpreter import Interpreter

    try:
        interpreter = Interpreter(model_path=str(model))
    except (ValueError, RuntimeError) as error:
        raise BuildRefused(f"{model} is no .tflite model: {error}") from error
    signatures = interpreter.get_signature_list()
    if signatures:
        (first, *_) = signatures.values()
        inputs, outputs = list(first["inputs"]), list(first["outputs"])
    else:
        inputs = [each["name"] for each in interpreter.get_input_details()]
        outputs = [each["name"] for each in interpreter.get_output_details()]
    if len(inputs) != 1 or len(outputs) != 1:
        raise BuildRefused(
            f"{model} has the inputs {', '.join(inputs)} and the outputs "
            f"{', '.join(outputs)}; one of each is needed"
        )
    return inputs[0], outputs[0]


def runner_of(
    model: Path, taken: str, given: str, *, reference: bool = False
) -> Callable[[NDArray[Any]], NDArray[np.float32]]:
    """Run a file in this process: one example in, one row out.

    Args:
        model: that ran in a child process before, or is trusted.
        taken: the name of its input.
        given: the name of its output.
        reference: use LiteRT's plain kernels, which round as no processor's own do.

    Raises:
        BuildRefused: it does not load, or does not take the example.
    """
    from ai_edge_litert.interpreter import Interpreter, OpResolverType

    kernels = OpResolverType.BUILTIN_REF if reference else OpResolverType.AUTO
    interpreter = Interpreter(
        model_path=str(model), num_threads=1, experimental_op_resolver_type=kernels
    )
    interpreter.allocate_tensors()
    run = interpreter.get_signature_runner()

    def one(example: NDArray[Any]) -> NDArray[np.float32]:
        try:
            rows = run(**{taken: example[np.newaxis]})[given]
        except (ValueError, RuntimeError) as error:
            raise BuildRefused(
                f"{model.name} does not take an example of {list(example.shape)}: {error}"
            ) from error
        row: NDArray[np.float32] = np.asarray(rows[0], np.float32)
        return row

    return one
