"""A float `.tflite` file without its model, quantised."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import pytest

from builder.adapters import conversion, measuring, models
from builder.adapters.requantizing import is_float, requantized
from builder.core.candidates import Quantization

if TYPE_CHECKING:
    from tensorflow import keras

pytest.importorskip("ai_edge_quantizer", reason="an extra: overspill[quantize]")

pytestmark = [
    pytest.mark.filterwarnings("ignore"),
    pytest.mark.timeout(120),
]

PICTURES = np.random.default_rng(3).random((60, 8, 8, 1), np.float32)


def convolutions() -> keras.Model:
    from tensorflow import keras
    from tensorflow.keras import layers

    keras.utils.set_random_seed(5)
    return keras.Sequential(
        [
            keras.Input((8, 8, 1)),
            layers.Conv2D(16, 3, activation="relu"),
            layers.Conv2D(32, 3, activation="relu"),
            layers.GlobalAveragePooling2D(),
            layers.Dense(3),
        ]
    )


@pytest.fixture(scope="module")
def given(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("given") / "given.tflite"
    network = models.of_keras(convolutions())
    path.write_bytes(conversion.to_tflite(network, PICTURES, "float32", "image"))
    return path


@pytest.mark.parametrize("quantization", ["dynamic", "int8"])
def test_a_float_file_is_made_smaller_and_says_the_same(
    given: Path, tmp_path: Path, quantization: Quantization
) -> None:
    assert is_float(given)
    small = tmp_path / "small.tflite"
    small.write_bytes(requantized(given, quantization, PICTURES, "image"))
    assert not is_float(small)
    assert small.stat().st_size < given.stat().st_size
    wanted = measuring.run_tflite(given, PICTURES).outputs
    found = measuring.run_tflite(small, PICTURES).outputs
    assert found.dtype == np.float32
    assert np.abs(found - wanted).max() < 0.1 * np.abs(wanted).max()
    assert len(np.unique(found)) > 170
