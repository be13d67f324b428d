"""Golden examples: what a bundle's model must reproduce before it may serve."""

from __future__ import annotations

import zipfile
import zlib
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Final

import numpy as np

from bundle.manifest import Golden, Manifest
from edge_agent.adapters.litert import LiteRtModel
from edge_agent.core.answers import Array

MAX_GOLDEN_BYTES: Final = 256 * 1024 * 1024
UNREADABLE: Final = (
    OSError,
    ValueError,
    EOFError,
    KeyError,
    zipfile.BadZipFile,
    zlib.error,
)


class GoldenMismatch(ValueError):
    """The model is not the one its manifest and golden examples describe."""


def check_names(manifest: Manifest, model: LiteRtModel) -> None:
    """Check that the manifest and the model speak of the same tensors.

    Raises:
        GoldenMismatch: the recipe's input, the decision's output or the number of
            labels is not the model's.
    """
    recipe, decision = manifest.preprocess, manifest.decision
    if recipe is not None and list(model.inputs) != [recipe.input]:
        raise GoldenMismatch(
            f"the manifest feeds an image to {recipe.input!r}, the model takes "
            f"{sorted(model.inputs)}"
        )
    if decision is None:
        return
    for name in (decision.output, decision.confidence_output):
        if name is not None and name not in model.outputs:
            raise GoldenMismatch(
                f"the manifest decides by output {name!r}, the model has "
                f"{sorted(model.outputs)}"
            )
    output = model.outputs[decision.output]
    classes = output.shape[-1] if output.shape else 1
    labelled = manifest.task == "classify" and manifest.labels and classes > 0
    if labelled and len(manifest.labels) != classes:
        raise GoldenMismatch(
            f"the manifest has {len(manifest.labels)} labels, output "
            f"{decision.output!r} has {classes} classes"
        )


def reproduce(model: LiteRtModel, folder: Path, golden: Golden) -> tuple[int, float]:
    """Run every golden example, one at a time.

    Args:
        model: as loaded from the bundle.
        folder: of the unpacked bundle.
        golden: as its manifest says.

    Returns:
        How many examples there are, and the greatest absolute difference.

    Raises:
        GoldenMismatch: the file cannot be used, or an output is over the tolerance.
        BadInput: the model does not take a golden input.
        RunFailed: the model failed on one.
    """
    arrays = _arrays(folder / golden.file)
    inputs = _named("in_", model.inputs, arrays)
    wanted = _named("out_", model.outputs, arrays)
    if inputs.keys() != model.inputs.keys() or not wanted:
        raise GoldenMismatch(
            f"{golden.file} holds {sorted(arrays)}; it needs in_ arrays for the inputs "
            f"{sorted(model.inputs)} and at least one out_ array of the outputs "
            f"{sorted(model.outputs)}"
        )
    lengths = {len(each) for each in (*inputs.values(), *wanted.values())}
    if len(lengths) != 1 or 0 in lengths:
        raise GoldenMismatch(
            f"{golden.file} has arrays of different lengths: {lengths}"
        )
    (examples,) = lengths
    worst = 0.0
    for index in range(examples):
        one = slice(index, index + 1)
        outputs = model.run({name: array[one] for name, array in inputs.items()})
        for name, array in wanted.items():
            worst = max(worst, _difference(name, index, outputs[name], array[one]))
    if worst > golden.tolerance:
        raise GoldenMismatch(
            f"golden outputs differ by {worst:.4g}, the tolerance is {golden.tolerance:g}"
        )
    return examples, worst


def _difference(name: str, index: int, got: Array, want: Array) -> float:
    if got.shape != want.shape:
        raise GoldenMismatch(
            f"golden output {name!r} has shape {list(want.shape)}, the model gives "
            f"{list(got.shape)}"
        )
    difference = np.abs(got.astype(np.float64) - want.astype(np.float64))
    if not np.isfinite(difference).all():
        raise GoldenMismatch(
            f"output {name!r} of golden example {index} is not a number"
        )
    return float(difference.max(initial=0.0))


def _named(
    prefix: str, names: Iterable[str], arrays: Mapping[str, Array]
) -> dict[str, Array]:
    return {name: arrays[prefix + name] for name in names if prefix + name in arrays}


def _arrays(path: Path) -> dict[str, Array]:
    try:
        with zipfile.ZipFile(path) as archive:
            size = sum(each.file_size for each in archive.infolist())
        if size > MAX_GOLDEN_BYTES:
            raise GoldenMismatch(
                f"{path.name} unpacks to {size} bytes, which is too much"
            )
        with np.load(path, allow_pickle=False) as loaded:
            return {name: np.atleast_1d(loaded[name]) for name in loaded.files}
    except UNREADABLE as error:
        raise GoldenMismatch(f"{path.name} cannot be read: {error}") from error
