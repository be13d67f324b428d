"""TFLite models, run by LiteRT. The only user of the interpreter, one call at a time.

A caller speaks in names and real numbers: quantised tensors are quantised and
dequantised here, dynamic sides are resized here, and what the interpreter would do
silently wrong is an error here. Nothing returned points into the interpreter.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final, Self

import numpy as np

from edge_agent.core.answers import Array
from edge_agent.core.tensors import BadInput, Shape, TensorSpec, fit, real

_DEFAULT_SIGNATURE: Final = "serving_default"
_KEEPS_STATE: Final = "ASSIGN_VARIABLE"
_UNRESOLVED: Final = (
    re.compile(r"unresolved custom op: ([^\s.]+)"),
    re.compile(r"Node number \d+ \((Flex\w+)\) failed"),
    re.compile(r"builtin opcode '(\w+' version '\w+)'"),
    re.compile(r"Node number \d+ \((\w+)\) failed"),
)


class ModelUnsupported(RuntimeError):
    """This runtime cannot run the model; says why and names the operator, if any.

    Attributes:
        operator: what is missing, when an operator is.
    """

    def __init__(self, message: str, operator: str | None = None) -> None:
        super().__init__(message)
        self.operator = operator


class RunFailed(RuntimeError):
    """The model was loaded and could not answer this input."""


@dataclass(frozen=True, slots=True)
class _Port:
    name: str
    index: int
    spec: TensorSpec


class LiteRtModel:
    """One loaded `.tflite`. Not thread-safe; `ModelRunner` takes turns.

    Attributes:
        inputs: what the model takes, by name.
        outputs: what it gives, by name. Names are those of the default signature
            (`serving_default`, or the only one), else of the tensors.
    """

    def __init__(self, interpreter: Any, where: str) -> None:  # noqa: ANN401 - untyped library
        self._interpreter = interpreter
        self._where = where
        self._in, self._out = _ports(interpreter, where)
        self.inputs = {port.name: port.spec for port in self._in}
        self.outputs = {port.name: port.spec for port in self._out}
        self._shapes: tuple[Shape, ...] | None = None
        self._batch = 1

    @classmethod
    def load(cls, path: Path, *, threads: int = 1) -> Self:
        """Load a model and make sure that every operator of it is there.

        Args:
            path: of the `.tflite` file, which must not change while it is loaded.
            threads: how many the kernels may use.

        Raises:
            ModelUnsupported: not a model, or one this runtime cannot run.
        """
        interpreter_class = load_runtime()
        try:
            interpreter = interpreter_class(model_path=str(path), num_threads=threads)
            interpreter.allocate_tensors()
        except (ValueError, RuntimeError, TypeError) as error:
            raise unsupported(path.name, error) from error
        _refuse_state(interpreter, path.name)
        return cls(interpreter, path.name)

    def run(self, inputs: Mapping[str, Array]) -> dict[str, Array]:
        """Answer one set of inputs.

        Args:
            inputs: every input by name. Shapes must agree; numbers are cast where
                no value changes but by rounding to float32.

        Returns:
            Every output by name, as copies; quantised ones as float32.

        Raises:
            BadInput: a name, shape, dtype or value the model does not take.
            RunFailed: the interpreter failed, or folded the batch.
        """
        if inputs.keys() != self.inputs.keys():
            raise BadInput(
                f"the model takes inputs {sorted(self.inputs)}, got {sorted(inputs)}"
            )
        fitted = [fit(port.name, port.spec, inputs[port.name]) for port in self._in]
        shapes = tuple(each.shape for each in fitted)
        interpreter = self._interpreter
        if shapes != self._shapes:
            self._resize(shapes)
        try:
            # Requests come from many devices; none may see another's state.
            interpreter.reset_all_variables()
            for port, array in zip(self._in, fitted, strict=True):
                interpreter.set_tensor(port.index, array)
            interpreter.invoke()
            found = [interpreter.get_tensor(port.index) for port in self._out]
        except (RuntimeError, ValueError) as error:
            self._shapes = None
            raise RunFailed(
                f"{self._where} failed on this input: {_one_line(error)}"
            ) from error
        if self._batch > 1:
            self._check_batch(found)
        return {
            port.name: real(port.spec, array)
            for port, array in zip(self._out, found, strict=True)
        }

    def example(self) -> dict[str, Array]:
        """Inputs of zeros, one item long where any length will do."""
        return {
            name: np.zeros([abs(side) for side in spec.shape], spec.dtype)
            for name, spec in self.inputs.items()
        }

    def _resize(self, shapes: tuple[Shape, ...]) -> None:
        self._shapes = None
        try:
            for port, shape in zip(self._in, shapes, strict=True):
                # Fixed inputs too: a failed resize before may have left them odd.
                self._interpreter.resize_tensor_input(port.index, shape, strict=True)
            self._interpreter.allocate_tensors()
        except (RuntimeError, ValueError) as error:
            named = dict(zip(self.inputs, map(list, shapes), strict=True))
            raise BadInput(
                f"{self._where} does not take the shapes {named}: {_one_line(error)}"
            ) from error
        self._shapes = shapes
        self._batch = max(
            (
                shape[0]
                for port, shape in zip(self._in, shapes, strict=True)
                if len(shape) > 1 and port.spec.shape[0] == -1
            ),
            default=1,
        )

    def _check_batch(self, found: list[Array]) -> None:
        for port, array in zip(self._out, found, strict=True):
            if array.ndim > 0 and array.shape[0] != self._batch:
                raise RunFailed(
                    f"{self._where} folds the batch: output {port.name!r} has shape "
                    f"{list(array.shape)} for {self._batch} examples; send one a request"
                )


def load_runtime() -> Any:  # noqa: ANN401 - untyped library
    """Import the interpreter, which takes a fifth of a second once.

    Raises:
        ModelUnsupported: there is none; says what to install.
    """
    try:
        from ai_edge_litert.interpreter import Interpreter
    except ImportError:
        try:
            from tflite_runtime.interpreter import Interpreter
        except ImportError as error:
            raise ModelUnsupported(
                "no TFLite runtime is installed: pip install 'overspill[edge]'"
            ) from error
    return Interpreter


def unsupported(where: str, error: Exception) -> ModelUnsupported:
    """Why the interpreter cannot run a model, in a sentence."""
    text = str(error)
    for pattern in _UNRESOLVED:
        if found := pattern.search(text):
            operator = found[1].replace("'", "")
            return ModelUnsupported(
                f"{where} needs the operator {operator}, which this runtime does not "
                "have or cannot prepare; convert the model with built-in operators only",
                operator,
            )
    return ModelUnsupported(
        f"{where} cannot be run: {_one_line(error)}; is it a complete .tflite file?"
    )


def _refuse_state(interpreter: Any, where: str) -> None:  # noqa: ANN401 - untyped library
    """Refuse what a reset does not reach: resource variables that a run writes."""
    # The public interface lists no operators.
    operators = interpreter._get_ops_details()  # noqa: SLF001
    if any(each["op_name"] == _KEEPS_STATE for each in operators):
        raise ModelUnsupported(
            f"{where} needs the operator {_KEEPS_STATE}, which keeps state between "
            "requests of different devices; make the state an input and an output",
            _KEEPS_STATE,
        )


def _ports(interpreter: Any, where: str) -> tuple[list[_Port], list[_Port]]:  # noqa: ANN401
    ins = {each["index"]: each for each in interpreter.get_input_details()}
    outs = {each["index"]: each for each in interpreter.get_output_details()}
    names_in = {index: each["name"] for index, each in ins.items()}
    names_out = {index: each["name"] for index, each in outs.items()}
    signatures = interpreter.get_signature_list()
    key = _DEFAULT_SIGNATURE if _DEFAULT_SIGNATURE in signatures else None
    if key is not None or len(signatures) == 1:
        # Only asked for its names, then dropped: while a signature runner is held,
        # `invoke` refuses, and its own call costs a resize and an allocation.
        runner = interpreter.get_signature_runner(key)
        named_in = {d["index"]: name for name, d in runner.get_input_details().items()}
        named_out = {
            d["index"]: name for name, d in runner.get_output_details().items()
        }
        del runner
        # A signature of another subgraph has other tensors: keep the tensors' names.
        if named_in.keys() == ins.keys() and named_out.keys() <= outs.keys():
            names_in, names_out = named_in, named_out
    return (
        [_port(where, name, ins[index]) for index, name in names_in.items()],
        [_port(where, name, outs[index]) for index, name in names_out.items()],
    )


def _port(where: str, name: str, details: Mapping[str, Any]) -> _Port:
    dtype = np.dtype(details["dtype"])
    if dtype.kind not in "fiub":
        raise ModelUnsupported(
            f"{where} has a tensor {name!r} of {dtype.name}; only numbers are served"
        )
    sides = details["shape_signature"]
    if len(sides) != len(details["shape"]):
        sides = details["shape"]
    shape = tuple(int(side) for side in sides)
    scales = details["quantization_parameters"]["scales"]
    if dtype.kind in "iu" and len(scales) == 1 and scales[0] > 0:
        zero_point = int(details["quantization_parameters"]["zero_points"][0])
        spec = TensorSpec(dtype, shape, float(scales[0]), zero_point)
    else:
        spec = TensorSpec(dtype, shape)
    return _Port(name, int(details["index"]), spec)


def _one_line(error: BaseException) -> str:
    return " ".join((str(error) or type(error).__name__).split())[:300]
