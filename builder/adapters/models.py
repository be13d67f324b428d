"""Open the models that people have: SavedModel, `.keras`, `.h5`. One input, one output.

The files are the user's own, as trusted as a program: a Keras file may hold code.
"""

from __future__ import annotations

import importlib
import importlib.util
from collections.abc import Callable
from dataclasses import dataclass, replace
from hashlib import blake2b
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import numpy as np
from numpy.typing import NDArray

from builder.core.refusal import BuildRefused

if TYPE_CHECKING:
    import tensorflow as tf
    from tensorflow import keras

BATCH: Final = 250
KERAS_SUFFIXES: Final = (".keras", ".h5", ".hdf5")


@dataclass(frozen=True, slots=True, eq=False)
class Network:
    """A model that maps a batch to one output.

    Attributes:
        call: tensor [batch, ...] to tensor [batch, classes], inside a `tf.function` too.
        held: what owns the variables, so that a SavedModel can be made of it.
        output: the name that a worker gives its output.
        stripped: whether a softmax was taken from its end, which a worker leaves on.
    """

    call: Callable[[tf.Tensor], tf.Tensor]
    held: Any
    output: str
    stripped: bool = False


def file_digest(path: Path) -> str:
    """Hexadecimal, over a file or over every file of a folder.

    Raises:
        BuildRefused: there is none.
    """
    if not path.exists():
        raise BuildRefused(f"there is no model at {path}")
    whole = blake2b(digest_size=16)
    files = sorted(path.rglob("*")) if path.is_dir() else [path]
    for file in files:
        if file.is_file():
            whole.update(str(file.relative_to(path.parent)).encode())
            whole.update(file.read_bytes())
    return whole.hexdigest()


def open_model(path: Path, output: str | None = None) -> Network:
    """Open a cloud model.

    Args:
        path: a SavedModel's folder, a `.keras` or an `.h5` file.
        output: which output, for a model with several.

    Raises:
        BuildRefused: nothing there that can be read, several inputs, or several
            outputs and none is named.
    """
    if path.is_dir():
        return _open_saved_model(path, output)
    if path.suffix in KERAS_SUFFIXES:
        return _open_keras(path, output)
    raise BuildRefused(
        f"{path} is no cloud model: a SavedModel's folder, .keras or .h5 is"
    )


def of_keras(model: keras.Model, *, stripped: bool = False) -> Network:
    """A Keras model as it stands, in inference."""
    # TensorFlow tracks its own variables only, and Keras wraps them.
    held = [variable.value for variable in model.variables]
    (output,) = _output_names(model)
    return Network(
        lambda batch: model(batch, training=False), held, str(output), stripped
    )


def outputs_of(
    network: Network,
    batch_of: Callable[[slice], NDArray[Any]],
    n: int,
    told: Callable[[int, int], None] = lambda _done, _all: None,
) -> NDArray[np.float32]:
    """Run a model over `n` examples, a batch at a time.

    Args:
        network: any.
        batch_of: gives the models' inputs of a slice of the examples.
        n: how many there are.
        told: called with how many are done, and n.

    Returns:
        float32 [n, classes].

    Raises:
        BuildRefused: the model does not take such inputs, or gives no row each.
    """
    import tensorflow as tf

    run = tf.function(network.call, reduce_retracing=True)
    parts: list[NDArray[np.float32]] = []
    for start in range(0, n, BATCH):
        rows = slice(start, min(start + BATCH, n))
        try:
            part = np.asarray(run(tf.constant(batch_of(rows))), np.float32)
        except (ValueError, TypeError, tf.errors.OpError) as error:
            raise BuildRefused(
                f"the model does not take the data set's examples: {_first_line(error)}"
            ) from error
        if part.ndim != 2 or len(part) != rows.stop - rows.start:
            raise BuildRefused(
                f"the model gives {list(part.shape)} for {rows.stop - rows.start} "
                "examples: a row of one number a class is needed for each"
            )
        parts.append(part)
        told(rows.stop, n)
    return np.concatenate(parts)


