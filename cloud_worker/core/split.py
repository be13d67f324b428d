"""Split a request that is too big for one batch, and join what its parts gave.

The parts run as requests of their own, in several batches and in any order. The
request ends once: when its last part is done, or with the first that fails.
"""

from __future__ import annotations

from collections.abc import Iterator
from math import prod

from broker.messages import ITEM_BYTES, Tensor
from cloud_worker.core.intake import Inputs
from cloud_worker.core.outputs import BatchOutputs, OutputBlock


class Unjoinable(Exception):
    """The parts of a request gave outputs that do not fit together."""


class Joint:
    """What the parts of one request have given so far.

    Args:
        parts: how many there are.
    """

    def __init__(self, parts: int) -> None:
        self._outputs: list[dict[str, Tensor] | None] = [None] * parts
        self._missing = parts
        self._infer_ms = 0.0
        self._ended = False

    @property
    def ended(self) -> bool:
        """Whether the request has its outcome, so that the parts left are of no use."""
        return self._ended

    def end(self) -> bool:
        """End the request; False when another part has ended it already."""
        was, self._ended = self._ended, True
        return not was

    def put(
        self, index: int, outputs: dict[str, Tensor], infer_ms: float
    ) -> BatchOutputs | None:
        """Take the outputs of one part; with the last one, those of the request.

        Raises:
            Unjoinable: the outputs of the parts differ in name, dtype or shape.
        """
        if self._outputs[index] is None:
            self._missing -= 1
            self._infer_ms += infer_ms
        self._outputs[index] = outputs
        if self._missing or self._ended:
            return None
        whole = [each for each in self._outputs if each is not None]
        blocks = tuple(_joined(name, whole) for name in whole[0])
        return BatchOutputs(1, blocks, self._infer_ms)


def split(inputs: Inputs, max_rows: int) -> Iterator[Inputs]:
    """Cut inputs along their first axis into parts of at most `max_rows` rows."""
    for first in range(0, inputs.rows, max_rows):
        rows = min(max_rows, inputs.rows - first)
        buffers = []
        for buffer in inputs.buffers:
            row_bytes = len(buffer) // inputs.rows
            buffers.append(buffer[first * row_bytes : (first + rows) * row_bytes])
        yield Inputs(
            signature=tuple(
                (name, dtype, (rows, *shape[1:]))
                for name, dtype, shape in inputs.signature
            ),
            buffers=tuple(buffers),
            rows=rows,
        )


def _joined(name: str, parts: list[dict[str, Tensor]]) -> OutputBlock:
    """One output of all parts, each behind the other along the first axis."""
    first = parts[0][name]
    rows = 0
    for part in parts:
        tensor = part.get(name)
        if (
            tensor is None
            or tensor.dtype != first.dtype
            or tensor.shape[1:] != first.shape[1:]
        ):
            raise Unjoinable(
                f"output {name!r} differs in dtype or shape between the batches in "
                "which this request was run: send fewer rows in one request"
            )
        rows += tensor.shape[0]
    shape = (rows, *first.shape[1:])
    data = b"".join(part[name].data for part in parts)
    if len(data) != prod(shape) * ITEM_BYTES[first.dtype]:
        raise Unjoinable(f"output {name!r} has {len(data)} bytes for shape {shape}")
    return OutputBlock(name, first.dtype, (shape,), memoryview(data))
