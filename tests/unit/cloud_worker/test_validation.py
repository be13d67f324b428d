from __future__ import annotations

import re

import numpy as np
import pytest
from numpy.typing import NDArray

from broker.messages import Tensor
from cloud_worker.core.intake import Inputs, Invalid, validate
from cloud_worker.core.spec import (
    ModelSpec,
    ServedModel,
    TensorSpec,
    padded_size,
    padded_sizes,
)


def served(*inputs: TensorSpec, batched: bool = True) -> ServedModel:
    outputs = (TensorSpec("logits", "float32", (-1, 10)),)
    return ServedModel("fashion", "1", ModelSpec(inputs, outputs, batched), 8)


IMAGE = served(TensorSpec("image", "float32", (-1, 2, 2, 1)))


def tensor(array: NDArray[np.generic]) -> Tensor:
    return Tensor(dtype=array.dtype.name, shape=list(array.shape), data=array.tobytes())


def ones(*shape: int, dtype: str = "float32") -> Tensor:
    return tensor(np.ones(shape, dtype))


def test_a_fitting_request_is_taken_as_it_is() -> None:
    image = ones(1, 2, 2, 1)
    assert validate({"image": image}, IMAGE) == Inputs(
        (("image", "float32", (1, 2, 2, 1)),), (image.data,), rows=1
    )


def test_the_leading_axis_may_be_left_out() -> None:
    inputs = validate({"image": ones(2, 2, 1)}, IMAGE)
    assert isinstance(inputs, Inputs)
    assert inputs.signature == (("image", "float32", (1, 2, 2, 1)),)


def test_several_rows_are_counted() -> None:
    inputs = validate({"image": ones(3, 2, 2, 1)}, IMAGE)
    assert isinstance(inputs, Inputs)
    assert inputs.rows == 3


@pytest.mark.parametrize(
    ("tensors", "reason"),
    [
        ({}, "takes inputs 'image', got "),
        ({"picture": ones(1, 2, 2, 1)}, "takes inputs 'image', got 'picture'"),
        ({"image": ones(1, 2, 2, 1), "more": ones(1)}, "got 'image', 'more'"),
        ({"image": ones(1, 2, 2, 1, dtype="float64")}, "is float32, got float64"),
        ({"image": ones(1, 2, 2, 1, dtype="uint8")}, "is float32, got uint8"),
        ({"image": ones(1, 3, 3, 1)}, r"has shape \[-1, 2, 2, 1\].*got \[1, 3, 3, 1\]"),
        ({"image": ones(2, 2)}, r"got \[2, 2\]"),
        ({"image": ones(0, 2, 2, 1)}, "is empty"),
        ({"image": ones(129, 2, 2, 1)}, "129 rows in one request.*at most 128"),
        ({"image": tensor(np.full((1, 2, 2, 1), np.nan, "float32"))}, "holds NaN"),
    ],
)
def test_what_does_not_fit_is_refused_with_its_reason(
    tensors: dict[str, Tensor], reason: str
) -> None:
    refused = validate(tensors, IMAGE)
    assert isinstance(refused, Invalid)
    assert re.search(reason, refused.reason), refused.reason


def test_one_nan_among_many_numbers_is_found() -> None:
    array = np.ones((1, 2, 2, 1), np.float32)
    array[0, 1, 0, 0] = np.nan
    assert isinstance(validate({"image": tensor(array)}, IMAGE), Invalid)


@pytest.mark.parametrize("dtype", ["float16", "float32", "float64"])
@pytest.mark.parametrize("side", [4, 5000])
def test_nan_is_found_in_small_and_large_tensors_and_infinity_is_a_number(
    dtype: str, side: int
) -> None:
    model = served(TensorSpec("x", dtype, (1, side)), batched=False)
    array = np.zeros((1, side), dtype)
    array[0, :2] = [np.inf, -np.inf]
    assert isinstance(validate({"x": tensor(array)}, model), Inputs)
    array[0, -1] = np.nan
    assert validate({"x": tensor(array)}, model) == Invalid("input 'x' holds NaN")


