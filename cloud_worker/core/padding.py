"""Pad inputs of a free length to a few lengths, so that requests may share batches.

Only for models whose owner says so in `model.json`, and whose outputs have no free
axis beside the batch: what comes back is then the request's own, without its padding.
"""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from cloud_worker.core.intake import Inputs
from cloud_worker.core.line import Signature
from cloud_worker.core.spec import ANY, ModelSpec, Padding, TensorSpec


@dataclass(frozen=True, slots=True)
class Unpaddable:
    """The model cannot be padded so; `reason` is for the operator."""

    reason: str


def check_padding(padding: Padding, spec: ModelSpec) -> Unpaddable | None:
    """Why this padding does not suit a model; None if it does."""
    if not spec.batched:
        return Unpaddable("the model's first axis is no batch, so nothing is gained")
    padded = [each for each in spec.inputs if _is_padded(each, padding)]
    if not padded:
        return Unpaddable(f"no input has a free axis {padding.axis}")
    for output in spec.outputs:
        if output.shape is None or ANY in output.shape[1:]:
            return Unpaddable(
                f"output {output.name!r} has a free axis beside the batch, so it may "
                "depend on the padding"
            )
    for each in padded:
        with np.errstate(all="ignore"):
            stored = np.array(padding.value).astype(each.dtype)
        if float(stored) != padding.value:
            return Unpaddable(
                f"input {each.name!r} is {each.dtype}, which has no {padding.value:g}"
            )
    return None


def at_each_size(
    padding: Padding, specs: Sequence[TensorSpec]
) -> list[tuple[TensorSpec, ...]]:
    """The inputs as they come padded, shortest first; none where others stay free.

    Where several inputs are padded, each by itself, only the equal lengths are here.
    """
    if not any(_is_padded(each, padding) for each in specs):
        return []
    sized = [
        tuple(_sized(each, padding, size) for each in specs) for size in padding.sizes
    ]
    return [
        each
        for each in sized
        if not any(one.shape is None or ANY in one.shape[1:] for one in each)
    ]


def pad(inputs: Inputs, padding: Padding, specs: Sequence[TensorSpec]) -> Inputs:
    """Pad each input of a free length to the next of the sizes.

    What is longer than all of them stays as it is.
    """
    signature: Signature = ()
    buffers: tuple[bytes, ...] = ()
    for (name, dtype, shape), buffer, spec in zip(
        inputs.signature, inputs.buffers, specs, strict=True
    ):
        longer = _longer(shape, spec, padding)
        signature += ((name, dtype, longer),)
        if longer == shape:
            buffers += (buffer,)
            continue
        array = np.full(longer, padding.value, dtype)
        where = tuple(map(slice, shape))
        array[where] = np.frombuffer(buffer, dtype).reshape(shape)
        buffers += (array.tobytes(),)
    return Inputs(signature, buffers, inputs.rows)


def _is_padded(spec: TensorSpec, padding: Padding) -> bool:
    axes = spec.shape or ()
    return len(axes) > padding.axis and axes[padding.axis] == ANY


def _sized(spec: TensorSpec, padding: Padding, size: int) -> TensorSpec:
    if not _is_padded(spec, padding):
        return spec
    shape = list(spec.shape or ())
    shape[padding.axis] = size
    return TensorSpec(spec.name, spec.dtype, tuple(shape))


def _longer(
    shape: tuple[int, ...], spec: TensorSpec, padding: Padding
) -> tuple[int, ...]:
    """The shape of an input once it is padded."""
    if not _is_padded(spec, padding):
        return shape
    place = bisect_left(padding.sizes, shape[padding.axis])
    if place == len(padding.sizes):
        return shape
    return (*shape[: padding.axis], padding.sizes[place], *shape[padding.axis + 1 :])
