"""Run SavedModels and Keras models, new and legacy. The only user of TensorFlow here.

Runs in a model's process only, so that neither its start (seconds), its memory nor
its faults are the consumer's.
"""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Final, Protocol

from broker.messages import ITEM_BYTES
from cloud_worker.adapters.runtime import (
    Arrays,
    CannotServe,
    RunFailed,
    Runner,
    Tuning,
)
from cloud_worker.core.spec import ANY, ModelSpec, TensorSpec

SIGNATURE: Final = "serving_default"
MIXED_ON_ACCELERATOR: Final = "auto_mixed_precision"
MIXED_ON_PROCESSOR: Final = "auto_mixed_precision_onednn_bfloat16"
# Making constants of more takes long, and thrice the memory meanwhile.
MOST_FROZEN_BYTES: Final = 256 * 1024 * 1024
_WRITES: Final = ("Assign", "ResourceScatter", "ResourceApply", "ResourceCountUpTo")
_WHERE: Final = ("Graph execution error", "Detected at node", "<stack", "File ", "[[")


class _Function(Protocol):
    def __call__(self, **inputs: object) -> dict[str, Any]: ...


class TensorFlowRunner:
    """One loaded signature of a SavedModel or a Keras model."""

    def __init__(
        self, function: _Function, spec: ModelSpec, *, keep: object, tuned: bool
    ) -> None:
        self._function = function
        self._spec = spec
        self._tuned = tuned
        # The signature holds its variables only weakly.
        self._keep = keep

    @property
    def spec(self) -> ModelSpec:
        """Inputs, outputs, and whether rows may be stacked."""
        return self._spec

    @property
    def wants_padding(self) -> bool:
        """Only where each shape is tuned or compiled anew: accelerators and XLA.

        On two cores a ResNet takes 20 to 25 % longer over random batch sizes when they
        are padded, and a new size costs nothing.
        """
        return self._tuned

    @property
    def concurrent(self) -> bool:
        """Yes: a traced function has no state."""
        return True

    def run(self, inputs: Arrays) -> Arrays:
        """Call the model once with exactly these arrays.

        Raises:
            RunFailed: TensorFlow refused the shapes or failed in an operation.
        """
        import tensorflow as tf

        try:
            outputs = self._function(
                **{name: tf.constant(value) for name, value in inputs.items()}
            )
            return {name: value.numpy() for name, value in outputs.items()}
        except (tf.errors.OpError, ValueError, TypeError) as error:
            raise RunFailed(_one_line(error)) from error


def import_tensorflow(tuning: Tuning) -> None:
    """Do the long part of the first call ahead of it."""
    _tensorflow(tuning)


def start_threads(tuning: Tuning) -> None:
    """Start the threads that run operations; they take the priority of the caller."""
    _tensorflow(tuning).config.list_logical_devices()


def open_saved_model(path: Path, tuning: Tuning) -> Runner:
    """Load the serving signature of the SavedModel in the folder `path`.

    Raises:
        CannotServe: it is unreadable, has no such signature, or takes or gives
            something that is not a numeric tensor.
    """
    tf = _tensorflow(tuning)
    try:
        loaded = tf.saved_model.load(str(path))
    except Exception as error:
        # TensorFlow raises a dozen kinds for a damaged file.
        raise CannotServe(
            f"TensorFlow cannot load {path}: {_one_line(error)}"
        ) from error
    signatures = dict(loaded.signatures)
    if SIGNATURE not in signatures and len(signatures) != 1:
        raise CannotServe(
            f"{path} has signatures {sorted(signatures)}, none is {SIGNATURE!r}: "
            "save the model with that signature"
        )
    function = signatures.get(SIGNATURE) or next(iter(signatures.values()))
    inputs = function.structured_input_signature[1]
    spec = _spec(inputs, function.structured_outputs)
    run = (
        tf.function(function, jit_compile=True) if tuning.xla else _frozen(tf, function)
    )
    return TensorFlowRunner(run, spec, keep=loaded, tuned=_is_tuned(tf, tuning))