def by_entry_point(named: str, *arguments: object) -> Any:  # noqa: ANN401 - its caller knows what it asked for
    """Call `module:function`.

    Raises:
        BuildRefused: there is no such module or function.
    """
    module, colon, function = named.partition(":")
    if not colon:
        raise BuildRefused(f"an entry point reads module:function, got {named!r}")
    try:
        found = getattr(importlib.import_module(module), function)
    except (ImportError, AttributeError) as error:
        raise BuildRefused(
            f"no entry point {named!r}: {error}; its folder has to be on PYTHONPATH"
        ) from error
    return found(*arguments)


def has_softmax(model: keras.Model) -> bool:
    """Whether a model ends in a softmax."""
    from tensorflow import keras

    last = model.layers[-1]
    return isinstance(last, keras.layers.Softmax) or (
        getattr(last, "activation", None) is keras.activations.softmax
    )


def source_digest(named: str) -> str:
    """Hexadecimal, of the module of an entry point, without running it.

    What it imports is not looked at.

    Raises:
        BuildRefused: there is no such module.
    """
    module = named.partition(":")[0]
    try:
        spec = importlib.util.find_spec(module)
    except (ImportError, ValueError) as error:
        raise BuildRefused(f"no entry point {named!r}: {error}") from error
    if spec is None or spec.origin is None:
        raise BuildRefused(f"no entry point {named!r}: there is no module {module}")
    return file_digest(Path(spec.origin))


def without_softmax(model: keras.Model) -> keras.Model:
    """The same model, giving logits: a softmax at its end would make them tie."""
    from tensorflow import keras

    if not has_softmax(model):
        return model
    last = model.layers[-1]
    if isinstance(last, keras.layers.Softmax):
        return keras.Model(model.inputs, last.input, name=model.name)
    last.activation = keras.activations.linear
    return model


def _open_keras(path: Path, output: str | None) -> Network:
    from tensorflow import keras

    try:
        model = keras.models.load_model(path, compile=False)
    except (OSError, ValueError, TypeError) as error:
        raise BuildRefused(f"cannot open {path}: {_first_line(error)}") from error
    if len(model.inputs) != 1:
        raise BuildRefused(f"{path} has {len(model.inputs)} inputs, and one is needed")
    if len(model.outputs) > 1:
        names = _output_names(model)
        name = _one_of(names, output, path)
        model = keras.Model(model.inputs, model.outputs[names.index(name)])
    (named,) = _output_names(model)
    stripped = has_softmax(model)
    return replace(of_keras(without_softmax(model), stripped=stripped), output=named)


def _output_names(model: keras.Model) -> list[str]:
    """As a worker names them; a sequential model's is that of its last layer."""
    return [
        str(each) for each in getattr(model, "output_names", [model.layers[-1].name])
    ]


def _open_saved_model(path: Path, output: str | None) -> Network:
    import tensorflow as tf

    try:
        loaded = tf.saved_model.load(str(path))
        serve = loaded.signatures["serving_default"]
    except (OSError, KeyError, ValueError) as error:
        raise BuildRefused(
            f"cannot open the SavedModel {path}: {_first_line(error)}"
        ) from error
    inputs = serve.structured_input_signature[1]
    if len(inputs) != 1:
        raise BuildRefused(
            f"{path} has the inputs {', '.join(sorted(inputs))}, and one is needed"
        )
    (given,) = inputs
    taken = _one_of(sorted(serve.structured_outputs), output, path)
    return Network(lambda batch: serve(**{given: batch})[taken], loaded, taken)


def _one_of(names: list[str], wanted: str | None, path: Path) -> str:
    if wanted is None and len(names) == 1:
        return names[0]
    if wanted in names:
        return str(wanted)
    what = "say which with --output" if wanted is None else f"none is {wanted!r}"
    raise BuildRefused(f"{path} has the outputs {', '.join(names)}: {what}")


def _first_line(error: Exception) -> str:
    return str(error).strip().partition("\n")[0]
