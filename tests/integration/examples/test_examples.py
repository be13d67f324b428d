"""Rows, series and token ids from a device through a real agent, broker and worker."""

from __future__ import annotations

import asyncio
import sys
from collections.abc import Iterable
from typing import Any

import numpy as np
import pytest

from edge_agent.app import Agent
from edge_agent.core.answers import Answer, Source
from edge_agent.loops import cascading
from edge_agent.settings import AgentSettings
from examples.diamonds import rows
from examples.spoken import recordings
from tests.integration.edge_agent.edge import device, serving, until_status
from tests.integration.examples.models import CLASSES, LENGTH, NO, YES, texts

pytestmark = [
    pytest.mark.integration,
    # The converter's own: it still uses an interpreter that it calls deprecated.
    pytest.mark.filterwarnings("ignore"),
    # The first test of a run waits for RabbitMQ, for the worker and for a student.
    pytest.mark.timeout(120),
]


async def answers(
    agent: Agent, model: str, inputs: Iterable[dict[str, Any]]
) -> list[Answer]:
    """One by one, as a device asks that waits for its answer."""
    return [await agent.infer(model, each) for each in inputs]


def spilled(found: list[Answer]) -> float:
    """The share that the cloud answered; nobody else may have answered the rest."""
    assert {each.source for each in found} <= {Source.EDGE, Source.CLOUD}
    assert {each.reason for each in found if each.source == Source.CLOUD} <= {"hard"}
    return float(np.mean([each.source == Source.CLOUD for each in found]))


def right(found: list[Answer], names: tuple[str, ...], truth: np.ndarray) -> float:
    """How often the answer is the truth."""
    return float(
        np.mean(
            [
                each.label == names[label]
                for each, label in zip(found, truth, strict=True)
            ]
        )
    )


@pytest.fixture(autouse=True)
def _looks_often(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cascading, "LOOK_EVERY_S", 0.05)


async def promise(agent: Agent, model: str, requests: int) -> dict[str, Any]:
    """What the agent says of a model's target, once it knows of so many requests."""

    def known(status: dict[str, Any]) -> dict[str, Any]:
        said: dict[str, Any] = status["models"][model]["cascade"]["promise"]
        return said

    status = await until_status(agent, lambda now: known(now)["requests"] >= requests)
    found = known(status)
    sys.stdout.write(
        f"{model}: {found['text']}: {found['standing']}, {found['value']:.2%} "
        f"({found['low']:.2%} to {found['high']:.2%}) of {found['requests']} requests\n"
    )
    return found


async def test_rows_are_answered_on_the_edge_and_the_unsure_ones_by_the_cloud(
    settings: AgentSettings,
) -> None:
    sample, cuts = rows.samples()
    async with serving(settings) as agent:
        found = await answers(
            agent, "diamonds", ({"row": each[np.newaxis]} for each in sample[:300])
        )
        assert 0.04 < spilled(found) < 0.2
        assert right(found, rows.CUTS, cuts[:300]) > 0.74
        # Confident ones count as far as the last that was audited.
        said = await promise(agent, "diamonds", 250)
    assert "2 points worse" in said["text"]
    assert said["standing"] != "broken"


async def test_series_are_answered_and_the_target_is_kept(
    settings: AgentSettings,
) -> None:
    series, digits = recordings.samples()
    fits = [at for at, each in enumerate(series) if len(each) <= recordings.FRAMES]
    async with serving(settings) as agent:
        found = await answers(
            agent,
            "spoken",
            ({"frames": recordings.padded(series[at])[np.newaxis]} for at in fits),
        )
        assert 0.02 < spilled(found) < 0.15
        assert right(found, recordings.DIGITS, digits[fits]) > 0.96
        said = await promise(agent, "spoken", len(fits))
    assert "10% spilled" in said["text"]
    assert said["standing"] != "broken"


async def test_a_series_too_long_for_the_edge_is_answered_by_the_cloud(
    settings: AgentSettings, mosquitto: str
) -> None:
    series, digits = recordings.samples()
    at = next(at for at, each in enumerate(series) if len(each) > recordings.FRAMES)
    async with serving(settings), device(mosquitto, "mic1") as mic:
        frames = [series[at].tolist()]
        await mic.send("spoken", {"id": "long", "inputs": {"frames": frames}})
        answer = await mic.final("long")
    assert (answer["source"], answer["reason"]) == ("cloud", "oversized")
    assert answer["label"] == recordings.DIGITS[digits[at]]


async def test_token_ids_are_answered_on_the_edge_or_by_the_cloud_whatever_their_number(
    settings: AgentSettings, mosquitto: str
) -> None:
    ids, labels = texts(150, LENGTH, seed=2)
    long = [[YES, *[1] * (2 * LENGTH), NO, YES]]
    async with serving(settings), device(mosquitto, "pen1") as pen:
        for number, each in enumerate(ids[:60]):
            # A list of whole numbers, as a device without numpy writes it.
            asked = {"id": f"t{number}", "inputs": {"ids": [each.tolist()]}}
            await pen.send("words", asked)
        await pen.send("words", {"id": "long", "inputs": {"ids": long}})
        found = [await pen.final(f"t{number}") for number in range(60)]
        answer = await pen.final("long")
    sources = [each["source"] for each in found]
    assert set(sources) == {"edge", "cloud"}
    assert sources.count("edge") > sources.count("cloud")
    truth = [CLASSES[label] for label in labels[:60]]
    for each, label in zip(found, truth, strict=True):
        assert each["source"] == "edge" or each["label"] == label
    agreed = [a["label"] == b for a, b in zip(found, truth, strict=True)]
    assert np.mean(agreed) > 0.9
    assert (answer["source"], answer["reason"]) == ("cloud", "oversized")
    assert answer["label"] == "yes"


async def test_many_rows_at_once_are_all_answered(settings: AgentSettings) -> None:
    sample, _ = rows.samples()
    async with serving(settings) as agent:
        found = await asyncio.gather(
            *(
                agent.infer("diamonds", {"row": each[np.newaxis]})
                for each in sample[:50]
            )
        )
    assert {each.status for each in found} == {"answered"}
