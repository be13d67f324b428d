"""The manifest of a built bundle. Pure: what was found out in, a mapping out."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any, Final, assert_never

import numpy as np
from numpy.typing import NDArray

from builder.core.labelled import Labelled
from builder.core.quality import Answers
from builder.core.soft_targets import activation_of
from bundle.manifest import Limits
from cascade.drift import DriftTest
from cascade.effective import ladder
from cascade.scores import Activation
from cascade.targets import (
    Calibrated,
    MaxError,
    MaxExcess,
    MaxSpill,
    Target,
    manifest_threshold,
)

MODEL_FILE: Final = "model.tflite"
GOLDEN_FILE: Final = "golden.npz"
# Examples among which the steadiest are looked for, and the least tolerance.
GOLDEN_CANDIDATES: Final = 500
GOLDEN_TOLERANCE: Final = 0.05
DRIFT_BINS: Final = 32
DRIFT_FALSE_ALARM: Final = 0.01


@dataclass(frozen=True, slots=True)
class CloudOutput:
    """How the cloud's results are to be read by an agent that compares.

    Attributes:
        output: its name in a result.
        activation: what it holds.
        temperature: that its logits are divided by.
    """

    output: str
    activation: Activation
    temperature: float


@dataclass(frozen=True, slots=True)
class Named:
    """What is known of a bundle beside its calibration.

    Attributes:
        name: of the model.
        version: of the bundle.
        signature: the names of the model's input and output.
        limits: above which a request is oversized.
        golden_tolerance: by which a sound processor's outputs may differ.
    """

    name: str
    version: str
    signature: tuple[str, str]
    limits: Limits
    golden_tolerance: float = GOLDEN_TOLERANCE


@dataclass(frozen=True, slots=True, eq=False)
class CalibratedOn:
    """What a threshold was found on.

    Attributes:
        found: the threshold.
        edge: the answers to the calibrate part, with their temperature.
        cloud: the cloud's answers to the same; None without one.
        cloud_output: how an agent reads the cloud's results; None without a cloud.
    """

    found: Calibrated
    edge: Answers
    cloud: Answers | None
    cloud_output: CloudOutput | None


def manifest(data: Labelled, named: Named, on: CalibratedOn) -> dict[str, Any]:
    """What a bundle says of itself.

    Args:
        data: whose pictures' recipe and classes it takes.
        named: what it is called.
        on: what its threshold was found on.
    """
    threshold = manifest_threshold(on.found.threshold, "max_softmax")
    taken, given = named.signature
    edge = on.edge
    document: dict[str, Any] = {
        "format": 1,
        "name": named.name,
        "version": named.version,
        "model_file": MODEL_FILE,
        "task": "classify",
        "labels": list(data.names),
        "decision": {
            "output": given,
            "activation": activation_of(edge.outputs[edge.readable]),
            "score": "max_softmax",
            "temperature": edge.temperature,
            "threshold": threshold,
        },
        "calibration": _calibration(on, threshold),
        "limits": named.limits.model_dump(),
        "golden": {"file": GOLDEN_FILE, "tolerance": named.golden_tolerance},
    }
    if data.columns:
        document["columns"] = list(data.columns)
    if data.is_picture:
        height, width, channels = data.shape
        document["preprocess"] = {
            "kind": "image",
            "input": taken,
            "width": width,
            "height": height,
            "channels": channels,
            "scale": data.scale,
            "offset": data.offset,
        }
    return document


def golden_rows(
    difference: NDArray[np.floating[Any]], labels: NDArray[np.int64], most: int = 8
) -> NDArray[np.int64]:
    """The steadiest example of each of some classes.

    Processors round in their own ways; where two kinds of kernels agree best, a sound
    bundle is least likely to be refused on a third.

    Args:
        difference: [n], between the outputs of LiteRT's fast and plain kernels.
        labels: int64 [n].
        most: how many.

    Returns:
        int64 [most or fewer], indexes.
    """
    steadiest = np.argsort(difference, kind="stable")
    _, first = np.unique(labels[steadiest], return_index=True)
    rows: NDArray[np.int64] = steadiest[first[:most]].astype(np.int64)
    return rows


def golden_tolerance(difference: float) -> float:
    """The tolerance for examples whose kernels differ by this: three times as much."""
    return max(GOLDEN_TOLERANCE, round(3 * difference, 4))


def _calibration(on: CalibratedOn, threshold: float) -> dict[str, Any]:
    found, edge, cloud, cloud_output = on.found, on.edge, on.cloud, on.cloud_output
    rungs: list[float] = []
    if math.isfinite(found.threshold):
        rungs = [float(each) for each in ladder(edge.confidence, threshold).rungs]
    reference = DriftTest.calibrated(
        edge.confidence, false_alarm=DRIFT_FALSE_ALARM, bins=DRIFT_BINS
    ).to_state()
    said: dict[str, Any] = {
        "target": stated(found.target),
        "rungs": rungs,
        "scores": {"edges": reference["edges"], "counts": reference["counts"]},
        "measured": {
            "examples": found.examples,
            "spilled": found.spilled,
            "realised": found.measured,
            "edge_wrong": float(1 - edge.right.mean()),
            "cloud_wrong": None if cloud is None else float(1 - cloud.right.mean()),
            "disagree": (
                None
                if cloud is None
                else float((edge.answered != cloud.answered).mean())
            ),
        },
    }
    if cloud_output is not None:
        said["cloud"] = {
            "output": cloud_output.output,
            "activation": cloud_output.activation,
            "temperature": cloud_output.temperature,
        }
    return said


def stated(target: Target) -> dict[str, Any]:
    """A target as a manifest states it."""
    match target:
        case MaxSpill(share, confidence):
            kind, limit, each = "spill", share, None
        case MaxExcess(excess, confidence, each):
            kind, limit = "excess", excess
        case MaxError(error, confidence, each):
            kind, limit = "error", error
        case _:
            assert_never(target)
    return {
        "text": target.describe(),
        "kind": kind,
        "limit": limit,
        "confidence": confidence,
        "per_class": each,
    }
