"""The three networks, and nothing about how they are trained.

Each maps images [n, 28, 28, 1] float32 in 0..1 to logits [n, 10] float32. No softmax
inside: the cascade needs logits that do not tie.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final, Literal

if TYPE_CHECKING:
    from tensorflow import keras
    from tensorflow.keras import KerasTensor

EdgeSize = Literal["tiny", "small"]

IMAGE_SHAPE: Final = (28, 28, 1)
CLASSES: Final = 10

# (channels, stride of the first block) of each residual block of the cloud model.
CLOUD_BLOCKS: Final = ((48, 2), (48, 1), (96, 2), (96, 1), (160, 2), (160, 1))
CLOUD_STEM: Final = 16

# (channels, stride) of each 3x3 convolution of the edge models.
EDGE_CONVOLUTIONS: Final[dict[EdgeSize, tuple[tuple[int, int], ...]]] = {
    "tiny": ((8, 2), (18, 2)),
    "small": ((16, 1), (32, 2), (48, 1), (64, 2), (64, 1)),
}


def build_cloud() -> keras.Model:
    """Return an untrained ResNet of about 1.2 M parameters."""
    from tensorflow import keras

    image = keras.Input(IMAGE_SHAPE, name="image")
    x = _convolution(image, CLOUD_STEM, stride=1)
    for channels, stride in CLOUD_BLOCKS:
        x = _residual_block(x, channels, stride)
    return _with_head(image, x, "fashion_cloud")


def build_edge(size: EdgeSize) -> keras.Model:
    """Return an untrained plain CNN: 1.7 k parameters (tiny) or 85 k (small)."""
    from tensorflow import keras

    image = keras.Input(IMAGE_SHAPE, name="image")
    x = image
    for channels, stride in EDGE_CONVOLUTIONS[size]:
        x = _convolution(x, channels, stride)
    return _with_head(image, x, f"fashion_{size}")


def build_tiny() -> keras.Model:
    """Return the untrained tiny edge model, as a build file names it."""
    return build_edge("tiny")


def build_small() -> keras.Model:
    """Return the untrained small edge model, as a build file names it."""
    return build_edge("small")


def _residual_block(x: KerasTensor, channels: int, stride: int) -> KerasTensor:
    from tensorflow.keras import layers

    shortcut = x
    if stride != 1 or x.shape[-1] != channels:
        shortcut = _convolution(x, channels, stride, kernel=1, activate=False)
    y = _convolution(x, channels, stride)
    y = _convolution(y, channels, stride=1, activate=False)
    return layers.ReLU()(layers.Add()([shortcut, y]))


def _convolution(
    x: KerasTensor,
    channels: int,
    stride: int,
    kernel: int = 3,
    *,
    activate: bool = True,
) -> KerasTensor:
    from tensorflow.keras import layers

    x = layers.Conv2D(
        channels,
        kernel,
        strides=stride,
        padding="same",
        use_bias=False,
        kernel_initializer="he_normal",
    )(x)
    x = layers.BatchNormalization(momentum=0.9)(x)
    return layers.ReLU()(x) if activate else x


def _with_head(image: KerasTensor, x: KerasTensor, name: str) -> keras.Model:
    from tensorflow import keras
    from tensorflow.keras import layers

    x = layers.GlobalAveragePooling2D()(x)
    return keras.Model(image, layers.Dense(CLASSES, name="logits")(x), name=name)