def _frozen(tf: Any, function: Any) -> _Function:  # noqa: ANN401 - as above
    """The same function with its weights as constants, where that can be done.

    TensorFlow then folds what depends on weights alone and lays them out once, not at
    each call: a ResNet takes 8 % less processor time. Sums are taken in another order,
    so the last digits may differ, as they do between two batch sizes.
    """
    if not _is_freezable(function):
        return function  # type: ignore[no-any-return]
    from tensorflow.python.framework import convert_to_constants

    try:
        frozen = convert_to_constants.convert_variables_to_constants_v2(function)
    except Exception as error:  # noqa: BLE001 - whatever it meets, the function runs
        # Into the process's output, of which the log has the end if it dies.
        print(f"weights not folded in: {_one_line(error)}", file=sys.stderr)  # noqa: T201
        return function  # type: ignore[no-any-return]
    names_in = [each.name.partition(":")[0] for each in frozen.inputs]
    wanted = function.structured_outputs
    names_out = sorted(wanted)  # as TensorFlow flattens them
    alike = [each.dtype for each in frozen.outputs] == [
        tf.as_dtype(wanted[name].dtype) for name in names_out
    ]
    if not alike or set(names_in) != set(function.structured_input_signature[1]):
        return function  # type: ignore[no-any-return]

    def call(**inputs: object) -> dict[str, Any]:
        outputs = frozen(*(inputs[name] for name in names_in))
        return dict(zip(names_out, outputs, strict=True))

    return call


def _is_freezable(function: Any) -> bool:  # noqa: ANN401 - as above
    """Whether it stands on nothing but weights, few enough, that it never writes."""
    variables = function.variables
    size_bytes = sum(each.shape.num_elements() * each.dtype.size for each in variables)
    if len(variables) != len(function.captured_inputs) or not variables:
        return False
    graph = function.graph.as_graph_def()
    nodes = [*graph.node, *(n for f in graph.library.function for n in f.node_def)]
    return size_bytes <= MOST_FROZEN_BYTES and not any(
        node.op.startswith(_WRITES) for node in nodes
    )


def open_keras(path: Path, tuning: Tuning) -> Runner:
    """Load the `.keras` file `path`.

    Raises:
        CannotServe: it is unreadable, holds code (a Lambda layer), or takes or gives
            something that is not a numeric tensor.
    """
    tf = _tensorflow(tuning)
    try:
        model = tf.keras.models.load_model(path, compile=False, safe_mode=True)
    except Exception as error:
        # Keras raises a dozen kinds for a damaged file.
        raise CannotServe(f"Keras cannot load {path}: {_one_line(error)}") from error
    return _keras_runner(tf, model, tuning)


def open_keras_h5(path: Path, tuning: Tuning) -> Runner:
    """Load the `.h5` file `path`, which Keras 2 wrote.

    Raises:
        CannotServe: `tf_keras` is not installed, or the file is unreadable, holds
            code, or takes or gives something that is not a numeric tensor.
    """
    _refuse_code(path)
    tf = _tensorflow(tuning)
    try:
        import tf_keras
    except ImportError as error:
        raise CannotServe(
            f"{path.name} needs Keras 2: pip install --no-deps tf_keras, of the version "
            "that TensorFlow has, or save the model as .keras"
        ) from error
    try:
        model = tf_keras.models.load_model(path, compile=False)
    except Exception as error:
        # As for Keras 3.
        raise CannotServe(f"Keras 2 cannot load {path}: {_one_line(error)}") from error
    return _keras_runner(tf, model, tuning)


def _refuse_code(path: Path) -> None:
    """A layer of Python code in an `.h5` would run with the worker's rights."""
    import h5py

    try:
        with h5py.File(path) as file:
            config = json.loads(file.attrs["model_config"])
    except (OSError, KeyError, ValueError) as error:
        raise CannotServe(
            f"{path.name} is no Keras model, or only its weights: {_one_line(error)}"
        ) from error
    if any(each.get("class_name") == "Lambda" for each in _maps(config)):
        raise CannotServe(
            f"{path.name} has a Lambda layer, which is code: write it as a layer"
        )


