"""Run `.onnx` models. The only user of ONNX Runtime, which is an extra."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Final

import numpy as np

from cloud_worker.adapters.runtime import Arrays, CannotServe, RunFailed, Tuning
from cloud_worker.core.spec import ANY, ModelSpec, TensorSpec

DTYPES: Final = {
    "tensor(bool)": "bool",
    "tensor(int8)": "int8",
    "tensor(uint8)": "uint8",
    "tensor(int16)": "int16",
    "tensor(uint16)": "uint16",
    "tensor(int32)": "int32",
    "tensor(uint32)": "uint32",
    "tensor(int64)": "int64",
    "tensor(uint64)": "uint64",
    "tensor(float16)": "float16",
    "tensor(float)": "float32",
    "tensor(double)": "float64",
}
ON_PROCESSOR: Final = "CPUExecutionProvider"
# First in the list of every wheel, though it is no accelerator of this machine.
ELSEWHERE: Final = "AzureExecutionProvider"
_ERRORS_ONLY: Final = 3


class OnnxRunner:
    """One loaded `.onnx`.

    Args:
        path: the file.
        tuning: its thread counts.

    Raises:
        CannotServe: ONNX Runtime is not installed, or cannot load the model.
    """

    def __init__(self, path: Path, tuning: Tuning) -> None:
        runtime = _runtime()
        options = runtime.SessionOptions()
        options.intra_op_num_threads = tuning.intra_threads
        options.inter_op_num_threads = tuning.inter_threads
        options.log_severity_level = _ERRORS_ONLY
        providers = [
            each for each in runtime.get_available_providers() if each != ELSEWHERE
        ]
        try:
            self._session = runtime.InferenceSession(
                str(path), options, providers=providers
            )
        except Exception as error:
            # Its errors are classes of a C++ module without a common one.
            raise CannotServe(
                f"ONNX Runtime cannot run {path.name}: {_one_line(error)}"
            ) from error
        inputs = tuple(_spec(each, path) for each in self._session.get_inputs())
        outputs = tuple(_spec(each, path) for each in self._session.get_outputs())
        if not inputs:
            raise CannotServe(f"{path.name} takes no inputs")
        self._spec = ModelSpec(
            inputs=inputs,
            outputs=outputs,
            batched=all(
                each.shape is not None and each.shape[:1] == (ANY,)
                for each in (*inputs, *outputs)
            ),
        )
        self._names = [each.name for each in outputs]
        first: str = self._session.get_providers()[0]
        self._accelerated = first != ON_PROCESSOR

    @property
    def spec(self) -> ModelSpec:
        """Inputs, outputs, and whether rows may be stacked."""
        return self._spec

    @property
    def wants_padding(self) -> bool:
        """Only on an accelerator, whose kernels are tuned for each shape anew."""
        return self._accelerated

    @property
    def concurrent(self) -> bool:
        """Yes: a session has no state."""
        return True

    def run(self, inputs: Arrays) -> Arrays:
        """Call the model once with exactly these arrays.

        Raises:
            RunFailed: ONNX Runtime refused the shapes or failed in an operator.
        """
        try:
            values = self._session.run(self._names, inputs)
        except Exception as error:
            raise RunFailed(_one_line(error)) from error
        return {
            name: np.asarray(value)
            for name, value in zip(self._names, values, strict=True)
        }


def _runtime() -> Any:  # noqa: ANN401 - an extra, which may not be there
    try:
        import onnxruntime
    except ImportError as error:
        raise CannotServe(
            "ONNX Runtime is not installed: pip install 'overspill[onnx]'"
        ) from error
    return onnxruntime


def _spec(value: Any, path: Path) -> TensorSpec:  # noqa: ANN401 - untyped library
    if value.type not in DTYPES:
        raise CannotServe(
            f"{path.name}: {value.name!r} is {value.type}, which does not travel: use "
            f"one of {', '.join(DTYPES)}"
        )
    # A side may have a name instead of a length; the rank is always known.
    shape = tuple(side if isinstance(side, int) else ANY for side in value.shape)
    return TensorSpec(value.name, DTYPES[value.type], shape)


def _one_line(error: BaseException) -> str:
    return (str(error) or type(error).__name__).strip().splitlines()[0][:300]
