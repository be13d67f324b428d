"""The agent inside a program that embeds it, with and without a cloud."""

from __future__ import annotations

import asyncio
import contextlib
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from broker.ports import free_port
from bundle.recipe import decode_image
from edge_agent.adapters.control import ControlError
from edge_agent.app import Agent
from edge_agent.core.answers import Source
from edge_agent.core.calls import Inputs
from edge_agent.core.slots import Slots, State
from edge_agent.settings import AgentSettings
from tests.integration.edge_agent.edge import ROOT, SHIRT, tiny, until_status

CUSTOM_OP = ROOT / "tests" / "contract" / "models" / "custom_op.tflite"
IMAGE = np.zeros((1, 28, 28, 1), np.float32)
BYTES = np.arange(1024, dtype=np.uint8).reshape(1, 1024)
Made = Callable[..., AgentSettings]


@pytest.fixture
def offline(short_tmp: Path) -> Made:
    """Settings of an agent whose cloud is not there, unsure of every answer."""

    def made(*, threshold: float = 1.0, **more: Any) -> AgentSettings:
        folder = short_tmp / f"tiny-{threshold}"
        bundle = folder if folder.exists() else tiny(folder, threshold=threshold)
        usual: dict[str, Any] = {
            "agent_id": "embedded",
            "state_dir": short_tmp / "agent",
            "cloud_url": f"mqtt://127.0.0.1:{free_port()}",
            "local": False,
            "bundles": [bundle],
            "disk_reserve_bytes": 0,
        }
        return AgentSettings(**{**usual, **more})

    return made


async def test_an_image_its_array_and_its_named_array_are_the_same_request(
    offline: Made,
) -> None:
    async with Agent(offline(threshold=0.0)) as agent:
        served = agent._requests.serving.model("fashion")
        assert served is not None
        assert served.manifest.preprocess is not None
        array = decode_image(SHIRT, served.manifest.preprocess, max_pixels=10**6)
        answers = [
            await agent.infer("fashion", each)
            for each in (SHIRT, array, {"image": array})
        ]
    assert {answer.status.value for answer in answers} == {"answered"}
    assert {answer.source for answer in answers} == {Source.EDGE}
    assert len({answer.label for answer in answers}) == 1
    assert len({answer.id for answer in answers}) == 3
    assert {answer.device for answer in answers} == {"embedded"}