def _maps(config: Any) -> Iterator[dict[str, Any]]:  # noqa: ANN401 - JSON
    match config:
        case dict():
            yield config
            for each in config.values():
                yield from _maps(each)
        case list():
            for each in config:
                yield from _maps(each)
        case _:
            pass


def _keras_runner(tf: Any, model: Any, tuning: Tuning) -> Runner:  # noqa: ANN401 - untyped
    signature = {
        each.name: tf.TensorSpec(each.shape, each.dtype, name=each.name)
        for each in model.inputs
    }
    # A Sequential of Keras 3 has no names of its own.
    names = list(getattr(model, "output_names", None) or [model.layers[-1].name])

    def call(inputs: dict[str, Any]) -> dict[str, Any]:
        ordered = [inputs[name] for name in signature]
        outputs = model(ordered if len(ordered) > 1 else ordered[0], training=False)
        if isinstance(outputs, dict):
            return outputs
        if not isinstance(outputs, list | tuple):
            outputs = [outputs]
        return dict(zip(names, outputs, strict=True))

    traced = tf.function(
        call, input_signature=[signature], jit_compile=tuning.xla or None
    )
    concrete = traced.get_concrete_function()
    spec = _spec(signature, concrete.structured_outputs)
    return TensorFlowRunner(
        lambda **given: traced(given),
        spec,
        keep=model,
        tuned=_is_tuned(tf, tuning),
    )


def _tensorflow(tuning: Tuning) -> Any:  # noqa: ANN401 - TensorFlow is untyped
    # Before the import: its C++ speaks up while loading.
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
    import tensorflow as tf

    tf.config.threading.set_intra_op_parallelism_threads(tuning.intra_threads)
    tf.config.threading.set_inter_op_parallelism_threads(tuning.inter_threads)
    accelerators = tf.config.list_physical_devices("GPU")
    for device in accelerators:
        # Else the first process takes all of the accelerator's memory.
        tf.config.experimental.set_memory_growth(device, True)
    if tuning.mixed_precision:
        rewrite = MIXED_ON_ACCELERATOR if accelerators else MIXED_ON_PROCESSOR
        tf.config.optimizer.set_experimental_options({rewrite: True})
    return tf


def _is_tuned(tf: Any, tuning: Tuning) -> bool:  # noqa: ANN401 - as above
    return tuning.xla or bool(tf.config.list_physical_devices("GPU"))


def _spec(inputs: dict[str, Any], outputs: dict[str, Any]) -> ModelSpec:
    if not inputs:
        raise CannotServe("the signature takes no inputs")
    specs_in = tuple(_tensor(name, each) for name, each in sorted(inputs.items()))
    specs_out = tuple(_tensor(name, each) for name, each in sorted(outputs.items()))
    return ModelSpec(
        inputs=specs_in,
        outputs=specs_out,
        batched=all(
            each.shape is not None and each.shape[:1] == (ANY,)
            for each in (*specs_in, *specs_out)
        ),
    )


def _tensor(name: str, tensor: Any) -> TensorSpec:  # noqa: ANN401 - as above
    import tensorflow as tf

    dtype = tf.as_dtype(tensor.dtype).name
    if dtype not in ITEM_BYTES:
        raise CannotServe(
            f"tensor {name!r} is {dtype}, which does not travel: use one of "
            f"{', '.join(ITEM_BYTES)}"
        )
    shape = tf.TensorShape(tensor.shape)
    if shape.rank is None:
        return TensorSpec(name, dtype, None)
    return TensorSpec(
        name, dtype, tuple(ANY if side is None else int(side) for side in shape)
    )


def _one_line(error: BaseException) -> str:
    """The line that says what is wrong, without where in the graph it was."""
    text = (str(error) or type(error).__name__).strip()
    lines = [line.strip() for line in text.splitlines()]
    telling = [each for each in lines if each and not each.startswith(_WHERE)]
    return (telling or lines)[0][:300]
