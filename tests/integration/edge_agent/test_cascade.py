"""Thresholds, audits, promises and drift in a whole agent, on images of Fashion-MNIST."""

from __future__ import annotations

import base64
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image

from broker.ports import free_port
from edge_agent.app import Agent
from edge_agent.core.answers import Source
from edge_agent.settings import AgentSettings
from tests.calibrations import calibration
from tests.integration.edge_agent.conftest import Settings
from tests.integration.edge_agent.edge import (
    ROOT,
    SHIRT,
    WorkerProcess,
    device,
    serving,
    tiny,
    until_status,
)
from tests.waiting import until

IMAGES = ROOT / "examples" / "fashion" / "images" / "test1000.npz"
SHIRT_TEXT = base64.b64encode(SHIRT).decode()
NOWHERE = "mqtt://127.0.0.1:{port}"


def pictures() -> NDArray[np.uint8]:
    with np.load(IMAGES) as stored:
        images: NDArray[np.uint8] = stored["images"]
    return images


def as_input(picture: NDArray[np.uint8]) -> NDArray[np.float32]:
    return (picture / 255).astype(np.float32).reshape(1, 28, 28, 1)


def calibrated(
    folder: Path,
    threshold: float,
    *,
    scores: NDArray[np.float64] | None = None,
    answers: str = "wait",
    **more: Any,
) -> Path:
    """The tiny bundle with a calibration on these scores, or evenly spread ones."""
    tiny(folder, threshold=threshold)
    manifest = json.loads((folder / "manifest.json").read_text())
    spread = np.linspace(0.0, 1.0, 1001) if scores is None else scores
    manifest["calibration"] = calibration(spread, threshold, **more)
    manifest["answers"] = answers
    (folder / "manifest.json").write_text(json.dumps(manifest))
    return folder


@pytest.fixture
def alone(short_tmp: Path) -> Settings:
    """Settings of an agent without devices or cloud."""

    def made(**more: Any) -> AgentSettings:
        usual: dict[str, Any] = {
            "agent_id": "embedded",
            "state_dir": short_tmp / "alone",
            "local": False,
            "disk_reserve_bytes": 0,
        }
        return AgentSettings(**{**usual, **more})

    return made


async def scores_of(
    agent: Agent, images: Iterator[NDArray[np.uint8]]
) -> NDArray[np.float64]:
    answers = [await agent.infer("fashion", as_input(each)) for each in images]
    return np.array([each.confidence for each in answers], np.float64)


# --- drift --------------------------------------------------------------------------


