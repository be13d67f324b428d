"""Devices on a real Mosquitto, an agent, a real RabbitMQ and a real worker."""

from __future__ import annotations

import asyncio
import base64
import json
from pathlib import Path
from typing import Any

import msgpack
import numpy as np
import pytest

from broker.codec import encode
from broker.messages import Result, Status
from broker.mqtt.link import MqttLink
from broker.mqtt.target import MqttTarget
from broker.node import Node
from broker.ports import free_port
from broker.topics import results
from tests.integration.edge_agent.conftest import Settings
from tests.integration.edge_agent.edge import (
    CLOUD_VERSION,
    SHIRT,
    WARDROBE,
    WorkerProcess,
    device,
    read,
    serving,
    tiny,
    until_status,
)
from tests.waiting import until

pytestmark = [
    pytest.mark.integration,
    # The first test of a run waits for RabbitMQ and for the worker.
    pytest.mark.timeout(120),
]

NOWHERE = "mqtt://nobody:nothing@127.0.0.1:{port}"
PIXELS = np.frombuffer(SHIRT[:1024].ljust(1024, b"\0"), np.uint8).reshape(1, 1024)
COPY_JSON = {
    "payload": {
        "dtype": "uint8",
        "shape": [1, 1024],
        "data": base64.b64encode(PIXELS.tobytes()).decode(),
    }
}


async def test_an_image_a_json_and_a_messagepack_request_are_answered_in_kind(
    settings: Settings, mosquitto: str
) -> None:
    image_json = {"id": "j1", "image": base64.b64encode(SHIRT).decode()}
    image_msgpack = msgpack.packb({"id": "m1", "image": SHIRT})
    async with serving(settings(cloud_url=None)), device(mosquitto) as cam:
        await cam.send("fashion", SHIRT)
        first = await cam.next_answer(0)
        await cam.send("fashion", image_json)
        await cam.send("fashion", image_msgpack)
        for id_ in ("j1", "m1"):
            answer = await cam.final(id_)
            assert answer["label"] == first["label"]
            assert answer["confidence"] == pytest.approx(first["confidence"])
    starts = {read(raw)["id"]: raw[:1] for _, raw in cam.raw}
    assert starts[first["id"]] == b"{"
    assert starts["j1"] == b"{"
    assert 0x80 <= starts["m1"][0] <= 0x8F
    assert (first["status"], first["source"]) == ("answered", "edge")
    assert (first["device"], first["model"], first["version"]) == (
        "cam1",
        "fashion",
        "1",
    )
    assert first["final"]
    assert 0 < first["confidence"] <= 1
    assert first["ms"] > 0
    assert np.shape(first["outputs"]["logits"]) == (1, 10)


async def test_what_comes_back_from_the_cloud_is_what_was_sent(
    settings: Settings, mosquitto: str, pool: WorkerProcess
) -> None:
    async with serving(settings()), device(mosquitto) as cam:
        await cam.send("copy", {"id": "j", "inputs": COPY_JSON})
        await cam.send(
            "copy",
            msgpack.packb(
                {
                    "id": "m",
                    "inputs": {
                        "payload": {
                            "dtype": "uint8",
                            "shape": [1, 1024],
                            "data": PIXELS.tobytes(),
                        }
                    },
                    "class": "hi",
                }
            ),
        )
        await cam.send(
            "copy", {"id": "l", "inputs": {"payload": PIXELS.tolist()}, "class": "bulk"}
        )
        in_json, in_msgpack, in_lists = [await cam.final(id_) for id_ in "jml"]
    assert in_json["outputs"]["payload_out"] == PIXELS.tolist()
    assert in_msgpack["outputs"]["payload_out"]["data"] == PIXELS.tobytes()
    for answer in (in_json, in_msgpack):
        assert (answer["status"], answer["source"]) == ("answered", "cloud")
        assert answer["reason"] == "no_local_model"
    # A list has no dtype: its whole numbers become this model's uint8.
    assert in_lists["outputs"]["payload_out"] == PIXELS.tolist()


