"""What a batch gave, cut back into one set of outputs for each request."""

from __future__ import annotations

from dataclasses import dataclass
from math import prod

from broker.messages import ITEM_BYTES, Tensor

Shape = tuple[int, ...]


@dataclass(frozen=True, slots=True)
class OutputBlock:
    """One output of a whole batch: each request's part behind the other.

    `shapes` holds one shape for all requests, or one for each of them. `data` is
    little-endian, in C order.
    """

    name: str
    dtype: str
    shapes: tuple[Shape, ...]
    data: memoryview

    def part(self, index: int) -> Tensor:
        """The part of one request."""
        size = ITEM_BYTES[self.dtype]
        if len(self.shapes) == 1:
            shape = self.shapes[0]
            start = index * prod(shape) * size
        else:
            shape = self.shapes[index]
            start = sum(map(prod, self.shapes[:index])) * size
        data = bytes(self.data[start : start + prod(shape) * size])
        return Tensor(dtype=self.dtype, shape=list(shape), data=data)


@dataclass(frozen=True, slots=True)
class BatchOutputs:
    """All outputs of a batch of `count` requests, and how long the model took."""

    count: int
    blocks: tuple[OutputBlock, ...]
    infer_ms: float

    def part(self, index: int) -> dict[str, Tensor]:
        """The outputs of one request, by name."""
        return {block.name: block.part(index) for block in self.blocks}
