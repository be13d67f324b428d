from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from broker.messages import Tensor
from cloud_worker.core.intake import Inputs
from cloud_worker.core.split import Joint, Unjoinable, split


def inputs(rows: int) -> Inputs:
    image = np.arange(rows * 6, dtype=np.float32)
    mask = np.arange(rows, dtype=np.uint8)
    return Inputs(
        (("image", "float32", (rows, 2, 3)), ("mask", "uint8", (rows,))),
        (image.tobytes(), mask.tobytes()),
        rows,
    )


def as_outputs(part: Inputs) -> dict[str, Tensor]:
    """As a model would that gives back what it takes."""
    return {
        name: Tensor(dtype=dtype, shape=list(shape), data=data)
        for (name, dtype, shape), data in zip(part.signature, part.buffers, strict=True)
    }


@given(st.integers(1, 100), st.integers(1, 20), st.randoms(use_true_random=False))
def test_what_was_split_is_joined_in_order_whatever_order_it_ran_in(
    rows: int, max_rows: int, chance: np.random.Generator
) -> None:
    whole = inputs(rows)
    parts = list(enumerate(split(whole, max_rows)))
    assert all(part.rows <= max_rows for _, part in parts)
    joint = Joint(len(parts))
    chance.shuffle(parts)
    joined = None
    for index, part in parts:
        assert joined is None
        joined = joint.put(index, as_outputs(part), 1.0)
    assert joined is not None
    assert joined.part(0) == as_outputs(whole)
    assert joined.infer_ms == len(parts)


def test_a_part_that_ran_twice_counts_once() -> None:
    first, second = split(inputs(8), 4)
    joint = Joint(2)
    assert joint.put(0, as_outputs(first), 1.0) is None
    assert joint.put(0, as_outputs(first), 1.0) is None
    assert joint.put(1, as_outputs(second), 1.0) is not None


def test_a_request_that_has_ended_is_not_joined() -> None:
    joint = Joint(1)
    assert joint.end()
    assert not joint.end()
    assert joint.put(0, as_outputs(inputs(2)), 1.0) is None


def test_parts_whose_outputs_do_not_fit_together_are_an_error() -> None:
    joint = Joint(2)
    odd = {"image": Tensor(dtype="float32", shape=[1, 1], data=bytes(4))}
    joint.put(0, as_outputs(inputs(2)), 1.0)
    with pytest.raises(Unjoinable, match="differs in dtype or shape"):
        joint.put(1, odd, 1.0)
