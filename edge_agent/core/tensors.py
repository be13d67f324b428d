"""What a model's inputs and outputs are, and arrays made to fit them.

A caller speaks in real numbers: what a quantised tensor stores is made of them here,
and they of it. What would silently change a value is an error.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Final

import numpy as np

from edge_agent.core.answers import Array

Shape = tuple[int, ...]

_EXACT_IN_FLOAT32: Final = 2**24


class BadInput(ValueError):
    """The inputs are not those the model takes; says which and what it wants."""


@dataclass(frozen=True, slots=True)
class TensorSpec:
    """One input or output as the model holds it.

    Attributes:
        dtype: as stored. Arrays of exactly this dtype are taken as they are.
        shape: its sides, -1 where any length will do.
        scale: of a quantised tensor, `real = (stored - zero_point) * scale`; else
            None. Any other dtype given to a quantised input counts as real
            numbers, and a quantised output comes back as float32.
        zero_point: see `scale`.
    """

    dtype: np.dtype[Any]
    shape: Shape
    scale: float | None = None
    zero_point: int = 0


def fit(name: str, spec: TensorSpec, value: Array) -> Array:
    """An input as the model stores it.

    Raises:
        BadInput: its shape, dtype or a value is not what the model takes.
    """
    if value.shape != spec.shape:
        _check_shape(name, spec, value.shape)
    if value.dtype == spec.dtype:
        if spec.dtype.kind == "f":
            _check_finite(name, value)
        return value
    if value.dtype.kind not in "fiub":
        raise BadInput(f"input {name!r} is of {value.dtype}, not of numbers")
    if spec.scale is not None:
        return _quantised(name, spec, value, spec.scale)
    if spec.dtype.kind == "f":
        return _as_float(name, spec.dtype, value)
    return _as_whole(name, spec.dtype, value)


def _check_shape(name: str, spec: TensorSpec, shape: Shape) -> None:
    wanted = spec.shape
    fits = len(shape) == len(wanted) and all(
        side == want or (want == -1 and side > 0)
        for side, want in zip(shape, wanted, strict=True)
    )
    if not fits:
        shown = [side if side >= 0 else "any" for side in wanted]
        raise BadInput(
            f"input {name!r} has shape {list(shape)}, the model takes "
            f"[{', '.join(map(str, shown))}]"
        )


def _check_finite(name: str, value: Array) -> None:
    finite = np.isfinite(value)
    if not finite.all():
        bad = value.size - int(finite.sum())
        raise BadInput(
            f"input {name!r} holds NaN or infinity in {bad} of {value.size} items"
        )


def _quantised(name: str, spec: TensorSpec, value: Array, scale: float) -> Array:
    _check_finite(name, value)
    bounds = np.iinfo(spec.dtype)
    stored = np.rint(value.astype(np.float64) / scale) + spec.zero_point
    clipped: Array = np.clip(stored, bounds.min, bounds.max).astype(spec.dtype)
    return clipped


def _as_float(name: str, dtype: np.dtype[Any], value: Array) -> Array:
    if value.dtype.kind in "iu" and value.dtype.itemsize > 2 and value.size:
        most = max(abs(int(value.min())), abs(int(value.max())))
        if most > _EXACT_IN_FLOAT32 and dtype.itemsize < 8:
            raise BadInput(
                f"input {name!r} holds {most}, which {dtype} cannot hold exactly"
            )
    with np.errstate(over="ignore"):
        cast = value.astype(dtype)
    _check_finite(name, cast)
    return cast


def _as_whole(name: str, dtype: np.dtype[Any], value: Array) -> Array:
    if dtype.kind == "b" or value.dtype.kind not in "iu":
        raise BadInput(f"input {name!r} is of {value.dtype}, the model takes {dtype}")
    bounds = np.iinfo(dtype)
    if value.size and not (
        bounds.min <= int(value.min()) and int(value.max()) <= bounds.max
    ):
        raise BadInput(f"input {name!r} holds numbers beyond {dtype}")
    return value.astype(dtype)


def real(spec: TensorSpec, stored: Array) -> Array:
    """An output as real numbers: a quantised one as float32."""
    if spec.scale is None:
        return stored
    shifted = np.asarray(stored, np.float32) - np.float32(spec.zero_point)
    return shifted * np.float32(spec.scale)
