"""Two Keras models of a series of sound frames; both return logits."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from examples.spoken.recordings import COEFFICIENTS, DIGITS, FRAMES

if TYPE_CHECKING:
    from tensorflow import keras

# Of each coefficient, about.
CENTRES: Final = (
    *(-300.0, 26.0, -5.0, -19.0, -38.0, -20.0, -18.0),
    *(-10.0, -14.0, -8.0, -12.0, -11.0, -12.0),
)
SPREADS: Final = (
    *(144.0, 51.0, 39.0, 29.0, 30.0, 25.0, 19.0),
    *(15.0, 16.0, 15.0, 14.0, 13.0, 13.0),
)

EDGE_FILTERS: Final = 8
CLOUD_FILTERS: Final = (48, 96)
NOISE: Final = 0.3


def build_edge() -> keras.Model:
    """Return the student: two short convolutions along time."""
    from tensorflow import keras

    frames = keras.Input((FRAMES, COEFFICIENTS), name="frames")
    x = _convolved(_normalized(frames), EDGE_FILTERS, 5, stride=2)
    x = _convolved(x, EDGE_FILTERS, 3, stride=2)
    return _classified(frames, x, "edge")


def build_cloud() -> keras.Model:
    """Return the cloud model: a residual network for series of any length."""
    from tensorflow import keras

    frames = keras.Input((None, COEFFICIENTS), name="frames")
    x = keras.layers.GaussianNoise(NOISE)(_normalized(frames))
    x = _convolved(x, CLOUD_FILTERS[0], 5)
    for filters in CLOUD_FILTERS:
        x = _convolved(x, filters, 3, stride=2)
        branch = keras.layers.Dropout(0.2)(_convolved(x, filters, 3))
        x = keras.layers.Add()([x, _convolved(branch, filters, 3)])
    return _classified(frames, x, "cloud", dropout=0.4)


def _normalized(frames: keras.KerasTensor) -> keras.KerasTensor:
    from tensorflow import keras

    return keras.layers.Normalization(
        mean=CENTRES, variance=tuple(spread**2 for spread in SPREADS)
    )(frames)


def _convolved(
    x: keras.KerasTensor, filters: int, size: int, stride: int = 1
) -> keras.KerasTensor:
    from tensorflow.keras import layers

    x = layers.Conv1D(
        *(filters, size),
        strides=stride,
        padding="same",
        use_bias=False,
        kernel_initializer="he_normal",
    )(x)
    return layers.ReLU()(layers.BatchNormalization(momentum=0.9)(x))


def _classified(
    frames: keras.KerasTensor, x: keras.KerasTensor, name: str, dropout: float = 0.0
) -> keras.Model:
    from tensorflow import keras

    x = keras.layers.GlobalAveragePooling1D()(x)
    if dropout:
        x = keras.layers.Dropout(dropout)(x)
    logits = keras.layers.Dense(len(DIGITS), name="logits")(x)
    return keras.Model(frames, logits, name=name)
