"""Write a bundle's source folder: model, golden examples, manifest and report."""

from __future__ import annotations

import shutil
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from builder.adapters import measuring, workspace
from builder.core import draft
from builder.core.labelled import Labelled
from builder.core.quality import Answers
from bundle.manifest import MANIFEST_FILE, Limits, parse_manifest


@dataclass(frozen=True, slots=True, eq=False)
class Chosen:
    """What goes into a bundle.

    Attributes:
        file: the `.tflite` file.
        name: of the model.
        version: of the bundle.
        limits: above which a request is oversized.
        on: what its threshold was found on.
        test: its answers to the test part.
        test_rows: of the test part in the data set, int64 [n].
    """

    file: Path
    name: str
    version: str
    limits: Limits
    on: draft.CalibratedOn
    test: Answers
    test_rows: NDArray[np.int64]


def write_bundle(
    folder: Path, data: Labelled, chosen: Chosen, reports: Sequence[Path]
) -> None:
    """Write the folder that `overspill model publish` takes; it appears whole.

    Args:
        folder: replaced where it exists.
        data: whose pictures' recipe and classes the manifest states.
        chosen: what goes into it.
        reports: files that go with the bundle.
    """
    half = folder.with_name(f"half-{folder.name}")
    shutil.rmtree(half, ignore_errors=True)
    half.mkdir(parents=True)
    shutil.copyfile(chosen.file, half / draft.MODEL_FILE)
    signature = measuring.signature_of(chosen.file)
    tolerance = _write_golden(half / draft.GOLDEN_FILE, signature, data, chosen)
    files = {}
    for report in reports:
        copy = half / report.name
        shutil.copyfile(report, copy)
        files[report.name] = {
            "sha256": workspace.sha256(copy),
            "size_bytes": copy.stat().st_size,
        }
    named = draft.Named(
        chosen.name, chosen.version, signature, chosen.limits, tolerance
    )
    manifest = draft.manifest(data, named, chosen.on)
    workspace.write_json(half / MANIFEST_FILE, {**manifest, "files": files})
    parse_manifest((half / MANIFEST_FILE).read_bytes())
    shutil.rmtree(folder, ignore_errors=True)
    half.rename(folder)


def _write_golden(
    path: Path, signature: tuple[str, str], data: Labelled, chosen: Chosen
) -> float:
    """Write the golden examples; gives the tolerance that sound processors keep to."""
    rows = np.flatnonzero(chosen.test.readable)[: draft.GOLDEN_CANDIDATES]
    examples = data.model_inputs(chosen.test_rows[rows])
    plain = measuring.runner_of(chosen.file, *signature, reference=True)
    said = chosen.test.outputs[rows]
    difference = np.abs(np.stack([plain(one) for one in examples]) - said).max(axis=-1)
    steady = draft.golden_rows(difference, chosen.test.labels[rows])
    with path.open("wb") as file:
        np.savez_compressed(
            file,
            allow_pickle=False,
            **{
                f"in_{signature[0]}": examples[steady],
                f"out_{signature[1]}": said[steady],
            },
        )
    return draft.golden_tolerance(float(difference[steady].max()))