@pytest.mark.parametrize(
    ("model", "inputs", "more", "why"),
    [
        ("fashion", np.full_like(IMAGE, np.nan), {}, "NaN"),
        ("fashion", {"image": np.full_like(IMAGE, np.inf)}, {}, "NaN or infinity"),
        ("fashion", np.full((1, 28, 28, 1), "a"), {}, "<U1"),
        ("nobody", np.array([1j]), {}, "complex128"),
        ("nobody", np.array([object()]), {}, "object"),
        ("fashion", np.zeros((1, 5, 5, 1), np.float32), {}, "5"),
        ("fashion", {"picture": IMAGE}, {}, "picture"),
        ("fashion", b"no image", {}, "not a PNG or JPEG"),
        ("fashion", SHIRT[:100], {}, "image"),
        ("fashion", np.zeros(2_000_000, np.float32), {}, "over the limit of 4000000"),
        ("fashion", SHIRT, {"id": "a.b"}, "'a.b' is not a valid id"),
        ("fashion", SHIRT, {"device": "a/b"}, "'a/b' is not a valid id"),
        ("Fashion", SHIRT, {}, "'Fashion' is not a valid id"),
        ("fashion", SHIRT, {"deadline_s": 0.0}, "deadline"),
        ("fashion", SHIRT, {"deadline_s": float("nan")}, "deadline"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
async def test_what_cannot_be_taken_is_refused_and_never_raised(
    offline: Made, model: str, inputs: Inputs, more: dict[str, Any], why: str
) -> None:
    async with Agent(offline(max_payload_bytes=4_000_000)) as agent:
        answer = await agent.infer(model, inputs, **more)
        assert answer.status.value == "refused"
        assert answer.reason is not None
        assert why in answer.reason
        assert answer.final
        assert answer.retry_after_s is None  # sending the same again would not help
        assert (await agent.status())["outbox"]["open"] == 0


async def test_a_resent_id_hears_the_same_outcome_in_this_life_and_the_next(
    offline: Made,
) -> None:
    async def ask(agent: Agent) -> tuple[Any, ...]:
        answer = await agent.infer("fashion", SHIRT, id="r1", deadline_s=0.2)
        assert answer.source is Source.EDGE_FALLBACK
        assert answer.outputs is not None
        return (answer.label, answer.ms, answer.reason, answer.outputs["logits"].sum())

    async with Agent(offline()) as agent:
        both = await asyncio.gather(ask(agent), ask(agent))
        assert both[0] == both[1] == await ask(agent)
        assert (await agent.status())["outbox"]["answered"] == 1
    async with Agent(offline()) as agent:
        assert await ask(agent) == both[0]


async def test_a_caller_that_gives_up_leaves_the_request_to_its_outcome(
    offline: Made,
) -> None:
    async with Agent(offline()) as agent:
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(0.1):
                await agent.infer("copy", {"payload": BYTES}, id="r1", deadline_s=0.3)
        again = await agent.infer("copy", {"payload": BYTES}, id="r1")
        assert again.status.value == "expired"
        assert (await agent.status())["outbox"]["expired"] == 1


async def test_a_request_of_an_earlier_life_can_be_waited_for(offline: Made) -> None:
    async with Agent(offline()) as agent, asyncio.TaskGroup() as tasks:
        asking = tasks.create_task(
            agent.infer("copy", {"payload": BYTES}, id="r1", deadline_s=0.6)
        )
        await until_status(agent, lambda status: status["outbox"]["open"])
        asking.cancel()
    async with Agent(offline()) as agent:
        async with asyncio.timeout(5):
            answer = await agent.infer("copy", {"payload": BYTES}, id="r1")
        assert answer.status.value == "expired"


async def test_a_full_disk_gives_the_edges_answer_or_refuses_with_a_reason(
    offline: Made,
) -> None:
    async with Agent(offline()) as agent:
        # `tests/contract/test_outbox.py` fills a real file; this says the same.
        agent._requests.outbox._table._db.execute(
            "CREATE TRIGGER no_room BEFORE INSERT ON spill "
            "BEGIN SELECT RAISE(ABORT, 'database or disk is full'); END"
        )
        hard = await agent.infer("fashion", SHIRT, id="hard")
        assert (hard.id, hard.source) == ("hard", Source.EDGE_FALLBACK)
        assert hard.label
        refused = await agent.infer("copy", {"payload": BYTES}, id="refused")
        assert (refused.id, refused.status.value) == ("refused", "refused")
        for answer in (hard, refused):
            assert answer.reason is not None
            assert "disk is full" in answer.reason
        assert refused.retry_after_s is not None
        assert refused.retry_after_s > 0


async def test_two_agents_never_share_a_state_folder(offline: Made) -> None:
    async with Agent(offline()) as first:
        with pytest.raises(ControlError, match="another agent already runs"):
            async with Agent(offline(agent_id="second")):
                pass
        assert (await first.infer("fashion", SHIRT, deadline_s=0.1)).label
    async with Agent(offline()):
        pass  # It was let go of.


async def test_a_ca_file_of_its_own_setting_is_used_for_the_cloud(
    offline: Made, tmp_path: Path
) -> None:
    secure = offline(
        cloud_url=f"mqtts://127.0.0.1:{free_port()}",
        cloud_ca_file=tmp_path / "absent.pem",
    )
    async with Agent(secure) as agent:
        status = await until_status(agent, lambda status: status["cloud"]["error"])
    assert "does not exist" in status["cloud"]["error"]


async def test_a_bundle_that_cannot_run_is_reported_with_its_operator(
    offline: Made, tmp_path: Path
) -> None:
    odd = tiny(tmp_path / "odd", threshold=0.0)
    shutil.copy(CUSTOM_OP, odd / "model.tflite")
    async with Agent(offline(bundles=[odd], cloud_url=None)) as agent:
        model = (await agent.status())["models"]["fashion"]
        assert (model["serving"], model["active"]) == (None, None)
        assert (model["state"], model["staged"]) == ("refused", "1")
        assert "operator MatrixDeterminant" in model["reason"]
        answer = await agent.infer("fashion", SHIRT)
        assert answer.status.value == "refused"


async def test_a_model_that_the_disk_damaged_gives_way_to_the_previous_one(
    offline: Made, tmp_path: Path
) -> None:
    settings = offline(threshold=0.0)
    second = tiny(tmp_path / "second", threshold=0.0)
    manifest = second / "manifest.json"
    manifest.write_text(
        manifest.read_text().replace('"version": "1"', '"version": "2"')
    )
    async with Agent(settings) as agent:
        stored = agent._models.store.provision(second)
        slots = Slots("fashion", active="2", previous="1", state=State.SWAPPED)
        agent._models.store.save(slots)
    model_file = stored.folder / "model.tflite"
    whole = model_file.read_bytes()
    model_file.write_bytes(whole[:-1] + b"?")
    async with Agent(settings) as agent:
        model = (await agent.status())["models"]["fashion"]
        assert (model["serving"], model["active"]) == ("1", "1")
        assert (model["state"], model["staged"]) == ("refused", "2")
        assert "model.tflite" in model["reason"]
        assert (await agent.infer("fashion", SHIRT)).version == "1"
    model_file.write_bytes(whole)  # Mended, it serves again.
    async with Agent(settings) as agent:
        assert (await agent.status())["models"]["fashion"]["serving"] == "2"
