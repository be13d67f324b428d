"""How the agent reads an answer, by its manifest."""

import json
from collections.abc import Mapping
from typing import Any

import numpy as np
import pytest

from bundle.manifest import parse_manifest
from edge_agent.core.answers import Array
from edge_agent.core.served import Served, rule_of


class Idle:
    """A runner that is never asked."""

    predicted_ms = 0.0

    async def infer(
        self,
        inputs: Mapping[str, Array],
    ) -> dict[str, Array]:
        raise AssertionError("judging runs nothing")

    async def close(self) -> None:
        """Nothing to free."""


def served(task: str = "classify", **decision: Any) -> Served:
    stated = {
        "format": 1,
        "name": "m",
        "version": "1",
        "model_file": "m.tflite",
        "task": task,
        "decision": {"output": "y", "threshold": 0.6, **decision},
    }
    manifest = parse_manifest(json.dumps(stated).encode())
    return Served(manifest, Idle(), {}, rule_of(manifest))


LOGITS = np.array([[0.0, 3.0, 1.0]], np.float32)


def test_a_confidence_output_decides_and_the_output_names_the_class() -> None:
    model = served(confidence_output="sure")
    judged = model.judge({"y": LOGITS, "sure": np.array([0.5], np.float32)})
    assert judged is not None
    assert (judged.label_index, judged.confidence, judged.hard) == (1, 0.5, True)


@pytest.mark.parametrize("missing", ["y", "sure"])
def test_an_output_that_is_missing_makes_the_answer_unusable(missing: str) -> None:
    outputs = {"y": LOGITS, "sure": np.array([0.9], np.float32)}
    del outputs[missing]
    judged = served(confidence_output="sure").judge(outputs, threshold=-np.inf)
    assert judged is not None
    assert judged.hard
    assert judged.score == -np.inf
    assert missing in (judged.why or "")


def test_the_norm_of_the_manifest_counts() -> None:
    low, high = (served(score="pnorm", norm=p).judge({"y": LOGITS}) for p in (2, 8))
    assert low is not None
    assert high is not None
    assert low.confidence != high.confidence


@pytest.mark.parametrize(("empty", "hard"), [("sure", False), ("unsure", True)])
def test_an_empty_detection_is_as_sure_as_the_manifest_says(
    empty: str, hard: bool
) -> None:
    model = served("detect", score="expected_misses", empty=empty)
    judged = model.judge({"y": np.zeros((1, 5), np.float32)})
    assert judged is not None
    assert judged.hard is hard


def test_the_threshold_in_force_is_used_in_place_of_the_manifests() -> None:
    model = served()
    sure = model.judge({"y": LOGITS})
    assert sure is not None
    assert not sure.hard
    hard = model.judge({"y": LOGITS}, threshold=0.99)
    assert hard is not None
    assert hard.hard


def test_a_class_of_the_manifest_with_a_threshold_is_judged_by_it() -> None:
    stated = {
        "format": 1,
        "name": "m",
        "version": "1",
        "model_file": "m.tflite",
        "task": "classify",
        "labels": ["cat", "fire", "dog"],
        "decision": {"output": "y", "class_thresholds": {"fire": 0.9}},
    }
    manifest = parse_manifest(json.dumps(stated).encode())
    model = Served(manifest, Idle(), {}, rule_of(manifest))
    fire = model.judge({"y": LOGITS})
    assert fire is not None
    assert fire.hard
    assert not model.judge({"y": np.array([[3.0, 0.0, 1.0]], np.float32)}).hard  # type: ignore[union-attr]
