"""Examples with their labels, and what is wrong with them before anything is built."""

from __future__ import annotations

from dataclasses import dataclass, field
from hashlib import blake2b
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from builder.core.refusal import BuildRefused

MAX_NAMED: Final = 10


@dataclass(frozen=True, slots=True, eq=False)
class Labelled:
    """A data set in memory.

    Attributes:
        inputs: [n, ...]; bytes and floats become float32 for the models, `value *
            scale + offset`; other integers (token ids) are int32 and stay as they are.
        labels: int64 [n], each an index into `names`.
        names: the classes, in the order of the models' outputs.
        parts: which part each example belongs to, where the data set says so: indexes
            into `splits.PARTS`, int64 [n]; None leaves the split to the seed.
        skipped: examples that could not be read, by name.
        scale: what a stored value is multiplied by.
        offset: what is then added.
        columns: what each number of a row is called, for people; empty where nobody
            said.
    """

    inputs: NDArray[Any]
    labels: NDArray[np.int64]
    names: tuple[str, ...]
    parts: NDArray[np.int64] | None = None
    skipped: tuple[str, ...] = field(default=())
    scale: float = 1.0
    offset: float = 0.0
    columns: tuple[str, ...] = ()

    def __len__(self) -> int:
        return len(self.inputs)

    @property
    def shape(self) -> tuple[int, ...]:
        """Of one example, as the models take it: grey pictures get their channel."""
        shape: tuple[int, ...] = self.inputs.shape[1:]
        return shape

    @property
    def is_picture(self) -> bool:
        """Whether an example is bytes [height, width, 1 or 3]."""
        return (
            self.inputs.dtype == np.uint8
            and len(self.shape) == 3
            and self.shape[-1] in (1, 3)
        )

    @property
    def vocabulary(self) -> int | None:
        """How many tokens there are, for whole numbers that are ids; else None."""
        whole = np.issubdtype(self.inputs.dtype, np.integer)
        if not whole or self.inputs.dtype == np.uint8:
            return None
        return int(self.inputs.max()) + 1

    def model_inputs(self, rows: NDArray[np.integer[Any]] | slice) -> NDArray[Any]:
        """What the models take for these rows: float32 or int32 [rows, ...]."""
        taken = self.inputs[rows]
        if np.issubdtype(taken.dtype, np.integer) and taken.dtype != np.uint8:
            return taken.astype(np.int32)
        scaled = taken.astype(np.float32) * np.float32(self.scale)
        return scaled + np.float32(self.offset) if self.offset else scaled


def labelled(
    inputs: NDArray[Any],
    labels: NDArray[Any],
    names: tuple[str, ...] | None = None,
    **more: Any,  # noqa: ANN401 - the fields of Labelled, as they are
) -> Labelled:
    """Make a data set of arrays, or say what keeps them from being one.

    Labels may be names; grey pictures may come without their channel.

    Raises:
        BuildRefused: lengths differ, a label is not among the classes, inputs are not
            numbers, one is not finite, or columns are named that are not there.
    """
    inputs, labels = np.asarray(inputs), np.asarray(labels)
    if len(inputs) != len(labels) or labels.ndim != 1:
        raise BuildRefused(
            f"labels do not match: {len(inputs)} examples and labels of shape "
            f"{list(labels.shape)}"
        )
    if not len(inputs):
        raise BuildRefused("the data set is empty")
    if not np.issubdtype(inputs.dtype, np.number):
        raise BuildRefused(f"examples are numbers, got {inputs.dtype}")
    if np.issubdtype(inputs.dtype, np.floating):
        inputs = inputs.astype(np.float32, copy=False)
        if not np.isfinite(inputs).all():
            flat = ~np.isfinite(inputs.reshape(len(inputs), -1)).all(axis=1)
            first = ", ".join(map(str, np.flatnonzero(flat)[:MAX_NAMED]))
            raise BuildRefused(f"examples hold NaN or infinity, rows {first}")
    if inputs.dtype == np.uint8 and inputs.ndim == 3:
        inputs = inputs[..., np.newaxis]
    indexes, found = _indexes(labels, names)
    made = Labelled(inputs, indexes, found, **more)
    if made.columns and made.shape != (len(made.columns),):
        raise BuildRefused(
            f"{len(made.columns)} columns are named, and an example has the shape "
            f"{list(made.shape)}"
        )
    return made


def check_classes(
    data: Labelled,
    rows: NDArray[np.int64] | None = None,
    part: str = "data set",
    *,
    least: int = 1,
) -> None:
    """Refuse what no classifier can be built or measured on.

    Args:
        data: any.
        rows: which of it; all when None.
        part: what they are called.
        least: how many examples each class needs.

    Raises:
        BuildRefused: one class only, or a class with fewer examples.
    """
    if len(data.names) < 2:
        raise BuildRefused(
            f"the data set has one class, {data.names[0]!r}: there is nothing to decide"
        )
    labels = data.labels if rows is None else data.labels[rows]
    counts = np.bincount(labels, minlength=len(data.names))
    few = [
        f"{name} ({n})" for name, n in zip(data.names, counts, strict=True) if n < least
    ]
    if few:
        raise BuildRefused(
            f"the {part} has classes with fewer than {least} examples: {_listed(few)}; "
            "add examples, take the class away, or change the shares of the parts"
        )


def check_skipped(data: Labelled, most: float) -> None:
    """Refuse a data set of which too much cannot be read.

    Args:
        data: any.
        most: the share that may be skipped, 0..1.

    Raises:
        BuildRefused: more was skipped; names the first of it.
    """
    share = len(data.skipped) / (len(data) + len(data.skipped))
    if share > most:
        raise BuildRefused(
            f"{len(data.skipped)} of {len(data) + len(data.skipped)} examples cannot be "
            f"read ({share:.1%}, and --max-corrupt is {most:.1%}): "
            f"{_listed(list(data.skipped))}"
        )


def digests(inputs: NDArray[Any]) -> list[bytes]:
    """Sixteen bytes for each example that are equal for equal examples only."""
    rows = np.ascontiguousarray(inputs)
    return [blake2b(row.tobytes(), digest_size=16).digest() for row in rows]


def digest(data: Labelled) -> str:
    """Hexadecimal, over everything that a build takes from the data set."""
    whole = blake2b(digest_size=16)
    for array in (data.inputs, data.labels, data.parts):
        if array is not None:
            whole.update(f"{array.dtype}{array.shape}".encode())
            whole.update(np.ascontiguousarray(array).tobytes())
    whole.update(repr((data.names, data.scale, data.offset)).encode())
    return whole.hexdigest()


def _indexes(
    labels: NDArray[Any], names: tuple[str, ...] | None
) -> tuple[NDArray[np.int64], tuple[str, ...]]:
    if np.issubdtype(labels.dtype, np.integer):
        if names is None:
            names = tuple(str(each) for each in range(int(labels.max()) + 1))
        if labels.min() < 0 or labels.max() >= len(names):
            raise BuildRefused(
                f"labels do not match: they run from {labels.min()} to {labels.max()}, "
                f"and there are {len(names)} classes"
            )
        return labels.astype(np.int64), names
    said = [str(each) for each in labels]
    if names is None:
        names = tuple(sorted(set(said)))
    strange = sorted(set(said) - set(names))
    if strange:
        raise BuildRefused(f"labels that are no class: {_listed(strange)}")
    place = {name: index for index, name in enumerate(names)}
    return np.array([place[each] for each in said], np.int64), names


def _listed(what: list[str]) -> str:
    more = len(what) - MAX_NAMED
    return ", ".join(what[:MAX_NAMED]) + (f" and {more} more" if more > 0 else "")