async def test_each_reason_to_ask_the_cloud_is_told(
    settings: Settings, mosquitto: str, pool: WorkerProcess, tmp_path: Path
) -> None:
    unsure = settings(bundles=[tiny(tmp_path / "unsure", threshold=1.0)])
    async with serving(unsure) as agent, device(mosquitto) as cam:
        image = base64.b64encode(SHIRT).decode()
        await cam.send("fashion", {"id": "hard", "image": image})
        await cam.send("fashion", {"id": "forced", "image": image, "spill": True})
        await cam.send(
            "fashion", {"id": "oversized", "image": base64.b64encode(WARDROBE).decode()}
        )
        await cam.send("copy", {"id": "no_local_model", "inputs": COPY_JSON})
        reasons = ("hard", "forced", "oversized", "no_local_model")
        for reason in reasons:
            answer = await cam.final(reason)
            assert (answer["status"], answer["source"]) == ("answered", "cloud"), answer
            assert answer["reason"] == reason
            if answer["model"] == "fashion":
                assert answer["version"] == CLOUD_VERSION
                assert answer["label"]
                assert 0 < answer["confidence"] <= 1
        # A bare image that is too large for the edge, too.
        await cam.send("fashion", WARDROBE)
        await until(lambda: len({each["id"] for each in cam.answers}) == 5)
        status = await until_status(agent, lambda each: not each["outbox"]["open"])
        counters = status["counters"]
        assert {reason: counters[f"spilled_{reason}"] for reason in reasons} == {
            "hard": 1,
            "forced": 1,
            "oversized": 2,
            "no_local_model": 1,
        }
        await until_status(agent, lambda each: each["outbox"]["answered"] == 5)


async def test_accepted_comes_at_once_when_the_cloud_is_slow_and_the_answer_later(
    settings: Settings, mosquitto: str, pool: WorkerProcess
) -> None:
    async with serving(settings()), device(mosquitto) as cam:
        with pool.paused():
            await cam.send("fashion", SHIRT)  # The edge does not wait for the cloud.
            assert (await cam.next_answer(0))["source"] == "edge"
            await cam.send("copy", {"id": "slow", "inputs": COPY_JSON})
            await until(lambda: cam.of("slow"))
            (accepted,) = cam.of("slow")
            assert (accepted["status"], accepted["final"]) == ("accepted", False)
            assert accepted["reason"] == "no_local_model"
        await cam.final("slow")
    assert [each["status"] for each in cam.of("slow")] == ["accepted", "answered"]


async def test_a_resent_id_hears_the_same_and_is_not_inferred_again(
    settings: Settings, mosquitto: str, pool: WorkerProcess
) -> None:
    # The agent's own timer must not send in between.
    patient = settings(resend_after_s=60.0)
    request = {"id": "again", "inputs": COPY_JSON}
    async with serving(patient) as agent, device(mosquitto) as cam:
        with pool.paused():
            await cam.send("copy", request)
            await until(lambda: cam.of("again"))
            await cam.send("copy", request)
            await until(lambda: len(cam.of("again")) == 2)
            assert cam.of("again")[1]["status"] == "accepted"
            assert cam.of("again")[1]["reason"] == "sent before"
        await cam.final("again")
        (told,) = (raw for _, raw in cam.raw if json.loads(raw)["final"])
        seen = len(cam.raw)
        await cam.send("copy", request)
        await until(lambda: len(cam.raw) == seen + 1)
        assert cam.raw[-1] == ("answer/cam1", told)
        # Another device may use the same id for something else.
        await cam.send("copy", request, device="cam2")
        await until(lambda: cam.raw[-1][0] == "answer/cam2")
        await until_status(agent, lambda each: each["outbox"]["answered"] == 2)
        status = await agent.status()
        assert status["counters"]["sent"] == 2
        # The pool, too, has answered two: what an earlier test left is a stranger's.
        assert status["counters"]["results"] - status["counters"]["strangers"] == 2


async def test_at_the_deadline_the_edge_answers_or_the_request_expires(
    settings: Settings, mosquitto: str, tmp_path: Path
) -> None:
    offline = settings(
        bundles=[tiny(tmp_path / "unsure", threshold=1.0)],
        cloud_url=NOWHERE.format(port=free_port()),
    )
    image = base64.b64encode(SHIRT).decode()
    async with serving(offline, cloud=False) as agent, device(mosquitto) as cam:
        await cam.send("fashion", {"id": "hard", "image": image, "deadline_ms": 300})
        await cam.send("copy", {"id": "lost", "inputs": COPY_JSON, "deadline_ms": 300})
        hard, lost = [await cam.final(id_) for id_ in ("hard", "lost")]
        status = await until_status(agent, lambda each: each["outbox"]["untold"] == 0)
    assert (hard["status"], hard["source"]) == ("answered", "edge_fallback")
    assert hard["label"]
    assert "deadline" in hard["reason"]
    assert 300 <= hard["ms"] < 2000
    assert (lost["status"], lost["source"]) == ("expired", None)
    assert "deadline" in lost["reason"]
    assert [each["status"] for each in cam.of("lost")] == ["accepted", "expired"]
    outbox = status["outbox"]
    assert (outbox["answered"], outbox["expired"], outbox["open"]) == (1, 1, 0)


