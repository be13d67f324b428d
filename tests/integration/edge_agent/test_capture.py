"""What an agent spills is kept by the pool, unless somebody on the way forbids it."""

from __future__ import annotations

import base64
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from broker.node import Node
from cloud_worker.adapters.example_view import ExampleView, Filter, Found, NoExamples
from edge_agent.settings import AgentSettings
from tests.integration.edge_agent.conftest import Settings
from tests.integration.edge_agent.edge import (
    CLOUD_VERSION,
    SHIRT,
    WARDROBE,
    Device,
    device,
    pool_models,
    serving,
    tiny,
    worker,
)
from tests.waiting import until

SHIRT_TEXT = base64.b64encode(SHIRT).decode()


@pytest.fixture(scope="module")
def capturing(rabbit: Node, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """The folder of a worker that may keep examples of `fashion`, and none of `copy`."""
    folder = tmp_path_factory.mktemp("capturing")
    models = pool_models(folder / "models")
    sidecar = models / "fashion" / CLOUD_VERSION / "model.json"
    sidecar.write_text(json.dumps({**json.loads(sidecar.read_text()), "capture": True}))
    with pytest.MonkeyPatch.context() as patched:
        patched.setenv("OVERSPILL_WORKER_EXAMPLES", str(folder / "examples"))
        patched.setenv("OVERSPILL_WORKER_EXAMPLES_RESERVE_MB", "0")
        with worker(rabbit.amqp_url("worker"), models):
            yield folder / "examples"


def kept(folder: Path, **wanted: Any) -> list[Found]:
    """What is kept by now."""
    try:
        with ExampleView(folder) as view:
            return view.find(Filter(**wanted))
    except NoExamples:
        return []


async def ask(cam: Device, id_: str, **more: object) -> dict[str, Any]:
    await cam.send("fashion", {"id": id_, "image": SHIRT_TEXT, "spill": True, **more})
    return await cam.final(id_)


@pytest.mark.integration
async def test_a_hard_request_is_kept_with_what_both_models_said_of_it(
    settings: Settings, mosquitto: str, capturing: Path, short_tmp: Path
) -> None:
    unsure = settings(bundles=[tiny(short_tmp / "unsure", threshold=1.0)])
    async with serving(unsure), device(mosquitto) as cam:
        await cam.send("fashion", {"id": "hard-1", "image": SHIRT_TEXT})
        answer = await cam.final("hard-1")
        assert answer["source"] == "cloud"
        await until(lambda: kept(capturing, reason="hard"))
        (found,) = kept(capturing, reason="hard")
    example = found.read()
    assert example.inputs.medium is not None
    assert example.inputs.medium.data == SHIRT
    assert example.edge is not None
    assert example.edge.label is not None
    assert example.edge.confidence is not None
    assert example.cloud.label == answer["label"]
    assert example.cloud.confidence == pytest.approx(answer["confidence"])
    assert found.about()["labels"][0] == "T-shirt/top"
    (of_device,) = kept(capturing, device="agent-1/cam1")
    assert of_device.row == found.row
    assert kept(capturing, device="agent-1/cam2") == []


async def counted_again(folder: Path, cam: Device, id_: str) -> int:
    """How often the shirt was counted once an allowed request has been."""
    before = sum(each.row.count for each in kept(folder, model="fashion"))
    await ask(cam, id_)
    await until(
        lambda: sum(each.row.count for each in kept(folder, model="fashion")) > before
    )
    return sum(each.row.count for each in kept(folder, model="fashion")) - before


@pytest.mark.integration
@pytest.mark.parametrize("who", ["device", "agent", "bundle"])
async def test_what_is_forbidden_on_the_way_is_answered_and_not_kept(
    who: str,
    settings: Settings,
    mosquitto: str,
    capturing: Path,
    short_tmp: Path,
) -> None:
    forbidding: AgentSettings = settings()
    more: dict[str, object] = {}
    if who == "device":
        more["capture"] = False
    elif who == "agent":
        forbidding = settings(forbid_capture=["fashion"])
    else:
        bundle = tiny(short_tmp / "private", threshold=0.0)
        manifest = json.loads((bundle / "manifest.json").read_text())
        manifest["capture"] = False
        (bundle / "manifest.json").write_text(json.dumps(manifest))
        forbidding = settings(bundles=[bundle])
    image = base64.b64encode(WARDROBE).decode()
    async with serving(forbidding), device(mosquitto) as cam:
        answer = await ask(cam, f"no-{who}", image=image, **more)
        assert answer["source"] == "cloud"
    other = settings(state_dir=short_tmp / "other")
    async with serving(other), device(mosquitto) as cam:
        # One that is allowed comes after it, and is kept: so there was time.
        assert await counted_again(capturing, cam, f"yes-{who}") == 1
    assert all(
        (medium := each.read().inputs.medium) is None or medium.data != WARDROBE
        for each in kept(capturing)
    )


@pytest.mark.integration
async def test_a_model_of_which_nothing_is_said_is_not_kept(
    settings: Settings, mosquitto: str, capturing: Path
) -> None:
    data = base64.b64encode(bytes(1024)).decode()
    payload = {"dtype": "uint8", "shape": [1, 1024], "data": data}
    async with serving(settings()), device(mosquitto) as cam:
        await cam.send("copy", {"id": "copy-1", "inputs": {"payload": payload}})
        assert (await cam.final("copy-1"))["source"] == "cloud"
        await counted_again(capturing, cam, "yes-copy")
    assert kept(capturing, model="copy") == []


@pytest.mark.integration
async def test_rows_are_kept_as_they_were_sent(
    settings: Settings, mosquitto: str, capturing: Path
) -> None:
    picture = np.linspace(0, 1, 784, dtype=np.float32).reshape(1, 28, 28, 1)
    array = {
        "dtype": "float32",
        "shape": [1, 28, 28, 1],
        "data": base64.b64encode(picture.tobytes()).decode(),
    }
    several = {
        "dtype": "float32",
        "shape": [2, 28, 28, 1],
        "data": base64.b64encode(picture.tobytes() * 2).decode(),
    }
    async with serving(settings()), device(mosquitto) as cam:
        for id_, value in (("several", several), ("one", array)):
            await cam.send(
                "fashion", {"id": id_, "inputs": {"image": value}, "spill": True}
            )
            assert (await cam.final(id_))["source"] == "cloud", cam.of(id_)

        def rows() -> list[Found]:
            found = kept(capturing, model="fashion")
            return [each for each in found if each.read().inputs.tensors]

        await until(rows)
        (found,) = rows()
    example = found.read()
    assert example.batched
    assert example.inputs.tensors is not None
    (tensor,) = example.inputs.tensors.values()
    assert tensor.shape == [1, 28, 28, 1]
    assert tensor.data == picture.tobytes()
