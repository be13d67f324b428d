"""A model that was well at warm-up and is not later costs its batch, and says why."""

from __future__ import annotations

import numpy as np
import pytest
from typing_extensions import override

from cloud_worker.adapters.batches import WarmModel
from cloud_worker.adapters.runtime import Arrays, CannotServe, RunFailed
from cloud_worker.core.spec import ModelSpec, Padding, TensorSpec, padded_sizes

X = TensorSpec("x", "float32", (-1, 4))
Y = TensorSpec("y", "float32", (-1, 4))
SIGNATURE = (("x", "float32", (1, 4)),)


class Doubles:
    """y = 2x, but a row short for batches of `short`, and an error for `broken`."""

    spec = ModelSpec((X,), (Y,), batched=True)
    wants_padding = False
    concurrent = False

    def __init__(self, *, short: int = 0, broken: int = 0) -> None:
        self._short, self._broken = short, broken

    def run(self, inputs: Arrays) -> Arrays:
        x: np.ndarray[tuple[int, ...], np.dtype[np.float32]] = inputs["x"]  # type: ignore[assignment]
        if len(x) == self._broken:
            raise RunFailed("it broke")
        return {"y": x[:-1] * 2 if len(x) == self._short else x * 2}


def body(rows: int) -> bytes:
    return np.arange(rows * 4, dtype=np.float32).tobytes()


def test_outputs_of_the_wrong_length_fail_their_batch_and_no_other() -> None:
    model = WarmModel(Doubles(short=7), 8)
    with pytest.raises(RunFailed, match=r"'y' has shape \[6, 4\] for 7 rows"):
        model.run(SIGNATURE, 7, body(7))
    outputs = model.run(SIGNATURE, 6, body(6))
    assert np.frombuffer(outputs.part(5)["y"].data, np.float32).tolist() == [
        40.0,
        42.0,
        44.0,
        46.0,
    ]


def test_an_error_at_one_batch_size_fails_that_batch_and_no_other() -> None:
    model = WarmModel(Doubles(broken=7), 8)
    with pytest.raises(RunFailed, match="it broke"):
        model.run(SIGNATURE, 7, body(7))
    assert model.run(SIGNATURE, 8, body(8)).count == 8


def test_a_model_that_fails_on_zeros_is_refused() -> None:
    with pytest.raises(CannotServe, match="fails on inputs of zeros: it broke"):
        WarmModel(Doubles(broken=4), 8)


def test_a_model_that_loses_rows_at_warm_up_is_run_one_by_one() -> None:
    assert not WarmModel(Doubles(short=4), 8).spec.batched


class Sums:
    """y = the sum of a row of any length, each shape prepared when it first comes."""

    spec = ModelSpec(
        (TensorSpec("x", "float32", (-1, -1)),),
        (TensorSpec("y", "float32", (-1, 1)),),
        batched=True,
    )
    wants_padding = True
    concurrent = False

    def __init__(self, *, least: int = 0) -> None:
        self.prepared: set[tuple[int, ...]] = set()
        self._least = least

    def run(self, inputs: Arrays) -> Arrays:
        x: np.ndarray[tuple[int, ...], np.dtype[np.float32]] = inputs["x"]  # type: ignore[assignment]
        if x.shape[1] < self._least:
            raise RunFailed(f"{x.shape[1]} is too short")
        self.prepared.add(x.shape)
        return {"y": x.sum(axis=1, keepdims=True)}


LENGTHS = Padding(1, (4, 16, 64))


def test_no_batch_that_is_padded_is_the_first_of_its_shape() -> None:
    runner = Sums()
    model = WarmModel(runner, 8, LENGTHS)
    warm = set(runner.prepared)
    for length in LENGTHS.sizes:
        for rows in range(1, 9):
            signature = (("x", "float32", (1, length)),)
            body = np.ones(rows * length, np.float32).tobytes()
            assert model.run(signature, rows, body).count == rows
    assert runner.prepared == warm


def test_the_cost_of_each_length_is_told_by_the_bytes_of_a_row() -> None:
    model = WarmModel(Sums(), 8, LENGTHS)
    for _ in range(2):
        costs = dict(model.spec.item_costs_ms)
        assert list(costs) == [16, 64, 256]
        for each in costs.values():
            assert [size for size, _ in each] == list(padded_sizes(8))
            assert all(cost_ms > 0 for _, cost_ms in each)
        model.time_again()
    assert WarmModel(Sums(), 8).spec.item_costs_ms == ()


def test_a_length_that_a_model_does_not_bear_leaves_the_others_warm() -> None:
    model = WarmModel(Sums(least=10), 8, LENGTHS)
    assert [row_bytes for row_bytes, _ in model.spec.item_costs_ms] == [64, 256]


def test_a_model_of_large_inputs_is_not_warmed_with_batches_that_never_come() -> None:
    class Large(Doubles):
        spec = ModelSpec((TensorSpec("x", "float32", (-1, 1024, 4096)),), (Y,), True)

        @override
        def run(self, inputs: Arrays) -> Arrays:
            return {"y": np.zeros((len(inputs["x"]), 4), np.float32)}

    assert [size for size, _ in WarmModel(Large(), 64).spec.costs_ms] == [1, 2, 4]