async def test_a_restarted_agent_answers_what_it_had_accepted(
    settings: Settings, mosquitto: str, pool: WorkerProcess
) -> None:
    offline = settings(cloud_url=NOWHERE.format(port=free_port()))
    ids = [f"r{number}" for number in range(40)]
    async with device(mosquitto) as cam:
        async with serving(offline, cloud=False):
            for id_ in ids:
                await cam.send("copy", {"id": id_, "inputs": COPY_JSON})
            await until(lambda: len(cam.raw) == len(ids))
            assert {each["status"] for each in cam.answers} == {"accepted"}
        async with serving(settings()) as agent:
            for id_ in ids:
                assert (await cam.final(id_))["source"] == "cloud"
            status = await until_status(
                agent, lambda each: not each["outbox"]["untold"]
            )
            # A backlog travels together.
            assert status["counters"]["envelopes"] <= 4
        async with serving(settings()):  # And tells nobody twice.
            await cam.send("fashion", SHIRT)
            await until(lambda: len(cam.raw) > 2 * len(ids))
    assert len(cam.raw) == 2 * len(ids) + 1


async def test_a_result_for_a_stranger_is_ignored(
    settings: Settings, mosquitto: str, rabbit: Node, pool: WorkerProcess
) -> None:
    stranger = MqttLink(
        MqttTarget.from_url(rabbit.mqtt_url("admin")),
        client_id="stranger",
        on_message=lambda _topic, _payload: None,
        persistent=False,
    )
    nobodys = Result(id="nobodys", device="cam1", model="copy", status=Status.OK)
    async with (
        serving(settings()) as agent,
        device(mosquitto) as cam,
        asyncio.TaskGroup() as tasks,
    ):
        before = (await agent.status())["counters"]
        task = tasks.create_task(stranger.run())
        await stranger.wait_up()
        await stranger.publish(results("agent-1"), encode(nobodys))
        await stranger.publish(results("agent-1"), b"\xc1 nonsense")
        await stranger.publish("e1/agent-1/dn/what", b"")
        await stranger.publish("e1/agent-1/dn/blob", b"nonsense")
        await until_status(
            agent,
            lambda each: (
                each["counters"]["strangers"] == before["strangers"] + 1
                and each["counters"]["unreadable"] == before["unreadable"] + 1
            ),
        )
        task.cancel()
        await cam.send("copy", {"id": "mine", "inputs": COPY_JSON})
        assert (await cam.final("mine"))["status"] == "answered"
        assert {each["id"] for each in cam.answers} == {"mine"}


async def test_wrong_credentials_are_told_by_status_and_the_edge_goes_on(
    settings: Settings, mosquitto: str, rabbit: Node
) -> None:
    wrong = settings(
        cloud_url=f"mqtt://agent-1:wrong@127.0.0.1:{rabbit.info.mqtt_port}"
    )
    async with serving(wrong, cloud=False) as agent, device(mosquitto) as cam:
        status = await until_status(agent, lambda each: each["cloud"]["error"])
        assert not status["cloud"]["up"]
        assert "refused user 'agent-1'" in status["cloud"]["error"]
        assert "wrong@" not in json.dumps(status)
        await cam.send("fashion", SHIRT)
        assert (await cam.next_answer(0))["source"] == "edge"
        await cam.send("copy", {"id": "kept", "inputs": COPY_JSON})
        await until(lambda: cam.of("kept"))
        assert cam.of("kept")[0]["status"] == "accepted"


async def test_over_its_limit_ingress_refuses_and_drops_nothing(
    settings: Settings, mosquitto: str
) -> None:
    # Every accept waits for its group, so all of these are in hand at once.
    small = settings(
        ingress_limit=5,
        group_commit_ms=1000.0,
        cloud_url=NOWHERE.format(port=free_port()),
    )
    async with serving(small, cloud=False) as agent, device(mosquitto) as cam:
        await asyncio.gather(
            *(
                cam.send("copy", {"id": f"r{number}", "inputs": COPY_JSON})
                for number in range(10)
            )
        )
        await until(lambda: len(cam.raw) == 10)
        by_status: dict[str, list[str]] = {}
        for each in cam.answers:
            by_status.setdefault(each["status"], []).append(each["id"])
        assert sorted(by_status) == ["accepted", "refused"]
        assert len(by_status["accepted"]) == 5
        assert {each["id"] for each in cam.answers} == {f"r{n}" for n in range(10)}
        refused = [each for each in cam.answers if each["status"] == "refused"]
        assert refused[0]["final"]
        assert "5 requests in hand; send again later" in refused[0]["reason"]
        # Not all at once.
        assert len({each["retry_after_s"] for each in refused}) > 1
        assert all(1 <= each["retry_after_s"] <= 2 for each in refused)
        assert not any(
            "retry_after_s" in each for each in cam.answers if each["final"] is False
        )
        status = await agent.status()
        assert status["counters"]["ingress_refused_busy"] == 5
        await cam.send("fashion", SHIRT)
        assert (await cam.next_answer(10))["source"] == "edge"


