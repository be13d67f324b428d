"""Arrays as devices and the wire write them, to numpy and back. Numbers only."""

from __future__ import annotations

import base64
from typing import Any, Final, cast

import numpy as np

from broker.messages import ITEM_BYTES, MAX_RANK, Tensor
from edge_agent.core.answers import Array

LIST_ITEMS_IN_JSON: Final = 4096
_LITTLE: Final = {name: np.dtype(name).newbyteorder("<") for name in ITEM_BYTES}
# Asking a dtype for its name costs more than copying a small array.
_WIRE_NAMES: Final = {
    dtype: name
    for name in ITEM_BYTES
    for dtype in (np.dtype(name), np.dtype(name).newbyteorder(">"))
}


class NotAnArray(ValueError):
    """It is not an array of numbers that a model could take."""


def from_list(value: object) -> Array:
    """A number or nested lists of numbers as an array: bool, int64 or float32.

    Raises:
        NotAnArray: ragged, too deep, not all numbers, or too large for the dtype.
    """
    if _depth(value) > MAX_RANK:
        raise NotAnArray(f"lists are nested deeper than {MAX_RANK}")
    try:
        array = np.array(value)
    except (ValueError, OverflowError) as error:
        raise NotAnArray("lists are ragged: rows differ in length or depth") from error
    if array.dtype in (np.bool_, np.int64):
        return array
    if array.dtype == np.float64:
        with np.errstate(over="ignore"):
            single = array.astype(np.float32)
        # Ints of 64 bits and more become floats too; all must fit.
        _check_finite(single, "a number beyond float32, NaN or infinity")
        return single
    raise NotAnArray("lists hold something else than numbers of at most 64 bits")


def from_wire_tensor(tensor: Tensor) -> Array:
    """One tensor of the wire as an array of the native byte order, read-only."""
    if tensor.dtype == "bool":
        # A byte that is neither 0 nor 1 would be a bool that equals neither.
        flat: Array = np.frombuffer(tensor.data, np.uint8) != 0
    else:
        little = _LITTLE[tensor.dtype]
        flat = np.frombuffer(tensor.data, little).astype(tensor.dtype, copy=False)
    return flat.reshape(tensor.shape)


def to_wire_tensor(array: Array) -> Tensor:
    """One array as it travels: little-endian items in row order.

    Raises:
        NotAnArray: its dtype is not a number's or its rank is over `MAX_RANK`.
    """
    name = _WIRE_NAMES.get(array.dtype)
    if name is None or array.ndim > MAX_RANK:
        raise NotAnArray(
            f"an array of {array.dtype.name} and rank {array.ndim} cannot travel: use "
            f"one of {', '.join(ITEM_BYTES)} and a rank of at most {MAX_RANK}"
        )
    data = array.astype(_LITTLE[name], copy=False).tobytes()
    return Tensor(dtype=name, shape=list(array.shape), data=data)


def check_finite(array: Array) -> None:
    """Refuse NaN and infinity.

    Raises:
        NotAnArray: there is one; says how many.
    """
    if array.dtype.kind == "f":
        _check_finite(array, "NaN or infinity")


def as_map(array: Array) -> dict[str, Any]:
    """`{"dtype", "shape", "data"}` with the bytes as they are."""
    tensor = to_wire_tensor(array)
    return {"dtype": tensor.dtype, "shape": tensor.shape, "data": tensor.data}


def as_json(array: Array) -> object:
    """What JSON can hold of an array: nested lists where they are short and finite."""
    if array.size <= LIST_ITEMS_IN_JSON and bool(np.isfinite(array).all()):
        return array.tolist()
    fields = as_map(array)
    return {**fields, "data": base64.b64encode(fields["data"]).decode()}


def _check_finite(array: Array, what: str) -> None:
    finite = np.isfinite(array)
    if not finite.all():
        bad = array.size - int(finite.sum())
        raise NotAnArray(f"{bad} of {array.size} items: {what}")


def _depth(value: object) -> int:
    """How deep the first items are nested; numpy finds what is ragged."""
    depth = 0
    while isinstance(value, list) and depth <= MAX_RANK:
        depth += 1
        value = cast("list[object]", value)[0] if value else None
    return depth
