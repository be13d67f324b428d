from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from builder.core.labelled import Labelled, labelled
from builder.core.refusal import BuildRefused
from builder.core.splits import PARTS, split


def numbered(n: int, classes: int = 2) -> Labelled:
    values = np.arange(n, dtype=np.float32)[:, np.newaxis]
    return labelled(values, np.arange(n) % classes)


@given(
    values=st.lists(st.integers(0, 60), min_size=80, max_size=200),
    seed=st.integers(0, 1000),
)
def test_equal_examples_never_serve_two_ends(values: list[int], seed: int) -> None:
    inputs = np.array(values, np.float32)[:, np.newaxis]
    found = (
        split(labelled(inputs, np.array(values) % 2, ("a", "b")), seed, trains=False)
        if (len(set(values)) > 40)
        else None
    )
    if found is None:
        return
    held = [set(inputs[found.rows(part)].ravel().tolist()) for part in PARTS]
    for index, one in enumerate(held):
        for other in held[index + 1 :]:
            assert not one & other


def test_the_same_seed_splits_the_same_way_and_another_does_not() -> None:
    data = numbered(200)
    one, same, other = split(data, 1), split(data, 1), split(data, 2)
    assert one.test.tolist() == same.test.tolist()
    assert one.test.tolist() != other.test.tolist()


def test_every_example_serves_and_each_class_is_in_each_part() -> None:
    data = numbered(200, classes=4)
    found = split(data, 3)
    rows = np.concatenate([found.rows(part) for part in PARTS])
    assert sorted(rows.tolist()) == list(range(200))
    for part in PARTS:
        assert set(data.labels[found.rows(part)]) == {0, 1, 2, 3}


def given_parts(values: list[float], parts: list[int]) -> Labelled:
    return labelled(
        np.array(values, np.float32)[:, np.newaxis],
        np.arange(len(values)) % 2,
        parts=np.array(parts, np.int64),
    )


def test_an_example_in_calibrate_and_in_test_is_refused() -> None:
    data = given_parts([1, 2, 3, 4, 5, 3], [0, 0, 2, 1, 2, 3])
    with pytest.raises(BuildRefused, match="1 examples are in calibrate and in test"):
        split(data, 1)


def test_a_copy_of_a_held_out_example_is_left_out_of_train() -> None:
    found = split(given_parts([1, 2, 3, 4, 5, 3], [0, 0, 2, 1, 3, 0]), 1)
    assert found.train.tolist() == [0, 1]
    assert found.left_out == 1


def test_a_data_set_without_a_choose_part_gives_some_of_calibrate() -> None:
    data = given_parts([*range(30)], [0] * 5 + [2] * 20 + [3] * 5)
    found = split(data, 1)
    assert (len(found.choose), len(found.calibrate)) == (4, 16)
    other = split(data, 1, choose_share=0.4)
    assert (len(other.choose), len(other.calibrate)) == (8, 12)


def test_a_part_without_examples_is_refused() -> None:
    with pytest.raises(BuildRefused, match="test part has no example"):
        split(given_parts([1, 2, 3], [0, 1, 2]), 1)


def test_shares_that_do_not_sum_to_one_are_refused() -> None:
    with pytest.raises(BuildRefused, match="sum to 1"):
        split(numbered(50), 1, (0.5, 0.1, 0.1, 0.1))
