"""What a served model takes and gives, and at which batch sizes it is run."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

from bundle.manifest import Decision, ImageRecipe

ANY: Final = -1
MAX_PARTS: Final = 16


CostsMs = tuple[tuple[int, float], ...]
"""Milliseconds of one call at each padded size, in rows."""


@dataclass(frozen=True, slots=True)
class TensorSpec:
    """One input or output of a model.

    `shape` has -1 where any length will do, and is None when the model accepts
    any rank.
    """

    name: str
    dtype: str
    shape: tuple[int, ...] | None


@dataclass(frozen=True, slots=True)
class ModelSpec:
    """The signature of a loaded model.

    `batched` says that the first axis of every input and output is the batch, so
    that rows of several requests may be stacked. `costs_ms` holds the time of one
    call at each padded batch size, as measured at warm-up; `item_costs_ms` holds the
    same for each length to which its inputs are padded, with the bytes of one row.
    """

    inputs: tuple[TensorSpec, ...]
    outputs: tuple[TensorSpec, ...]
    batched: bool
    costs_ms: CostsMs = ()
    item_costs_ms: tuple[tuple[int, CostsMs], ...] = ()

    @property
    def sized_by_item(self) -> bool:
        """Whether items differ in size: an input has a free axis beside the batch."""
        return any(each.shape is None or ANY in each.shape[1:] for each in self.inputs)


@dataclass(frozen=True, slots=True)
class Padding:
    """Pad a free axis of the inputs with `value` to the next of `sizes`, ascending."""

    axis: int
    sizes: tuple[int, ...]
    value: float = 0.0


@dataclass(frozen=True, slots=True)
class ServedModel:
    """A model as the pool serves it: its signature and what `model.json` adds.

    A request of more than `max_batch` rows is split, up to `max_request` of them.
    `capture`: whether answered requests may be kept as examples; None: not said.
    """

    name: str
    version: str
    spec: ModelSpec
    max_batch: int
    preprocess: ImageRecipe | None = None
    decision: Decision | None = None
    labels: tuple[str, ...] = ()
    max_request: int | None = None
    padding: Padding | None = None
    capture: bool | None = None

    @property
    def most_rows(self) -> int:
        """Rows that one request may have."""
        return self.max_request or MAX_PARTS * self.max_batch

    @property
    def key(self) -> str:
        """What runners and costs know it by."""
        return f"{self.name}/{self.version}"


def padded_sizes(max_rows: int) -> tuple[int, ...]:
    """The batch sizes a model is warmed at: powers of two, then `max_rows` itself."""
    sizes = [1]
    while sizes[-1] * 2 < max_rows:
        sizes.append(sizes[-1] * 2)
    if max_rows > 1:
        sizes.append(max_rows)
    return tuple(sizes)


def padded_size(rows: int, max_rows: int) -> int:
    """The smallest size of `padded_sizes(max_rows)` that holds `rows`.

    More rows than `max_rows` are not padded.
    """
    if rows >= max_rows:
        return rows
    return min(1 << (rows - 1).bit_length(), max_rows)
