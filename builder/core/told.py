"""What a report says, as JSON holds it: no NaN, no infinity, shares as 0..1."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import asdict
from typing import Any, Final

import numpy as np

from builder.core.choice import Choice, Considered
from builder.core.gallery import Confused
from builder.core.labelled import Labelled
from builder.core.quality import Answers, Quality
from builder.core.splits import PARTS, Split
from cascade.curves import Curve, oracle_curve, random_curve
from cascade.evaluation import AtThreshold
from cascade.targets import Calibrated, Target, Unsupported
from cascade.temperature import reliability

CURVE_POINTS: Final = 101


def build(name: str, version: str, target: Target) -> dict[str, Any]:
    """What was asked for."""
    return {"name": name, "version": version, "target": target.describe()}


def data(examples: Labelled, parts: Split, seed: int, digest: str) -> dict[str, Any]:
    """What it was made and measured on."""
    return {
        "digest": digest,
        "seed": seed,
        "names": list(examples.names),
        "shape": list(examples.shape),
        "parts": {part: len(parts.rows(part)) for part in PARTS},
        "left_out": parts.left_out,
        "skipped": list(examples.skipped),
    }


def candidate(
    considered: Considered,
    chosen_on: Quality,
    told_on: Quality,
    names: Sequence[str],
    more: dict[str, Any],
) -> dict[str, Any]:
    """One candidate, with what was measured on the two parts that are told of."""
    return {
        "name": considered.name,
        "size_bytes": considered.size_bytes,
        "p50_ms": considered.p50_ms,
        **more,
        "spill": considered.spill,
        "cost": considered.cost,
        "choose": _quality(chosen_on, names),
        "test": _quality(told_on, names),
    }


def choice(taken: Choice) -> dict[str, Any]:
    """Which was taken, and why."""
    return {
        "chosen": taken.chosen,
        "why": taken.why,
        "broken": {name: list(why) for name, why in taken.broken.items()},
        "front": list(taken.front),
    }


def promise(found: Calibrated | Unsupported) -> dict[str, Any]:
    """The threshold, or why there is none."""
    if isinstance(found, Unsupported):
        return {
            "kept": False,
            "target": found.target.describe(),
            "says": found.describe(),
            "examples_needed": found.examples_needed,
            "nearest": found.nearest.describe() if found.nearest else None,
        }
    return {
        "kept": True,
        "target": found.target.describe(),
        # Nothing is spilled where it was minus infinity: any score is at least this.
        "threshold": found.threshold if math.isfinite(found.threshold) else 0.0,
        "spilled": found.spilled,
        "measured": found.measured,
        "examples": found.examples,
    }


def bounds(test: Answers, cloud: Answers) -> dict[str, Any]:
    """What spilling by chance, and with knowledge of who is right, would give."""
    return {
        "by chance": _points(random_curve(test.right, cloud.right)),
        "by an oracle": _points(oracle_curve(test.right, cloud.right)),
    }


def at_threshold(found: AtThreshold, *, with_cloud: bool) -> dict[str, Any]:
    """What the threshold does on the test part."""
    said = asdict(found)
    # What a round trip takes is not known where models are built.
    del said["ms_saved"]
    if not with_cloud:
        said["cloud_accuracy"] = None
    elif said["cloud_accuracy"] is not None:
        said["excess"] = found.cloud_accuracy - found.accuracy
    return said


def reliability_of(test: Answers) -> dict[str, Any] | None:
    """Confidence and how often it is right, in bins; None when nothing is readable."""
    rows = test.readable
    if not rows.any():
        return None
    bins = reliability(test.confidence[rows], test.right[rows])
    return {
        "temperature": test.temperature,
        "confidence": np.asarray(bins.confidence).tolist(),
        "right": np.asarray(bins.accuracy).tolist(),
    }


def confused(one: Confused) -> dict[str, Any]:
    """One example of the gallery."""
    return asdict(one)


def _quality(of: Quality, names: Sequence[str]) -> dict[str, Any]:
    classes = zip(
        names,
        of.classes.count.tolist(),
        of.classes.precision.tolist(),
        of.classes.recall.tolist(),
        of.classes.f1.tolist(),
        strict=True,
    )
    return {
        "examples": of.examples,
        "accuracy": of.accuracy,
        "macro_f1": of.classes.macro_f1,
        "calibration_error": of.calibration_error,
        "distinct": of.distinct,
        "agreement": of.agreement,
        "cloud_accuracy": of.cloud_accuracy,
        "deferral": of.deferral,
        "deferral_limits": of.deferral_limits,
        "curve": None if of.curve is None else _points(of.curve),
        "classes": [
            {"name": name, "examples": n, "precision": p, "recall": r, "f1": f}
            for name, n, p, r, f in classes
        ],
    }


def _points(curve: Curve) -> list[tuple[float, float]]:
    shares = np.linspace(0, 1, CURVE_POINTS)
    return [(float(share), curve.accuracy_at(float(share))) for share in shares]
