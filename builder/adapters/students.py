"""The student: the one its user names, or one of a size that fits."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from builder.adapters.models import by_entry_point, without_softmax
from builder.core.refusal import BuildRefused

if TYPE_CHECKING:
    from tensorflow import keras

# Widths that are tried for the default student, from the largest.
WIDTHS: Final = (64, 48, 32, 24, 16, 12, 8, 4)
DEFAULT_KB: Final = 120.0
# What a flatbuffer holds beside its weights, and a weight's share of scales.
OVERHEAD_KB: Final = 8.0


def student(
    named: str | None,
    shape: tuple[int, ...],
    classes: int,
    max_kb: float | None,
    vocabulary: int | None = None,
) -> keras.Model:
    """An untrained model that gives logits.

    Args:
        named: `module:function` that returns a Keras model; None takes the largest of
            a plain family whose int8 weights fit.
        shape: of one example.
        classes: how many logits.
        max_kb: how large the file may be; 120 KB when None.
        vocabulary: how many tokens there are, where an example is a row of their ids.

    Raises:
        BuildRefused: the named model takes or gives something else, or there is no
            default for such a shape.
    """
    if named is None:
        most = DEFAULT_KB if max_kb is None else max_kb
        return _largest(shape, classes, most, vocabulary)
    model = without_softmax(by_entry_point(named))
    taken, given = model.input_shape[1:], model.output_shape[-1]
    if tuple(taken) != shape or given != classes:
        raise BuildRefused(
            f"the student {named} maps {list(taken)} to {given} classes, and the data "
            f"set has {list(shape)} and {classes}"
        )
    return model


def _largest(
    shape: tuple[int, ...], classes: int, max_kb: float, vocabulary: int | None
) -> keras.Model:
    for width in WIDTHS:
        if vocabulary is not None and len(shape) == 1:
            model = _of_tokens(shape[0], classes, width, vocabulary)
        else:
            model = _plain(shape, classes, width)
        if model.count_params() / 1000 + OVERHEAD_KB <= max_kb or width == WIDTHS[-1]:
            return model
    raise AssertionError("the smallest width is always taken")


def _of_tokens(length: int, classes: int, width: int, vocabulary: int) -> keras.Model:
    """The mean of the tokens' vectors; the id 0 fills up short texts and counts not."""
    from tensorflow import keras
    from tensorflow.keras import layers

    given = keras.Input((length,), dtype="int32", name="input")
    x = layers.Embedding(vocabulary, width, mask_zero=True)(given)
    x = layers.GlobalAveragePooling1D()(x)
    x = layers.Dense(width, activation="relu")(x)
    return keras.Model(given, layers.Dense(classes, name="logits")(x), name="student")


def _plain(shape: tuple[int, ...], classes: int, width: int) -> keras.Model:
    """Plain convolutions for pictures and series, dense layers for rows."""
    from tensorflow import keras
    from tensorflow.keras import layers

    given = keras.Input(shape, name="input")
    x = given
    if len(shape) == 1:
        for units in (4 * width, 2 * width):
            x = layers.Dense(units, activation="relu")(x)
    elif len(shape) in (2, 3):
        convolution = layers.Conv2D if len(shape) == 3 else layers.Conv1D
        pool = (
            layers.GlobalAveragePooling2D
            if len(shape) == 3
            else layers.GlobalAveragePooling1D
        )
        for share, stride in ((4, 1), (2, 2), (4 / 3, 1), (1, 2), (1, 1)):
            x = convolution(
                max(4, round(width / share)),
                3,
                strides=stride,
                padding="same",
                use_bias=False,
                kernel_initializer="he_normal",
            )(x)
            x = layers.ReLU()(layers.BatchNormalization(momentum=0.9)(x))
        x = pool()(x)
    else:
        raise BuildRefused(
            f"there is no default student for examples of shape {list(shape)}: name "
            "one with student = 'module:function'"
        )
    return keras.Model(given, layers.Dense(classes, name="logits")(x), name="student")