async def test_rotated_and_darkened_images_raise_the_alarm_and_others_do_not(
    alone: Settings, tmp_path: Path
) -> None:
    images = pictures()
    sure = alone(bundles=[tiny(tmp_path / "sure", threshold=0.0)])
    async with Agent(sure) as agent:
        scores = await scores_of(agent, iter(images[:500]))
    bundle = calibrated(tmp_path / "fashion", 0.0, scores=scores)

    def rotated(picture: NDArray[np.uint8]) -> NDArray[np.uint8]:
        return np.asarray(Image.fromarray(picture).rotate(30), np.uint8)

    def darkened(picture: NDArray[np.uint8]) -> NDArray[np.uint8]:
        return (picture // 2).astype(np.uint8)

    for name, change in (("rotated", rotated), ("darkened", darkened)):
        watched = alone(state_dir=tmp_path / name, bundles=[bundle])
        async with Agent(watched) as agent:
            await scores_of(agent, iter(images[500:]))
            drift = (await agent.status())["models"]["fashion"]["cascade"]["drift"]
            assert drift["observed"] == 500
            assert not drift["alarm"], f"of images as calibrated, before {name} ones"
        async with Agent(watched) as agent:  # The test outlives the process.
            await scores_of(agent, (change(each) for each in images[500:]))
            drift = (await agent.status())["models"]["fashion"]["cascade"]["drift"]
            assert drift["alarm"], name
            assert 500 < drift["alarmed_at"] <= 1000
            report = agent._status.report()
            assert report.slots[0].cascade is not None
            assert report.slots[0].cascade.drift
            assert agent._requests.cascading.drift_seen("fashion")
            drift = (await agent.status())["models"]["fashion"]["cascade"]["drift"]
            assert not drift["alarm"]


# --- audits and the promise ---------------------------------------------------------


async def test_audits_fill_the_books_and_no_device_hears_of_them(
    settings: Settings, mosquitto: str, pool: WorkerProcess, tmp_path: Path
) -> None:
    bundle = calibrated(tmp_path / "bundle", 0.0, limit=0.3)
    auditing = settings(bundles=[bundle], audit_share=0.5)
    ids = [f"r{number}" for number in range(40)]
    async with device(mosquitto) as cam:
        async with serving(auditing) as agent:
            for id_ in ids:
                await cam.send("fashion", {"id": id_, "image": SHIRT_TEXT})
            for id_ in ids:
                assert (await cam.final(id_))["source"] == "edge"
            status = await until_status(
                agent,
                lambda each: (
                    (n := each["counters"].get("spilled_audit", 0))
                    and each["models"]["fashion"]["cascade"]["audited"] == n
                ),
            )
            audits = status["counters"]["spilled_audit"]
            agent._requests.cascading.look()
            shown = (await agent.status())["models"]["fashion"]["cascade"]
            assert shown["open_audits"] == 0
            assert shown["promise"]["audited"] == audits
            assert audits <= shown["promise"]["requests"] <= len(ids)
            assert status["outbox"]["untold"] == 0
            assert status["ledger"]["accepted"] == {"audit": audits}
        async with serving(auditing) as agent:  # The books outlive the process.
            await cam.send("fashion", {"id": "more", "image": SHIRT_TEXT})
            await cam.final("more")
            agent._requests.cascading.look()
            again = (await agent.status())["models"]["fashion"]["cascade"]
            assert again["promise"]["audited"] >= audits
    assert len(cam.raw) == len(ids) + 1
    assert {topic for topic, _ in cam.raw} == {"answer/cam1"}


async def test_audits_take_no_room_that_a_device_could_miss(
    settings: Settings, mosquitto: str, pool: WorkerProcess, tmp_path: Path
) -> None:
    bundle = calibrated(tmp_path / "bundle", 0.0)
    narrow = settings(bundles=[bundle], audit_share=0.5, outbox_max_rows=20)
    ids = [f"r{number}" for number in range(40)]
    async with serving(narrow) as agent, device(mosquitto) as cam:
        with pool.paused():
            for id_ in ids:
                await cam.send("fashion", {"id": id_, "image": SHIRT_TEXT})
            for id_ in ids:
                assert (await cam.final(id_))["source"] == "edge"
            status = await agent.status()
            assert status["counters"]["spilled_audit"] == 2
            # What was not in the draw is said to be so.
            promise = status["models"]["fashion"]["cascade"]["promise"]
            assert promise["uncovered"] > 20
        await until_status(agent, lambda each: each["outbox"]["open"] == 0)


# --- provisional answers ------------------------------------------------------------


async def test_a_provisional_answer_comes_first_and_the_final_one_follows(
    settings: Settings, mosquitto: str, pool: WorkerProcess, tmp_path: Path
) -> None:
    bundle = calibrated(tmp_path / "bundle", 1.0, answers="provisional")
    async with serving(settings(bundles=[bundle])), device(mosquitto) as cam:
        with pool.paused():
            await cam.send("fashion", {"id": "r1", "image": SHIRT_TEXT})
            await until(lambda: cam.of("r1"))
            (first,) = cam.of("r1")
            assert (first["status"], first["source"]) == ("answered", "edge")
            assert (first["final"], first["reason"]) == (False, "hard")
            assert first["label"]
            await cam.send(
                "fashion", {"id": "r2", "image": SHIRT_TEXT, "deadline_ms": 400}
            )
            late = await cam.final("r2")
            assert late["source"] == "edge_fallback"
            assert [each["final"] for each in cam.of("r2")] == [False, True]
            # What has no answer of the edge's is accepted, as ever.
            await cam.send("fashion", {"id": "r3", "image": SHIRT_TEXT, "spill": True})
            await until(lambda: cam.of("r3"))
            assert cam.of("r3")[0]["status"] == "accepted"
        assert (await cam.final("r1"))["source"] == "cloud"
        assert len(cam.of("r1")) == 2


async def test_the_agents_own_setting_wins_over_the_bundles(
    settings: Settings, mosquitto: str, pool: WorkerProcess, tmp_path: Path
) -> None:
    bundle = calibrated(tmp_path / "bundle", 1.0, answers="provisional")
    patient = settings(bundles=[bundle], answers="wait")
    async with serving(patient), device(mosquitto) as cam:
        with pool.paused():
            await cam.send("fashion", {"id": "r1", "image": SHIRT_TEXT})
            await until(lambda: cam.of("r1"))
            assert cam.of("r1")[0]["status"] == "accepted"
        await cam.final("r1")


# --- the threshold in force -----------------------------------------------------------


async def test_a_class_that_needs_more_confidence_spills_and_gives_way_with_all(
    settings: Settings, mosquitto: str, pool: WorkerProcess, tmp_path: Path
) -> None:
    bundle = calibrated(
        tmp_path / "bundle", 0.0, class_rungs={"Shirt": [0.1, 0.5, 1.0]}
    )
    manifest = json.loads((bundle / "manifest.json").read_text())
    manifest["decision"]["class_thresholds"] = {"Shirt": 1.0}
    (bundle / "manifest.json").write_text(json.dumps(manifest))
    async with serving(settings(bundles=[bundle])) as agent:
        said = [
            await agent.infer("fashion", as_input(each)) for each in pictures()[:60]
        ]
        edge = {each.label for each in said if each.source is Source.EDGE}
        spilled = [each for each in said if each.source is Source.CLOUD]
        assert len(edge) > 5
        assert "Shirt" not in edge
        assert 0 < len(spilled) < 30
        shown = (await agent.status())["models"]["fashion"]["cascade"]
        assert shown["classes"] == {"Shirt": 1.0}
        # The pool says that it is slow: the class gives way, as all thresholds do.
        watch = agent._requests.cascading._watches["fashion"]
        watch.threshold.heard_wait(1000.0, agent._requests.cascading._now_s())
        agent._requests.cascading.look()
        answers = [
            await agent.infer("fashion", as_input(each)) for each in pictures()[:60]
        ]
        held_back = [each for each in answers if each.label == "Shirt"]
        assert held_back
        for each in held_back:
            assert each.source is Source.EDGE_FALLBACK
            assert "under the calibrated threshold 1.000, not spilled" in str(
                each.reason
            )


async def test_while_the_cloud_is_away_a_hard_answer_stands_and_says_so(
    settings: Settings, mosquitto: str, tmp_path: Path
) -> None:
    offline = settings(
        bundles=[calibrated(tmp_path / "bundle", 1.0)],
        cloud_url=NOWHERE.format(port=free_port()),
        default_deadline_s=2.0,
    )
    async with serving(offline, cloud=False) as agent, device(mosquitto) as cam:
        await cam.send("fashion", {"id": "r0", "image": SHIRT_TEXT})

        def down(status: dict[str, Any]) -> bool:
            agent._requests.cascading.look()
            shown = status["models"]["fashion"]["cascade"]
            return shown is not None and shown["threshold"] is None

        await until_status(agent, down)
        await cam.send("fashion", {"id": "r1", "image": SHIRT_TEXT})
        answer = await cam.final("r1")
        assert answer["source"] == "edge_fallback"
        assert "not spilled: the link is down" in answer["reason"]
        assert answer["ms"] < 1000
        metrics = {each.name: each.values for each in agent._status.families()}
        assert metrics["overspill_agent_threshold"] == {("fashion",): -np.inf}
        assert metrics["overspill_agent_threshold_changes_total"] == {("fashion",): 1.0}


async def test_a_pool_that_does_not_answer_costs_one_deadline_and_then_accuracy(
    settings: Settings, mosquitto: str, pool: WorkerProcess, tmp_path: Path
) -> None:
    hurried = settings(
        bundles=[calibrated(tmp_path / "bundle", 1.0)], default_deadline_s=0.6
    )
    async with serving(hurried) as agent, device(mosquitto) as cam:
        with pool.paused():
            await cam.send("fashion", {"id": "r0", "image": SHIRT_TEXT})
            first = await cam.final("r0")
            assert first["source"] == "edge_fallback"
            assert first["ms"] >= 600
            agent._requests.cascading.look()
            await cam.send("fashion", {"id": "r1", "image": SHIRT_TEXT})
            second = await cam.final("r1")
            assert second["source"] == "edge_fallback"
            assert "not spilled: a spill waits" in second["reason"]
            assert second["ms"] < 300


async def test_a_byte_budget_ends_spilling_and_not_answers(
    settings: Settings, pool: WorkerProcess, tmp_path: Path
) -> None:
    # 10 KB may go at once, and a request has 3 KB.
    thrifty = settings(
        bundles=[calibrated(tmp_path / "bundle", 1.0)],
        spill_budget="40KB/day",
        local=False,
    )
    picture = as_input(pictures()[0])
    async with Agent(thrifty) as agent:
        await until_status(agent, lambda status: status["cloud"]["up"])
        sources = []
        for _ in range(12):
            sources.append((await agent.infer("fashion", picture)).source)
            agent._requests.cascading.look()
        status = await agent.status()
    assert sources[0] is Source.CLOUD
    assert sources[-1] is Source.EDGE_FALLBACK
    assert 1 <= sources.count(Source.CLOUD) <= 4
    assert status["spill_budget"]["left"] < 0.25
    assert "byte budget" in status["models"]["fashion"]["cascade"]["why"]
    async with Agent(thrifty) as agent:  # What was spent stays spent.
        assert (await agent.status())["spill_budget"]["left"] < 0.25
