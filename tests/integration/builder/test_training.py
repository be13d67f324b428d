"""Students, pruning and conversion, with TensorFlow."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import pytest

from builder.adapters import conversion, models, students, training
from builder.core.candidates import Quantization
from builder.core.refusal import BuildRefused

if TYPE_CHECKING:
    from tensorflow import keras

pytestmark = [
    # The converter's own: it still uses an interpreter that it calls deprecated.
    pytest.mark.filterwarnings("ignore"),
    pytest.mark.timeout(120),
]

RNG = np.random.default_rng(3)
ROWS = RNG.normal(size=(640, 32)).astype(np.float32)
LABELS = (ROWS[:, 0] + ROWS[:, 1] > 0).astype(np.int64)
RECIPE = training.Recipe(epochs=4, batch=32, peak_rate=0.02, soft_share=0.0)


def dense() -> keras.Model:
    from tensorflow import keras

    keras.utils.set_random_seed(5)
    return keras.Sequential(
        [
            keras.Input((32,)),
            keras.layers.Dense(48, activation="relu"),
            keras.layers.Dense(2),
        ]
    )


def learn(
    model: keras.Model,
    recipe: training.Recipe,
    cloud: np.ndarray | None = None,
    labels: np.ndarray = LABELS,
    pruned: float = 0.0,
) -> float:
    """Train, and give the share of rows that are answered right."""
    learnt = training.lessons(lambda rows: ROWS[rows], labels, 2, cloud, recipe)
    training.train(model, learnt, recipe, 1, lambda *_: None, pruned=pruned)
    said = np.asarray(model(ROWS)).argmax(axis=-1)
    return float(np.mean(said == LABELS))


def test_a_student_learns_from_the_cloud_where_labels_say_nothing() -> None:
    sure = np.where(LABELS[:, np.newaxis] == [0, 1], 4.0, -4.0).astype(np.float32)
    recipe = training.Recipe(epochs=4, batch=32, peak_rate=0.02, soft_share=1.0)
    noise = RNG.integers(0, 2, len(LABELS))
    assert learn(dense(), recipe, sure, noise) > 0.9


def test_pruning_leaves_the_largest_weights_and_what_was_learned() -> None:
    model = dense()
    learn(model, RECIPE)
    assert learn(model, training.for_pruning(RECIPE, 4), pruned=0.75) > 0.9
    kernel = np.asarray(model.layers[0].kernel)
    assert np.mean(kernel == 0) == pytest.approx(0.75, abs=0.01)
    assert np.mean(np.asarray(model.layers[-1].kernel) == 0) < 0.1


def test_the_same_seed_trains_the_same_student() -> None:
    one, other = dense(), dense()
    learn(one, RECIPE)
    learn(other, RECIPE)
    for a, b in zip(one.get_weights(), other.get_weights(), strict=True):
        assert np.array_equal(a, b)


@pytest.mark.parametrize("quantization", ["float16", "dynamic", "int8"])
def test_every_format_answers_as_the_model_does(quantization: Quantization) -> None:
    from ai_edge_litert.interpreter import Interpreter

    model = dense()
    network = models.of_keras(model)
    made = conversion.to_tflite(network, ROWS[:40], quantization, "row")
    run = Interpreter(model_content=made).get_signature_runner()
    said = np.concatenate([run(row=row[np.newaxis])["logits"] for row in ROWS[:100]])
    wanted = np.asarray(model(ROWS[:100]))
    assert said.dtype == np.float32
    assert np.abs(said - wanted).max() < 0.1 * np.abs(wanted).max()
    # No ties: the head is float whatever is inside.
    assert len(np.unique(said)) > 190


@pytest.mark.parametrize("shape", [(28, 28, 1), (100, 3), (30,)])
@pytest.mark.parametrize("max_kb", [20.0, 120.0])
def test_the_default_student_fits_its_size(
    shape: tuple[int, ...], max_kb: float
) -> None:
    model = students.student(None, shape, 4, max_kb)
    assert model.output_shape == (None, 4)
    assert model.count_params() / 1000 < max_kb
    larger = students.student(None, shape, 4, 10 * max_kb)
    assert larger.count_params() >= model.count_params()


def test_a_student_of_another_shape_is_refused() -> None:
    with pytest.raises(BuildRefused, match="and the data set has"):
        students.student("tests.integration.builder.students:small", (9, 9, 1), 2, None)
    with pytest.raises(BuildRefused, match="no default student"):
        students.student(None, (4, 4, 4, 1), 2, None)
