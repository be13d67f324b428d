"""TFLite models, run by LiteRT. The only user of the interpreter, one call at a time.

A caller speaks in names and real numbers: quantised tensors are quantised and
dequantised here, dynamic sides are resized here, and what the interpreter would do
silently wrong is an error here. Nothing returned points into the interpreter.
"""

from __future__ import annotations

import asyncio
import re
import threading
from collections.abc import Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from statistics import median
from typing import Any, Final, Self

import numpy as np

from edge_agent.core.answers import Array
from lifecycle.clock import Clock, SystemClock

Shape = tuple[int, ...]

_DEFAULT_SIGNATURE: Final = "serving_default"
_KEEPS_STATE: Final = "ASSIGN_VARIABLE"
_UNRESOLVED: Final = (
    re.compile(r"unresolved custom op: ([^\s.]+)"),
    re.compile(r"Node number \d+ \((Flex\w+)\) failed"),
    re.compile(r"builtin opcode '(\w+' version '\w+)'"),
    re.compile(r"Node number \d+ \((\w+)\) failed"),
)
_WARM_UP_RUNS: Final = 1
_MEASURED_RUNS: Final = 5
_EWMA_WEIGHT: Final = 0.1
_EXACT_IN_FLOAT32: Final = 2**24


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


# A quick model's queue is short in time, and a device that retries has a way to go.
LEAST_RETRY_S: Final = 0.1


class BadInput(ValueError):
    """The inputs are not those the model takes; says which and what it wants."""


class RunnerFull(RuntimeError):
    """As many requests wait for the model as may.

    Attributes:
        retry_after_s: how long those that wait will take.
    """

    def __init__(self, message: str, *, retry_after_s: float) -> None:
        super().__init__(message)
        self.retry_after_s = retry_after_s


class RunnerClosed(RuntimeError):
    """The model was taken out of service; ask the one that replaced it."""


@dataclass(frozen=True, slots=True)
class TensorSpec:
    """One input or output as the model holds it.

    Attributes:
        dtype: as stored. Arrays of exactly this dtype are taken as they are.
        shape: its sides, -1 where any length will do.
        scale: of a quantised tensor, `real = (stored - zero_point) * scale`; else
            None. Any other dtype given to a quantised input counts as real
            numbers, and a quantised output comes back as float32.
        zero_point: see `scale`.
    """

    dtype: np.dtype[Any]
    shape: Shape
    scale: float | None = None
    zero_point: int = 0


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
            raise _unsupported(path.name, error) from error
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
        fitted = [_fit(port, inputs[port.name]) for port in self._in]
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
            port.name: _real(port.spec, array)
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


class ModelRunner:
    """A model in service: measures itself, never runs twice at once, refuses when full.

    A model faster than `inline_below_ms` answers on the event loop, since a thread
    would cost more than it saves; a slower one has a thread of its own.
    """

    def __init__(
        self,
        model: LiteRtModel,
        *,
        queue_limit: int = 64,
        inline_below_ms: float = 1.0,
        clock: Clock | None = None,
    ) -> None:
        self._model: LiteRtModel | None = model
        self.inputs = model.inputs
        self.outputs = model.outputs
        self._queue_limit = queue_limit
        self._inline_below_ms = inline_below_ms
        self._clock = clock or SystemClock()
        self._run_ms: float | None = None
        self._pending = 0
        self._lock = threading.Lock()
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="litert")

    @classmethod
    async def open(
        cls,
        path: Path,
        *,
        threads: int = 1,
        queue_limit: int = 64,
        inline_below_ms: float = 1.0,
        clock: Clock | None = None,
    ) -> Self:
        """Load and measure a model without holding up the event loop.

        Raises:
            ModelUnsupported: it cannot be loaded, or not even run on zeros.
        """

        def load() -> Any:  # noqa: ANN401 - mypy has no Self in a nested function
            runner = cls(
                LiteRtModel.load(path, threads=threads),
                queue_limit=queue_limit,
                inline_below_ms=inline_below_ms,
                clock=clock,
            )
            runner.measure()
            return runner

        return await asyncio.to_thread(load)

    @property
    def predicted_ms(self) -> float:
        """How long an answer asked for now would take, its queue included.

        A moving average of the runs so far; 0 before the first.
        """
        return (self._run_ms or 0.0) * (1 + self._pending)

    @property
    def runs_inline(self) -> bool:
        """Whether the next answer comes from the event loop itself."""
        return (
            self._pending == 0
            and self._run_ms is not None
            and self._run_ms < self._inline_below_ms
        )

    def measure(self) -> float:
        """Warm the model up and take the median of a few runs on zeros, in ms.

        Blocks, and must not overlap `infer`.

        Raises:
            ModelUnsupported: it cannot run on zeros.
        """
        model = self._in_service()
        example = model.example()
        try:
            for _ in range(_WARM_UP_RUNS):
                model.run(example)
            taken = [self._timed(model, example)[1] for _ in range(_MEASURED_RUNS)]
        except (RunFailed, BadInput) as error:
            raise _unsupported("the model", error) from error
        self._run_ms = median(taken)
        return self._run_ms

    async def infer(self, inputs: Mapping[str, Array]) -> dict[str, Array]:
        """Answer one set of inputs; see `LiteRtModel.run`.

        Raises:
            RunnerFull: `queue_limit` requests are held already.
            RunnerClosed: it was closed.
            BadInput: as `LiteRtModel.run`.
            RunFailed: as `LiteRtModel.run`.
        """
        model = self._in_service()
        if self.runs_inline:
            return self._run(model, inputs)
        with self._lock:
            if self._pending >= self._queue_limit:
                raise RunnerFull(
                    f"{self._pending} requests wait for the edge model, which is its "
                    "limit; send again later",
                    retry_after_s=max(LEAST_RETRY_S, self.predicted_ms / 1000.0),
                )
            self._pending += 1
        future = self._thread.submit(self._run, model, inputs)
        # Counted down by the thread itself: a caller that was cancelled leaves a run
        # behind, and nothing may use the interpreter until that has ended.
        future.add_done_callback(self._one_done)
        return await asyncio.wrap_future(future)

    async def close(self) -> None:
        """Take no more requests, answer those that wait, and let the model go."""
        self._model = None
        await asyncio.to_thread(self._thread.shutdown, wait=True)

    def _in_service(self) -> LiteRtModel:
        if self._model is None:
            raise RunnerClosed("the model was taken out of service")
        return self._model

    def _run(self, model: LiteRtModel, inputs: Mapping[str, Array]) -> dict[str, Array]:
        outputs, taken_ms = self._timed(model, inputs)
        if self._run_ms is None:
            self._run_ms = taken_ms
        else:
            self._run_ms += _EWMA_WEIGHT * (taken_ms - self._run_ms)
        return outputs

    def _timed(
        self, model: LiteRtModel, inputs: Mapping[str, Array]
    ) -> tuple[dict[str, Array], float]:
        started_s = self._clock.monotonic()
        outputs = model.run(inputs)
        return outputs, (self._clock.monotonic() - started_s) * 1000

    def _one_done(self, _: Future[dict[str, Array]]) -> None:
        with self._lock:
            self._pending -= 1


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