async def test_a_full_outbox_refuses_with_a_reason_and_the_edge_answers_on(
    settings: Settings, mosquitto: str, tmp_path: Path
) -> None:
    full = settings(
        bundles=[tiny(tmp_path / "unsure", threshold=1.0)],
        outbox_max_rows=1,
        cloud_url=NOWHERE.format(port=free_port()),
    )
    image = base64.b64encode(SHIRT).decode()
    async with serving(full, cloud=False), device(mosquitto) as cam:
        await cam.send("copy", {"id": "kept", "inputs": COPY_JSON, "deadline_ms": 1500})
        await until(lambda: cam.of("kept"))
        await cam.send("copy", {"id": "refused", "inputs": COPY_JSON})
        refused = await cam.final("refused")
        assert refused["status"] == "refused"
        assert "outbox holds 1 requests, its limit" in refused["reason"]
        await cam.send("fashion", {"id": "hard", "image": image})
        hard = await cam.final("hard")
        assert (hard["status"], hard["source"]) == ("answered", "edge_fallback")
        assert "outbox holds 1 requests" in hard["reason"]
        assert (await cam.final("kept"))["status"] == "expired"
        await cam.send("copy", {"id": "again", "inputs": COPY_JSON})
        await until(lambda: cam.of("again"))
        assert cam.of("again")[0]["status"] == "accepted"


async def test_the_broker_that_the_agent_embeds_serves_devices_as_well(
    settings: Settings, free_port: int
) -> None:
    embedded = settings(cloud_url=None, local_url=None, embedded_port=free_port)
    async with (
        serving(embedded) as agent,
        device(f"mqtt://127.0.0.1:{free_port}") as cam,
    ):
        await cam.send("fashion", SHIRT)
        assert (await cam.next_answer(0))["source"] == "edge"
        await cam.send("copy", {"id": "no-cloud", "inputs": COPY_JSON})
        refused = await cam.final("no-cloud")
        assert refused["status"] == "refused"
        assert "no model of that name" in refused["reason"]
        assert "cloud_url is not set" in refused["reason"]
        assert (await agent.status())["local"]["embedded"]


# --- bad input -----------------------------------------------------------------------

GOOD: dict[str, Any] = {"image": base64.b64encode(SHIRT).decode()}


def inputs(**arrays: Any) -> dict[str, Any]:
    return {"id": "bad", "inputs": arrays}


def tensor(
    shape: list[int], dtype: str = "float32", fill: float = 0.0
) -> dict[str, Any]:
    data = np.full(shape, fill, dtype).tobytes()
    return {"dtype": dtype, "shape": shape, "data": data}


