"""A model that was well at warm-up and is not later costs its batch, and says why."""

from __future__ import annotations

import numpy as np
import pytest

from cloud_worker.adapters.batches import WarmModel
from cloud_worker.adapters.runtime import Arrays, CannotServe, RunFailed
from cloud_worker.core.spec import ModelSpec, TensorSpec

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
