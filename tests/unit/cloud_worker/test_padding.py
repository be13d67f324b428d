from __future__ import annotations

import numpy as np
import pytest

from cloud_worker.core.intake import Inputs
from cloud_worker.core.padding import at_each_size, check_padding, pad
from cloud_worker.core.spec import ANY, ModelSpec, Padding, TensorSpec

IDS = TensorSpec("ids", "int32", (ANY, ANY))
KIND = TensorSpec("kind", "uint8", (ANY,))
OUT = TensorSpec("logits", "float32", (ANY, 10))
PADDING = Padding(1, (4, 8), -1.0)


def inputs(length: int, rows: int = 2) -> Inputs:
    ids = np.arange(rows * length, dtype=np.int32)
    return Inputs(
        (("ids", "int32", (rows, length)), ("kind", "uint8", (rows,))),
        (ids.tobytes(), bytes(rows)),
        rows,
    )


def padded_ids(length: int) -> np.ndarray[tuple[int, ...], np.dtype[np.int32]]:
    given = pad(inputs(length), PADDING, (IDS, KIND))
    (_, _, shape), (_, _, kind) = given.signature
    assert kind == (2,)
    assert given.rows == 2
    return np.frombuffer(given.buffers[0], np.int32).reshape(shape)


def test_an_input_is_padded_behind_its_own_values() -> None:
    ids = padded_ids(3)
    assert ids.tolist() == [[0, 1, 2, -1], [3, 4, 5, -1]]


@pytest.mark.parametrize(("length", "padded"), [(1, 4), (4, 4), (5, 8), (8, 8), (9, 9)])
def test_the_next_size_is_taken_and_what_is_longer_stays(
    length: int, padded: int
) -> None:
    ids = padded_ids(length)
    assert ids.shape == (2, padded)
    assert np.array_equal(ids[:, :length], np.arange(2 * length).reshape(2, length))


def test_a_model_is_warmed_at_each_of_the_sizes() -> None:
    at_4, at_8 = at_each_size(PADDING, (IDS, KIND))
    assert at_4 == (TensorSpec("ids", "int32", (ANY, 4)), KIND)
    assert at_8 == (TensorSpec("ids", "int32", (ANY, 8)), KIND)


@pytest.mark.parametrize(
    "spec",
    [
        KIND,
        TensorSpec("any", "float32", None),
        TensorSpec("wide", "float32", (ANY, ANY, ANY)),
    ],
)
def test_where_a_length_stays_unknown_there_is_nothing_to_warm(
    spec: TensorSpec,
) -> None:
    assert at_each_size(PADDING, (spec,)) == []


def test_a_model_that_fits_may_be_padded() -> None:
    assert check_padding(PADDING, ModelSpec((IDS, KIND), (OUT,), batched=True)) is None


@pytest.mark.parametrize(
    ("spec", "reason"),
    [
        (ModelSpec((IDS,), (OUT,), batched=False), "is no batch"),
        (ModelSpec((KIND,), (OUT,), batched=True), "no input has a free axis 1"),
        (
            ModelSpec((IDS,), (TensorSpec("y", "float32", (ANY, ANY)),), batched=True),
            "'y' has a free axis",
        ),
        (
            ModelSpec((IDS,), (TensorSpec("y", "float32", None),), batched=True),
            "'y' has a free axis",
        ),
        (
            ModelSpec((TensorSpec("ids", "uint8", (ANY, ANY)),), (OUT,), batched=True),
            "is uint8, which has no -1",
        ),
    ],
)
def test_a_model_whose_answer_could_change_is_refused(
    spec: ModelSpec, reason: str
) -> None:
    unfit = check_padding(PADDING, spec)
    assert unfit is not None
    assert reason in unfit.reason
