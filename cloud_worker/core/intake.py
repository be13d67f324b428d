"""Decide whether a request fits its model, before anything is run on it."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from functools import lru_cache
from math import isnan
from typing import Final, Literal

import numpy as np

from broker.messages import Tensor
from cloud_worker.core.line import Signature
from cloud_worker.core.spec import ANY, ServedModel, TensorSpec

LISTED: Final = "int64"
SMALL_BYTES: Final = 1024
# Above this a BLAS may call up threads for the sum of squares.
MOST_SQUARED: Final = 8192
SHAPES_REMEMBERED: Final = 4096
_SMALL_FLOATS: Final[Mapping[str, Literal["f", "d"]]] = {"float32": "f", "float64": "d"}


@dataclass(frozen=True, slots=True)
class Inputs:
    """A request's tensors in the order of the model's inputs.

    `buffers` are little-endian bytes in C order, as `signature` describes them;
    `rows` is how much of a batch they fill.
    """

    signature: Signature
    buffers: tuple[bytes, ...]
    rows: int

    @property
    def size_bytes(self) -> int:
        """The size of all buffers."""
        return sum(map(len, self.buffers))


@dataclass(frozen=True, slots=True)
class Invalid:
    """The request cannot be run on this model; `reason` is for the device's owner."""

    reason: str


def validate(tensors: Mapping[str, Tensor], model: ServedModel) -> Inputs | Invalid:
    """Check names, dtypes, shapes and values against the model's signature.

    The leading axis of 1 may be left out, and whole numbers from a list, which are
    int64, become what the model takes where that holds them.
    """
    inputs = model.spec.inputs
    given = [
        _typed(tensors[spec.name], spec) for spec in inputs if spec.name in tensors
    ]
    if not len(given) == len(inputs) == len(tensors):
        return Invalid(
            f"model {model.name!r} takes inputs "
            f"{_listed([each.name for each in inputs])}, "
            f"got {_listed(tensors.keys())}"
        )
    signature = []
    for spec, tensor in zip(inputs, given, strict=True):
        shape = _fit(tensor, spec)
        if isinstance(shape, Invalid):
            return shape
        signature.append((spec.name, spec.dtype, shape))
    rows = _rows(tuple(signature), model)
    if isinstance(rows, Invalid):
        return rows
    return Inputs(
        signature=tuple(signature),
        buffers=tuple([tensor.data for tensor in given]),
        rows=rows,
    )


def _typed(tensor: Tensor, spec: TensorSpec) -> Tensor:
    """Whole numbers in the dtype of the input, as an edge model takes them; else as is.

    A list in JSON has no dtype, so that its owner cannot say what he means.
    """
    if tensor.dtype != LISTED or spec.dtype in {LISTED, "bool"}:
        return tensor
    items = np.frombuffer(tensor.data, LISTED)
    dtype = np.dtype(spec.dtype)
    if dtype.kind == "f":
        # Up to here every whole number is one of its own.
        most = 2 ** (np.finfo(dtype).nmant + 1)
        least = -most
    else:
        least, most = int(np.iinfo(dtype).min), int(np.iinfo(dtype).max)
    if items.size and not (least <= int(items.min()) and int(items.max()) <= most):
        return tensor
    return Tensor(
        dtype=spec.dtype, shape=tensor.shape, data=items.astype(dtype).tobytes()
    )


def _fit(tensor: Tensor, spec: TensorSpec) -> tuple[int, ...] | Invalid:
    """The shape to run with, or why there is none."""
    shape = _shape(tensor.dtype, tuple(tensor.shape), spec)
    if not isinstance(shape, Invalid) and _has_nan(tensor):
        return Invalid(f"input {spec.name!r} holds NaN")
    return shape


@lru_cache(maxsize=SHAPES_REMEMBERED)
def _shape(
    dtype: str, shape: tuple[int, ...], spec: TensorSpec
) -> tuple[int, ...] | Invalid:
    """As `_fit`, as far as it does not look at the data: alike for most requests."""
    if dtype != spec.dtype:
        return Invalid(f"input {spec.name!r} is {spec.dtype}, got {dtype}")
    if 0 in shape:
        return Invalid(f"input {spec.name!r} is empty: shape {list(shape)}")
    if spec.shape is None or _matches(shape, spec.shape):
        return shape
    if spec.shape[:1] in {(1,), (ANY,)} and _matches((1, *shape), spec.shape):
        return (1, *shape)
    return Invalid(
        f"input {spec.name!r} has shape {list(spec.shape)} (-1 is any length), "
        f"got {list(shape)}"
    )


def _matches(shape: tuple[int, ...], wanted: tuple[int, ...]) -> bool:
    return len(shape) == len(wanted) and all(
        want in {ANY, side} for side, want in zip(shape, wanted, strict=True)
    )


def _has_nan(tensor: Tensor) -> bool:
    if not tensor.dtype.startswith("float"):
        return False
    code = _SMALL_FLOATS.get(tensor.dtype)
    if code is not None and len(tensor.data) <= SMALL_BYTES:
        # After a pause, numpy's first call costs ten times this sum.
        total = sum(memoryview(tensor.data).cast(code))
        if not isnan(total):
            return False
    items = np.frombuffer(tensor.data, tensor.dtype)
    if code is not None and len(items) <= MOST_SQUARED:
        # No square is negative, so no two infinities make a NaN of their sum. Unlike
        # `dot`, this does not warn of an overflow, and to silence it costs as much.
        return isnan(np.vdot(items, items))
    # `min` is NaN if any item is, and needs no array of flags.
    return bool(np.isnan(items.min()))


def _rows(signature: Signature, model: ServedModel) -> int | Invalid:
    if not model.spec.batched:
        return 1
    lengths = {shape[0] for _, _, shape in signature}
    if len(lengths) != 1:
        return Invalid(f"the inputs differ in their first axis: {sorted(lengths)}")
    rows = lengths.pop()
    if rows > model.most_rows:
        return Invalid(
            f"{rows} rows in one request, model {model.name!r} takes at most "
            f"{model.most_rows}: send several requests"
        )
    return rows


def _listed(names: Iterable[str]) -> str:
    shown = sorted(map(repr, names))
    return ", ".join(shown[:8]) + (" …" if len(shown) > 8 else "")
