"""Run a batch on a runner, whichever it is: stacked and padded, or one by one."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import replace
from math import prod
from typing import Final

import numpy as np
from numpy.typing import NDArray

from broker.messages import ITEM_BYTES
from cloud_worker.adapters.runtime import Arrays, CannotServe, RunFailed, Runner
from cloud_worker.core.line import Signature
from cloud_worker.core.outputs import BatchOutputs, OutputBlock
from cloud_worker.core.padding import at_each_size
from cloud_worker.core.spec import (
    ANY,
    CostsMs,
    ModelSpec,
    Padding,
    TensorSpec,
    padded_size,
    padded_sizes,
)

WARM_CALLS: Final = 3
# A batch of more bytes is made only where `max_batch_bytes` was raised.
WARM_BYTES: Final = 64 * 1024 * 1024
# Lengths that are not warmed by then meet their first request as they are.
LENGTHS_S: Final = 20.0


class WarmModel:
    """A loaded model that has run every batch size it will be asked for.

    Args:
        runner: the model in its runtime.
        max_batch: rows of the largest batch.
        padding: how its inputs of a free length come.

    Raises:
        CannotServe: the model fails on inputs of zeros.
    """

    def __init__(
        self, runner: Runner, max_batch: int, padding: Padding | None = None
    ) -> None:
        self._runner = runner
        self._max_batch = max_batch
        self._padding = padding
        self.spec = _warmed(runner, max_batch)
        if padding is not None and self.spec.batched:
            self.spec = replace(
                self.spec, item_costs_ms=self._warmed_lengths(padding, LENGTHS_S)
            )

    def time_again(self) -> None:
        """Measure the costs anew: they were measured while the processor was away.

        Raises:
            CannotServe: the model fails on inputs of zeros.
        """
        inputs = self.spec.inputs
        costs = []
        for size, _ in self.spec.costs_ms:
            _, cost_ms = _timed(self._runner, _all_zeros(inputs, size), calls=1)
            costs.append((size, cost_ms))
        self.spec = replace(self.spec, costs_ms=tuple(costs))
        if self._padding is not None and self.spec.item_costs_ms:
            again = self._warmed_lengths(self._padding, LENGTHS_S, calls=1)
            self.spec = replace(self.spec, item_costs_ms=again)

    def run(
        self, signature: Signature, count: int, body: bytes | memoryview
    ) -> BatchOutputs:
        """Run `count` requests of one signature.

        Args:
            signature: names, dtypes and shapes of one request's inputs.
            count: how many requests.
            body: for each input in turn, the buffers of all requests.

        Raises:
            RunFailed: the runtime gave an error, or outputs that fit no batch.
        """
        arrays = _arrays(signature, count, memoryview(body))
        started = time.perf_counter()
        if self.spec.batched:
            outputs = self._stacked(arrays, count)
        else:
            outputs = _one_by_one(self._runner, arrays, count)
        return replace(outputs, infer_ms=(time.perf_counter() - started) * 1000)

    def _warmed_lengths(
        self, padding: Padding, within_s: float, *, calls: int = WARM_CALLS
    ) -> tuple[tuple[int, CostsMs], ...]:
        """Run every batch size at every length; what each cost, by bytes of a row."""
        until = time.perf_counter() + within_s
        found: list[tuple[int, CostsMs]] = []
        for inputs in at_each_size(padding, self.spec.inputs):
            costs: list[tuple[int, float]] = []
            for size in _warm_sizes(inputs, self._max_batch):
                if time.perf_counter() > until:
                    return tuple(found)
                try:
                    _, cost_ms = _timed(
                        self._runner, _all_zeros(inputs, size), calls=calls
                    )
                except CannotServe:
                    # It need not bear inputs that are nothing but zeros, or so short.
                    break
                costs.append((size, cost_ms))
            else:
                found.append((_row_bytes(inputs), tuple(costs)))
        return tuple(found)

    def _stacked(self, arrays: Arrays, count: int) -> BatchOutputs:
        """All rows in one call, padded where that is quicker."""
        each_rows = next(iter(arrays.values())).shape[1]
        rows = size = count * each_rows
        if self._runner.wants_padding:
            size = padded_size(rows, self._max_batch)
        outputs = self._runner.run(
            {
                name: _padded(array.reshape(rows, *array.shape[2:]), size)
                for name, array in arrays.items()
            }
        )
        blocks = []
        for name, value in outputs.items():
            if value.shape[:1] != (size,):
                raise RunFailed(
                    f"output {name!r} has shape {list(value.shape)} for {size} rows"
                )
            shape = (each_rows, *value.shape[1:])
            blocks.append(_block(name, (shape,), value[:rows]))
        return BatchOutputs(count, tuple(blocks), 0.0)


def _arrays(signature: Signature, count: int, body: memoryview) -> Arrays:
    """Each input of the batch as [count, *shape of one request]."""
    arrays: Arrays = {}
    start = 0
    for name, dtype, shape in signature:
        size = count * prod(shape) * ITEM_BYTES[dtype]
        flat = np.frombuffer(body[start : start + size], np.dtype(dtype))
        arrays[name] = flat.reshape(count, *shape)
        start += size
    return arrays


def _one_by_one(runner: Runner, arrays: Arrays, count: int) -> BatchOutputs:
    each = [
        runner.run({name: array[index] for name, array in arrays.items()})
        for index in range(count)
    ]
    blocks = []
    for name in each[0]:
        values = [outputs[name] for outputs in each]
        shapes = tuple(value.shape for value in values)
        if len(set(shapes)) == 1:
            shapes = shapes[:1]
        flat = np.concatenate([value.reshape(-1) for value in values])
        blocks.append(_block(name, shapes, flat))
    return BatchOutputs(count, tuple(blocks), 0.0)


def _block(
    name: str, shapes: tuple[tuple[int, ...], ...], values: NDArray[np.generic]
) -> OutputBlock:
    flat = np.ascontiguousarray(values)
    return OutputBlock(
        name, flat.dtype.name, shapes, flat.reshape(-1).view(np.uint8).data
    )


def _padded(rows: NDArray[np.generic], size: int) -> NDArray[np.generic]:
    missing = size - len(rows)
    if missing <= 0:
        return rows
    # Repeating a real row cannot be worse for the model than the row itself.
    return np.concatenate([rows, np.repeat(rows[-1:], missing, axis=0)])


def _warmed(runner: Runner, max_batch: int) -> ModelSpec:
    """Run every batch size until it is fast, and see whether rows may be stacked.

    Raises:
        CannotServe: the model fails on inputs of zeros.
    """
    spec = runner.spec
    if any(each.shape is None or ANY in each.shape[1:] for each in spec.inputs):
        # No input is known to be right for it; the first request is its warm-up.
        return spec
    sizes = _warm_sizes(spec.inputs, max_batch) if spec.batched else [1]
    costs = []
    for size in sizes:
        inputs = _all_zeros(spec.inputs, size)
        outputs, cost_ms = _timed(runner, inputs, calls=WARM_CALLS)
        if spec.batched and any(
            value.shape[:1] != (size,) for value in outputs.values()
        ):
            return replace(spec, batched=False)
        costs.append((size, cost_ms))
    return replace(spec, costs_ms=tuple(costs))


def _warm_sizes(inputs: Sequence[TensorSpec], max_batch: int) -> list[int]:
    row_bytes = _row_bytes(inputs)
    return [
        size
        for size in padded_sizes(max_batch)
        if size == 1 or size * row_bytes <= WARM_BYTES
    ]


def _timed(runner: Runner, inputs: Arrays, *, calls: int) -> tuple[Arrays, float]:
    best_ms = float("inf")
    outputs: Arrays = {}
    for _ in range(calls):
        started = time.perf_counter()
        try:
            outputs = runner.run(inputs)
        except RunFailed as error:
            raise CannotServe(f"it fails on inputs of zeros: {error}") from error
        best_ms = min(best_ms, (time.perf_counter() - started) * 1000)
    return outputs, best_ms


def _all_zeros(inputs: Sequence[TensorSpec], size: int) -> Arrays:
    return {each.name: _zeros(each, size) for each in inputs}


def _row_bytes(inputs: Sequence[TensorSpec]) -> int:
    return sum(prod((each.shape or ())[1:]) * ITEM_BYTES[each.dtype] for each in inputs)


def _zeros(spec: TensorSpec, size: int) -> NDArray[np.generic]:
    sides = spec.shape or ()
    shape = (size if sides[:1] == (ANY,) else sides[0], *sides[1:]) if sides else ()
    return np.zeros(shape, spec.dtype)
