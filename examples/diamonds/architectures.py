"""Two Keras models of the same nine numbers; both return logits."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from examples.diamonds.rows import COLUMNS, CUTS

if TYPE_CHECKING:
    from tensorflow import keras

# Of each column, about: dollars and millimetres come in one row.
CENTRES: Final = (0.8, 2.6, 4.0, 61.75, 57.5, 3930.0, 5.73, 5.73, 3.54)
SPREADS: Final = (0.47, 1.7, 1.65, 1.43, 2.23, 3990.0, 1.12, 1.14, 0.7)

EDGE_UNITS: Final = (16, 8)
CLOUD_UNITS: Final = (160, 160, 160)
DROPOUT: Final = 0.1


def build_edge() -> keras.Model:
    """Return the student: two small dense layers over the plain numbers."""
    from tensorflow import keras

    row = keras.Input((len(COLUMNS),), name="row")
    x = _normalized(row)
    for units in EDGE_UNITS:
        x = keras.layers.Dense(units, activation="relu")(x)
    return keras.Model(
        row, keras.layers.Dense(len(CUTS), name="logits")(x), name="edge"
    )


def build_cloud() -> keras.Model:
    """Return the cloud model: wide layers that are told the proportions too.

    A cut is graded by proportions, and dividing is what dense layers learn worst.
    """
    from tensorflow import keras

    ops = keras.ops
    row = keras.Input((len(COLUMNS),), name="row")
    carat, price = row[:, 0:1], row[:, 5:6]
    # A few diamonds were entered without a size.
    x, y, z = (ops.maximum(row[:, at : at + 1], 1.0) for at in (6, 7, 8))
    proportions = [
        100 * (x / y - 1),
        70 * (2 * z / (x + y) - 0.617),
        ops.log(ops.maximum(price, 1.0)) - 8,
        100 * (carat / (x * y * z)) - 0.6,
    ]
    hidden = ops.clip(ops.concatenate([_normalized(row), *proportions], -1), -6.0, 6.0)
    for units in CLOUD_UNITS:
        hidden = keras.layers.Dense(units, use_bias=False)(hidden)
        hidden = keras.layers.BatchNormalization()(hidden)
        hidden = keras.layers.Dropout(DROPOUT)(keras.layers.ReLU()(hidden))
    logits = keras.layers.Dense(len(CUTS), name="logits")(hidden)
    return keras.Model(row, logits, name="cloud")


def _normalized(row: keras.KerasTensor) -> keras.KerasTensor:
    from tensorflow import keras

    return keras.layers.Normalization(
        mean=CENTRES, variance=tuple(spread**2 for spread in SPREADS)
    )(row)
