"""Run `.tflite` models. The only user of LiteRT here; never imports TensorFlow.

A model is stacked into batches only after it has shown, on rows that differ, that it
gives each row the same alone and in company: some models fold a batch silently.
"""

from __future__ import annotations

from collections import OrderedDict
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import numpy as np
from numpy.typing import NDArray

from broker.messages import ITEM_BYTES
from cloud_worker.adapters.runtime import Arrays, CannotServe, RunFailed
from cloud_worker.core.spec import ANY, ModelSpec, TensorSpec

if TYPE_CHECKING:
    from ai_edge_litert.interpreter import Interpreter

# The seven batch sizes of 64 rows at nine lengths.
MAX_SHAPES: Final = 64
TRIAL_ROWS: Final = 2
KEEPS_STATE: Final = "VAR_HANDLE"

Shapes = tuple[tuple[int, ...], ...]


@dataclass(frozen=True, slots=True)
class _Port:
    """One input or output: its place in the interpreter and how it is quantised."""

    index: int
    dtype: np.dtype[Any]
    scale: float
    zero_point: int

    @property
    def quantised(self) -> bool:
        return self.scale != 0.0 and self.dtype.kind in "iu"

    def store(self, values: NDArray[np.generic]) -> NDArray[np.generic]:
        """Real values as the model holds them."""
        if not self.quantised:
            return values
        bounds = np.iinfo(self.dtype)
        steps = np.rint(np.asarray(values) / self.scale + self.zero_point)
        return np.clip(steps, bounds.min, bounds.max).astype(self.dtype)

    def real(self, values: NDArray[np.generic]) -> NDArray[np.generic]:
        """What the model holds as real values, float32 if it is quantised."""
        if not self.quantised:
            return values
        centred = values.astype(np.float32) - np.float32(self.zero_point)
        return centred * np.float32(self.scale)


class LiteRtRunner:
    """One loaded `.tflite`.

    Quantised tensors are float32 on the outside. An interpreter is kept for each of
    the shapes last used, since resizing one allocates anew.
    """

    def __init__(self, path: Path, *, threads: int) -> None:
        self._path = path
        self._threads = threads
        self._ready: OrderedDict[Shapes, Interpreter] = OrderedDict()
        interpreter = self._open()
        _refuse_state(interpreter, path)
        names_in, names_out = _names(interpreter)
        details_in = interpreter.get_input_details()
        details_out = interpreter.get_output_details()
        self._inputs = {
            names_in[each["index"]]: _port(each, path) for each in details_in
        }
        self._outputs = {
            names_out[each["index"]]: _port(each, path) for each in details_out
        }
        inputs = tuple(_spec(each, names_in, path) for each in details_in)
        outputs = tuple(_spec(each, names_out, path) for each in details_out)
        batched = self._stacks(inputs)
        self._spec = ModelSpec(
            inputs=_freed(inputs) if batched else inputs,
            outputs=_freed(outputs) if batched else outputs,
            batched=batched,
        )

    @property
    def spec(self) -> ModelSpec:
        """Inputs, outputs, and whether rows may be stacked."""
        return self._spec

    @property
    def wants_padding(self) -> bool:
        """Yes: each size has an interpreter of its own."""
        return True

    @property
    def concurrent(self) -> bool:
        """No: an interpreter has one set of tensors."""
        return False

    def run(self, inputs: Arrays) -> Arrays:
        """Call the model once with exactly these arrays.

        Raises:
            RunFailed: LiteRT refused the shapes or failed in an operator.
        """
        shapes = tuple(inputs[name].shape for name in self._inputs)
        try:
            interpreter = self._ready.get(shapes)
            if interpreter is None:
                interpreter = self._resized(shapes)
            else:
                self._ready.move_to_end(shapes)
                # A model that keeps state must not carry it to the next request.
                interpreter.reset_all_variables()
            for name, port in self._inputs.items():
                interpreter.set_tensor(port.index, port.store(inputs[name]))
            interpreter.invoke()
            return {
                name: port.real(interpreter.get_tensor(port.index))
                for name, port in self._outputs.items()
            }
        except (RuntimeError, ValueError) as error:
            raise RunFailed(_first_line(error)) from error

    def _open(self) -> Interpreter:
        from ai_edge_litert.interpreter import Interpreter

        try:
            interpreter = Interpreter(
                model_path=str(self._path), num_threads=self._threads or None
            )
            interpreter.allocate_tensors()
        except (RuntimeError, ValueError) as error:
            raise CannotServe(
                f"LiteRT cannot run {self._path.name}: {_first_line(error)}"
            ) from error
        return interpreter

    def _resized(self, shapes: Shapes) -> Interpreter:
        interpreter = self._open()
        held = tuple(tuple(each["shape"]) for each in interpreter.get_input_details())
        if held != shapes:
            for port, shape in zip(self._inputs.values(), shapes, strict=True):
                interpreter.resize_tensor_input(port.index, list(shape))
            interpreter.allocate_tensors()
        self._ready[shapes] = interpreter
        if len(self._ready) > MAX_SHAPES:
            self._ready.popitem(last=False)
        return interpreter

    def _stacks(self, inputs: tuple[TensorSpec, ...]) -> bool:
        """Whether each row comes out of a batch as it does alone."""
        if not all(each.shape and each.shape[0] in {1, ANY} for each in inputs):
            return False
        rng = np.random.default_rng(0)
        rows: list[Arrays] = [
            {each.name: _trial(each, rng) for each in inputs} for _ in range(TRIAL_ROWS)
        ]
        stack: Arrays = {
            each.name: np.concatenate([row[each.name] for row in rows])
            for each in inputs
        }
        try:
            apart = [self.run(row) for row in rows]
            together = self.run(stack)
        except RunFailed:
            return False
        return all(
            _rows_agree([one[name] for one in apart], both)
            for name, both in together.items()
        )