def _unsupported(where: str, error: Exception) -> ModelUnsupported:
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


def _fit(port: _Port, value: Array) -> Array:
    """An input as the interpreter takes it."""
    spec = port.spec
    if value.shape != spec.shape:
        _check_shape(port, value.shape)
    if value.dtype == spec.dtype:
        if spec.dtype.kind == "f":
            _check_finite(port, value)
        return value
    if value.dtype.kind not in "fiub":
        raise BadInput(f"input {port.name!r} is of {value.dtype}, not of numbers")
    if spec.scale is not None:
        return _quantised(port, value, spec.scale)
    if spec.dtype.kind == "f":
        return _as_float(port, value)
    return _as_whole(port, value)


def _check_shape(port: _Port, shape: Shape) -> None:
    wanted = port.spec.shape
    fits = len(shape) == len(wanted) and all(
        side == want or (want == -1 and side > 0)
        for side, want in zip(shape, wanted, strict=True)
    )
    if not fits:
        shown = [side if side >= 0 else "any" for side in wanted]
        raise BadInput(
            f"input {port.name!r} has shape {list(shape)}, the model takes "
            f"[{', '.join(map(str, shown))}]"
        )


def _check_finite(port: _Port, value: Array) -> None:
    finite = np.isfinite(value)
    if not finite.all():
        bad = value.size - int(finite.sum())
        raise BadInput(
            f"input {port.name!r} holds NaN or infinity in {bad} of {value.size} items"
        )


def _quantised(port: _Port, value: Array, scale: float) -> Array:
    spec = port.spec
    _check_finite(port, value)
    bounds = np.iinfo(spec.dtype)
    stored = np.rint(value.astype(np.float64) / scale) + spec.zero_point
    clipped: Array = np.clip(stored, bounds.min, bounds.max).astype(spec.dtype)
    return clipped


def _as_float(port: _Port, value: Array) -> Array:
    if value.dtype.kind in "iu" and value.dtype.itemsize > 2 and value.size:
        most = max(abs(int(value.min())), abs(int(value.max())))
        if most > _EXACT_IN_FLOAT32 and port.spec.dtype.itemsize < 8:
            raise BadInput(
                f"input {port.name!r} holds {most}, which {port.spec.dtype} cannot "
                "hold exactly"
            )
    with np.errstate(over="ignore"):
        cast = value.astype(port.spec.dtype)
    _check_finite(port, cast)
    return cast


def _as_whole(port: _Port, value: Array) -> Array:
    dtype = port.spec.dtype
    if dtype.kind == "b" or value.dtype.kind not in "iu":
        raise BadInput(
            f"input {port.name!r} is of {value.dtype}, the model takes {dtype}"
        )
    bounds = np.iinfo(dtype)
    if value.size and not (
        bounds.min <= int(value.min()) and int(value.max()) <= bounds.max
    ):
        raise BadInput(f"input {port.name!r} holds numbers beyond {dtype}")
    return value.astype(dtype)


def _real(spec: TensorSpec, stored: Array) -> Array:
    if spec.scale is None:
        return stored
    shifted = np.asarray(stored, np.float32) - np.float32(spec.zero_point)
    return shifted * np.float32(spec.scale)


def _one_line(error: BaseException) -> str:
    return " ".join((str(error) or type(error).__name__).split())[:300]
