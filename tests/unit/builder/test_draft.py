from __future__ import annotations

import json
from typing import Any

import numpy as np
import pytest

from builder.core import draft
from builder.core.labelled import Labelled, labelled
from builder.core.quality import Answers
from bundle.manifest import Limits, parse_manifest
from cascade.targets import (
    Calibrated,
    MaxError,
    MaxExcess,
    MaxSpill,
    Target,
    parse_target,
)

N = 300
RNG = np.random.default_rng(11)
LABELS = np.arange(N) % 3
EDGE = Answers(RNG.normal(size=(N, 3)).astype(np.float32), LABELS, 1.5)
CLOUD = Answers(RNG.normal(size=(N, 3)).astype(np.float32), LABELS)
PICTURES = labelled(np.zeros((3, 4, 4), np.uint8), np.arange(3), scale=0.5)
ROWS = labelled(np.zeros((3, 4), np.float32), np.arange(3))


def drafted(
    data: Labelled, threshold: float = 0.6, cloud: Answers | None = CLOUD
) -> dict[str, Any]:
    found = Calibrated(threshold, MaxExcess(0.02), 0.1, 0.01, N)
    read = draft.CloudOutput("logits", "logits", 1.2) if cloud else None
    return draft.manifest(
        data,
        draft.Named("leaves", "1", ("image", "logits"), Limits()),
        draft.CalibratedOn(found, EDGE, cloud, read),
    )


@pytest.mark.parametrize("data", [PICTURES, ROWS])
@pytest.mark.parametrize("cloud", [CLOUD, None])
def test_a_manifest_is_one_that_agents_read(
    data: Labelled, cloud: Answers | None
) -> None:
    text = json.dumps(drafted(data, cloud=cloud), allow_nan=False)
    manifest = parse_manifest(text.encode())
    assert manifest.decision is not None
    assert manifest.decision.temperature == 1.5
    assert (manifest.preprocess is None) == (data is ROWS)


def test_the_rungs_never_fall_and_end_at_the_threshold() -> None:
    rungs = drafted(PICTURES)["calibration"]["rungs"]
    assert rungs == sorted(rungs)
    assert rungs[-1] == 0.6
    assert len(rungs) <= 64


def test_a_threshold_that_spills_nothing_has_no_rungs() -> None:
    document = drafted(PICTURES, -np.inf)
    assert document["decision"]["threshold"] == 0
    assert document["calibration"]["rungs"] == []


def test_what_was_measured_stands_beside_the_target() -> None:
    measured = drafted(PICTURES)["calibration"]["measured"]
    assert measured["edge_wrong"] == pytest.approx(1 - EDGE.right.mean())
    assert measured["cloud_wrong"] == pytest.approx(1 - CLOUD.right.mean())
    without = drafted(PICTURES, cloud=None)["calibration"]
    assert without["measured"]["cloud_wrong"] is None
    assert "cloud" not in without


@pytest.mark.parametrize(
    ("target", "kind", "limit"),
    [
        (MaxSpill(0.1), "spill", 0.1),
        (MaxExcess(0.02, None), "excess", 0.02),
        (MaxError(0.05, 0.9, 0.08), "error", 0.05),
    ],
)
def test_a_stated_target_reads_back(target: Target, kind: str, limit: float) -> None:
    said = draft.stated(target)
    assert (said["kind"], said["limit"]) == (kind, limit)
    assert parse_target(said["text"]) == target


def test_golden_examples_are_the_steadiest_of_different_classes() -> None:
    difference = np.array([0.3, 0.1, 0.2, 0.01, 0.02, 0.5])
    labels = np.array([0, 0, 1, 1, 2, 2])
    assert sorted(draft.golden_rows(difference, labels)) == [1, 3, 4]
    assert len(draft.golden_rows(difference, labels, most=2)) == 2


def test_the_golden_tolerance_grows_with_what_kernels_differ_by() -> None:
    assert draft.golden_tolerance(0.001) == draft.GOLDEN_TOLERANCE
    assert draft.golden_tolerance(0.04) == 0.12