BAD: dict[str, tuple[str, bytes | dict[str, Any], str]] = {
    "truncated MessagePack": (
        "fashion",
        msgpack.packb({"id": "x", "image": SHIRT})[:-9],
        "not MessagePack",
    ),
    "MessagePack that promises too much": (
        "fashion",
        b"\xdf\xff\xff\xff\xff",
        "not MessagePack",
    ),
    "MessagePack over the limit": (
        "fashion",
        msgpack.packb({"image": SHIRT + bytes(200_000)}),
        "over the limit of 200000",
    ),
    "MessagePack of another shape": ("fashion", msgpack.packb({"x": 1}), "either"),
    "JSON of another shape": ("fashion", {"id": "bad", "picture": 1}, "either"),
    "JSON that is a list": ("fashion", b"[1, 2]", "a request is a map"),
    "half a JSON": ("fashion", b'{"id": "bad"', "not JSON"),
    "nothing at all": ("fashion", b"", "none of JSON"),
    "noise": ("fashion", bytes(range(1, 255)), "none of JSON"),
    "an image that does not decode": (
        "fashion",
        SHIRT[:8] + b"\0" * 500,
        "image",
    ),
    "half an image": ("fashion", SHIRT[:150], "image"),
    "an image that is none": ("fashion", {"id": "bad", "image": "AAAA"}, "neither"),
    "a dtype that is none": (
        "fashion",
        msgpack.packb(inputs(image={**tensor([1, 28, 28, 1]), "dtype": "complex64"})),
        "complex64",
    ),
    "a shape that is not its data's": (
        "fashion",
        msgpack.packb(inputs(image={**tensor([1, 28, 28, 1]), "shape": [1, 28]})),
        "needs 112 bytes",
    ),
    "a shape that the model does not take": (
        "fashion",
        msgpack.packb(inputs(image=tensor([1, 20, 20, 1]))),
        "20",
    ),
    "an input that the model has not": (
        "fashion",
        msgpack.packb(inputs(picture=tensor([1, 28, 28, 1]))),
        "picture",
    ),
    "words for numbers": ("fashion", inputs(image=["shirt"]), "numbers"),
    "NaN": (
        "fashion",
        msgpack.packb(inputs(image=tensor([1, 28, 28, 1], fill=float("nan")))),
        "NaN",
    ),
    "NaN in JSON": ("fashion", b'{"id": "bad", "inputs": {"x": [NaN]}}', "NaN"),
    "an id with a dot": ("fashion", {**GOOD, "id": "a.b"}, "no dots, no slashes"),
    "an id with a slash": ("fashion", {**GOOD, "id": "a/b"}, "no dots, no slashes"),
    "a model with a dot": ("fash.ion", GOOD, "model 'fash.ion' is not a valid id"),
    "an unknown class": ("fashion", {**GOOD, "class": "now"}, "'class' is one of"),
    "a deadline in the past": ("fashion", {**GOOD, "deadline_ms": -1}, "deadline_ms"),
}


async def test_whatever_a_device_sends_it_hears_why_and_the_agent_lives(
    settings: Settings, mosquitto: str
) -> None:
    strict = settings(max_payload_bytes=200_000)
    async with serving(strict) as agent, device(mosquitto) as cam:
        for what, (model, payload, why) in BAD.items():
            seen = len(cam.raw)
            await cam.send(model, payload)
            answer = await cam.next_answer(seen)
            assert answer["status"] == "refused", what
            assert why in answer["reason"], (what, answer["reason"])
            assert answer["final"], what
            if isinstance(payload, dict) and payload.get("id") == "bad":
                assert answer["id"] == "bad", what
        status = await agent.status()
        assert status["outbox"]["open"] == 0
        assert sum(status["outbox"][each] for each in ("answered", "failed")) == 0
        seen = len(cam.raw)
        await cam.send("fashion", SHIRT)
        assert (await cam.next_answer(seen))["status"] == "answered"


@pytest.mark.parametrize(
    ("topic", "answered", "says"),
    [
        ("infer/cam.1/fashion", "answer/cam.1", "device 'cam.1' is not a valid id"),
        ("infer/a/b/fashion", "answer/a/b", "device 'a/b' is not a valid id"),
        ("infer/Cam1/fashion", "answer/Cam1", "device 'Cam1' is not a valid id"),
        ("infer/cam1/", "answer/cam1", "model '' is not a valid id"),
        ("infer/cam1", "answer/cam1", "model '' is not a valid id"),
    ],
)
async def test_a_topic_that_names_nobody_is_answered_where_it_came_from(
    settings: Settings, mosquitto: str, topic: str, answered: str, says: str
) -> None:
    async with serving(settings(cloud_url=None)), device(mosquitto) as cam:
        await cam.link.publish(topic, SHIRT)
        answer = await cam.next_answer(0)
        assert cam.raw[0][0] == answered
        assert answer["status"] == "refused"
        assert says in answer["reason"]


@pytest.mark.parametrize(
    ("model", "body", "says"),
    [
        ("nobody", {"inputs": {"x": [[1.0]]}}, "nobody"),
        ("copy", {"inputs": {"payload": [[1.0, 2.0]]}}, "payload"),
        ("copy", {"inputs": {"other": [[1]]}}, "other"),
        ("copy", {"image": base64.b64encode(SHIRT).decode()}, "image"),
        ("fashion", {"inputs": {"image": [[1.0]]}, "spill": True}, "image"),
    ],
)
async def test_what_the_cloud_cannot_answer_fails_with_its_reason(
    settings: Settings,
    mosquitto: str,
    pool: WorkerProcess,
    model: str,
    body: dict[str, Any],
    says: str,
) -> None:
    async with serving(settings()) as agent, device(mosquitto) as cam:
        await cam.send(model, {"id": "bad", **body})
        answer = await cam.final("bad")
        assert answer["status"] == "failed", answer
        assert says in answer["reason"]
        await until_status(agent, lambda each: each["outbox"]["failed"] == 1)