def test_integers_are_not_searched_for_nan() -> None:
    ids = served(TensorSpec("ids", "int32", (-1, -1)))
    assert isinstance(validate({"ids": ones(1, 5, dtype="int32")}, ids), Inputs)


@pytest.mark.parametrize(
    ("dtype", "fits", "too_much"),
    [
        ("float32", 2**24, 2**24 + 1),
        ("float64", -(2**53), 2**53 + 1),
        ("float16", 2**11, 2**11 + 1),
        ("int32", -(2**31), 2**31),
        ("uint8", 255, -1),
        ("uint64", 2**62, -1),
    ],
)
def test_whole_numbers_of_a_list_become_what_the_model_takes_if_that_holds_them(
    dtype: str, fits: int, too_much: int
) -> None:
    model = served(TensorSpec("x", dtype, (-1, 2)))
    inputs = validate({"x": tensor(np.array([[1, fits]], np.int64))}, model)
    assert isinstance(inputs, Inputs)
    assert inputs.signature == (("x", dtype, (1, 2)),)
    assert np.frombuffer(inputs.buffers[0], dtype).tolist() == [1, fits]
    refused = validate({"x": tensor(np.array([[1, too_much]], np.int64))}, model)
    assert refused == Invalid(f"input 'x' is {dtype}, got int64")


def test_whole_numbers_are_no_truths() -> None:
    flags = served(TensorSpec("flags", "bool", (-1, 2)))
    assert isinstance(validate({"flags": ones(1, 2, dtype="int64")}, flags), Invalid)


def test_inputs_come_in_the_order_of_the_model_and_must_agree_on_rows() -> None:
    two = served(TensorSpec("b", "float32", (-1, 1)), TensorSpec("a", "int8", (-1, 2)))
    b, a = ones(2, 1), ones(2, 2, dtype="int8")
    inputs = validate({"a": a, "b": b}, two)
    assert isinstance(inputs, Inputs)
    assert inputs.buffers == (b.data, a.data)
    assert inputs.size_bytes == 12
    refused = validate({"a": ones(1, 2, dtype="int8"), "b": b}, two)
    assert refused == Invalid("the inputs differ in their first axis: [1, 2]")


def test_a_model_of_any_rank_takes_any_shape() -> None:
    anything = served(TensorSpec("x", "float32", None), batched=False)
    inputs = validate({"x": ones(7, 3, 2)}, anything)
    assert isinstance(inputs, Inputs)
    assert inputs.rows == 1


@pytest.mark.parametrize(
    ("max_rows", "sizes"),
    [(1, (1,)), (2, (1, 2)), (8, (1, 2, 4, 8)), (50, (1, 2, 4, 8, 16, 32, 50))],
)
def test_batches_are_padded_to_few_sizes(max_rows: int, sizes: tuple[int, ...]) -> None:
    assert padded_sizes(max_rows) == sizes
    for rows in range(1, max_rows + 1):
        padded = padded_size(rows, max_rows)
        assert padded in sizes
        assert padded == min(size for size in sizes if size >= rows)


@pytest.mark.parametrize("dtype", ["float16", "float32", "float64"])
@pytest.mark.parametrize("items", [4, 1000, 5000, 20_000])
def test_a_nan_is_found_among_infinities_and_huge_numbers_and_they_are_no_nan(
    dtype: str, items: int
) -> None:
    values = np.zeros((1, items), dtype)
    values[0, :3] = np.inf, -np.inf, np.finfo(dtype).max
    spec = ModelSpec((TensorSpec("x", dtype, (-1, -1)),), (), batched=True)
    model = ServedModel("m", "1", spec, 8)

    def checked() -> Inputs | Invalid:
        data = values.tobytes()
        tensor = Tensor(dtype=dtype, shape=list(values.shape), data=data)
        return validate({"x": tensor}, model)

    assert isinstance(checked(), Inputs)
    values[0, items // 2 + 1] = np.nan
    assert checked() == Invalid("input 'x' holds NaN")
