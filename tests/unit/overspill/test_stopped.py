"""What is said of a version that had to be stopped."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest

from bundle.manifest import parse_manifest
from overspill.demo.history import Asked, Reply
from overspill.demo.operator import mislabel
from overspill.demo.stopped import BAD, Course, faults, stopped

LABELS = ["shirt", "boot"]
AGENTS = {"cam1": "agent-1", "cam2": "agent-2"}
COURSE = Course(
    version="2-mislabelled",
    state="rolled_back",
    reason="agreement",
    waves=1,
    told=["agent-1"],
    updated=[],
    began_ms=1_000.0,
    turned_ms=4_000.0,
    ended_ms=6_500.0,
)


def asked(id_: str, device: str, label: str | None, stage: str = BAD) -> Asked:
    made = Asked(device, id_, index=0, truth=0, stage=stage, at_ms=10.0)
    if label is not None:
        made.replies.append(
            Reply(id_, 15.0, "answered", final=True, source="edge", label=label)
        )
    return made


def test_devices_of_exposed_agents_are_told_apart_from_the_others() -> None:
    found = stopped(
        [
            asked("a", "cam1", "boot"),
            asked("b", "cam1", "shirt"),
            asked("c", "cam2", "shirt"),
            asked("d", "cam2", None, stage="second"),
        ],
        LABELS,
        COURSE,
        AGENTS,
    )
    assert (found.requests, found.lost) == (3, 0)
    assert (found.exposed_accuracy, found.spared_accuracy) == (0.5, 1.0)
    assert faults(found) == []
    said = found.document()
    assert (said["stopped_after_s"], said["seconds"]) == (3.0, 5.5)
    assert json.loads(json.dumps(said))["told"] == ["agent-1"]


def test_a_lost_request_is_a_fault() -> None:
    found = stopped([asked("a", "cam1", None)], LABELS, COURSE, AGENTS)
    assert [each for each in faults(found) if "1 requests were lost" in each]


@pytest.mark.parametrize(
    ("course", "words"),
    [
        (replace(COURSE, state="done"), "should have been rolled back"),
        (replace(COURSE, told=["agent-1", "agent-2"]), "reached every agent"),
    ],
)
def test_a_version_that_was_not_stopped_in_time_is_a_fault(
    course: Course, words: str
) -> None:
    (said,) = faults(stopped([], LABELS, course, AGENTS))
    assert words in said


def test_a_mislabelled_copy_is_another_version_of_the_same_model(
    tmp_path: Path,
) -> None:
    good = Path(__file__).parents[3] / "examples" / "fashion" / "edge" / "small"
    made = mislabel(good, tmp_path)
    before, after = (
        parse_manifest((each / "manifest.json").read_bytes()) for each in (good, made)
    )
    assert after.version == f"{before.version}-mislabelled"
    assert sorted(after.labels) == sorted(before.labels)
    assert all(a != b for a, b in zip(after.labels, before.labels, strict=True))
    model = before.model_file
    assert (made / model).read_bytes() == (good / model).read_bytes()