def _refuse_state(interpreter: Interpreter, path: Path) -> None:
    # There is no public way to list the operators.
    operators = interpreter._get_ops_details()  # noqa: SLF001
    if any(each["op_name"] == KEEPS_STATE for each in operators):
        raise CannotServe(
            f"{path.name} keeps state between calls (operator {KEEPS_STATE}), so one "
            "request would change the next: make the state an input and an output"
        )


def _names(interpreter: Interpreter) -> tuple[dict[int, str], dict[int, str]]:
    """Names by tensor index: those of the only signature, or the tensors' own."""
    inputs = {
        each["index"]: _plain(each["name"]) for each in interpreter.get_input_details()
    }
    outputs = {
        each["index"]: _plain(each["name"]) for each in interpreter.get_output_details()
    }
    signatures = interpreter.get_signature_list()
    if len(signatures) == 1:
        (key,) = signatures
        runner = interpreter.get_signature_runner(key)
        for name, detail in runner.get_input_details().items():
            inputs[detail["index"]] = name
        for name, detail in runner.get_output_details().items():
            outputs[detail["index"]] = name
    return inputs, outputs


def _plain(name: str) -> str:
    return name.removeprefix("serving_default_").removesuffix(":0")


def _port(detail: dict[str, Any], path: Path) -> _Port:
    dtype = np.dtype(detail["dtype"])
    if dtype.name not in ITEM_BYTES:
        raise CannotServe(
            f"{path.name}: tensor {detail['name']!r} is {dtype.name}, which is not "
            "numeric; only numeric tensors travel"
        )
    scales = detail["quantization_parameters"]["scales"]
    if len(scales) > 1:
        raise CannotServe(
            f"{path.name}: tensor {detail['name']!r} is quantised per axis; convert "
            "the model with per-tensor inputs and outputs"
        )
    scale, zero_point = detail["quantization"]
    return _Port(detail["index"], dtype, float(scale), int(zero_point))


def _spec(detail: dict[str, Any], names: dict[int, str], path: Path) -> TensorSpec:
    port = _port(detail, path)
    signature = detail["shape_signature"]
    shape = signature if len(signature) == len(detail["shape"]) else detail["shape"]
    return TensorSpec(
        name=names[detail["index"]],
        dtype="float32" if port.quantised else port.dtype.name,
        shape=tuple(int(side) for side in shape),
    )


def _freed(specs: tuple[TensorSpec, ...]) -> tuple[TensorSpec, ...]:
    return tuple(
        TensorSpec(each.name, each.dtype, (ANY, *(each.shape or ())[1:]))
        for each in specs
    )


def _trial(spec: TensorSpec, rng: np.random.Generator) -> NDArray[np.generic]:
    shape = tuple(1 if side == ANY else side for side in spec.shape or ())
    # Indices of embeddings and the like are small; so 0 and 1 suit any integer.
    values = rng.random(shape) if "float" in spec.dtype else rng.integers(0, 2, shape)
    return values.astype(spec.dtype)


def _rows_agree(
    apart: list[NDArray[np.generic]], together: NDArray[np.generic]
) -> bool:
    if any(each.shape[:1] != (1,) for each in apart):
        return False
    rows = np.concatenate(apart)
    return rows.shape == together.shape and bool(
        np.allclose(rows, together, rtol=1e-3, atol=1e-3, equal_nan=True)
    )


def _first_line(error: BaseException) -> str:
    return (str(error) or type(error).__name__).strip().splitlines()[0][:300]
