import base64
import hashlib
import json
import re
from typing import Any

import pytest

from broker import topology
from broker.messages import Priority
from broker.topics import BadId


def rendered(**more: Any) -> dict[str, Any]:
    users = {topology.agent_user("cam-1"): "secret", topology.worker_user(): "other"}
    return topology.definitions(users, models=["fashion"], salt=b"salt", **more)


def test_the_same_topology_renders_the_same_document_each_time() -> None:
    assert json.dumps(rendered()) == json.dumps(rendered())


def test_no_password_stands_in_the_definitions() -> None:
    text = json.dumps(rendered())

    assert "secret" not in text
    salted = base64.b64encode(b"salt" + hashlib.sha256(b"saltsecret").digest()).decode()
    assert salted in text


def test_an_empty_password_cannot_be_used_to_log_in() -> None:
    assert topology.hash_password("", b"salt") == ""


@pytest.mark.parametrize("salt", [b"", b"abc", b"abcde"])
def test_a_salt_of_another_length_is_refused(salt: bytes) -> None:
    with pytest.raises(ValueError, match="4 bytes"):
        topology.hash_password("secret", salt)


def test_an_agent_may_touch_its_own_session_queue_and_no_other() -> None:
    user = topology.agent_user("cam-1")

    for pattern in (user.configure, user.write, user.read):
        assert re.search(pattern, "mqtt-subscription-cam-1qos1")
        assert re.search(pattern, "mqtt-subscription-cam-1qos0")
        for other in (
            "mqtt-subscription-cam-2qos1",
            "mqtt-subscription-cam-11qos1",
            "xmqtt-subscription-cam-1qos1",
            "mqtt-subscription-cam-1qos12",
            "infer.fashion.norm",
            "infer.dead",
        ):
            assert not re.search(pattern, other)
    assert not re.search(user.configure, "amq.topic")


def test_an_agent_may_only_speak_up_and_only_hear_down_in_its_own_name() -> None:
    user = topology.agent_user("cam-1")
    assert user.topic_write is not None
    assert user.topic_read is not None

    assert re.search(user.topic_write, "e1.cam-1.up.req.fashion.norm")
    assert re.search(user.topic_read, "e1.cam-1.dn.res")
    for key in (
        "e1.cam-2.up.get",
        "e1.cam-11.up.get",
        "e1.cam-1.dn.res",
        "x.e1.cam-1.up",
    ):
        assert not re.search(user.topic_write, key)
    for key in ("e1.cam-2.dn.res", "e1.cam-1.up.get", "e1.*.dn.res", "#"):
        assert not re.search(user.topic_read, key)


@pytest.mark.parametrize("name", ["a.b", "a/b", "", ".*", "a|b"])
def test_an_agent_whose_name_is_a_pattern_gets_no_permissions(name: str) -> None:
    with pytest.raises(BadId):
        topology.agent_user(name)


def test_a_worker_may_answer_any_agent_but_not_speak_as_one() -> None:
    user = topology.worker_user()
    assert user.topic_write is not None

    assert re.search(user.topic_write, "e1.cam-1.dn.res")
    assert not re.search(user.topic_write, "e1.cam-1.up.tel")


def test_each_class_of_a_model_has_a_bounded_queue_that_dead_letters() -> None:
    queues = topology.model_queues("fashion")

    assert [queue.name for queue in queues] == [
        f"infer.fashion.{priority.value}" for priority in Priority
    ]
    for queue in queues:
        assert queue.arguments["x-queue-type"] == "quorum"
        assert queue.arguments["x-dead-letter-exchange"] == topology.DEAD_EXCHANGE
        assert {"x-delivery-limit", "x-message-ttl", "x-max-length-bytes"} <= set(
            queue.arguments
        )


def test_dead_letters_go_to_workers_to_answer_and_to_operators_to_keep() -> None:
    fed = {
        queue.name: queue.arguments
        for queue in topology.standing_queues()
        if queue.exchange == topology.DEAD_EXCHANGE
    }

    assert set(fed) == {"infer.unanswered", "infer.dead"}
    kept = fed["infer.dead"]
    assert kept["x-message-ttl"] == 7 * 24 * 3600 * 1000
    assert {"x-max-length", "x-max-length-bytes"} <= set(kept)
    # Full, it loses its oldest; it never refuses a letter, nor counts it as given up.
    assert kept["x-overflow"] == "drop-head"
    assert "x-dead-letter-exchange" not in kept
    assert int(kept["x-delivery-limit"]) > 10_000


def test_operators_may_send_a_dead_request_again_and_speak_as_no_agent() -> None:
    user = topology.fleet_user()
    assert user.topic_write is not None

    assert re.search(user.topic_write, "e1.cam-1.up.req.fashion.norm")
    assert re.search(user.configure, f"{topology.DEAD_QUEUE}.browsed")
    for key in ("e1.cam-1.up.tel", "e1.cam-1.up.get"):
        assert not re.search(user.topic_write, key)


def test_every_queue_of_the_definitions_is_bound_to_an_exchange_that_exists() -> None:
    document = rendered()
    exchanges = {each["name"] for each in document["exchanges"]} | {"amq.topic"}
    bound = {each["destination"] for each in document["bindings"]}

    assert {each["source"] for each in document["bindings"]} <= exchanges
    assert {each["name"] for each in document["queues"]} == bound


def test_each_name_of_the_definitions_belongs_to_the_tenant_asked_for() -> None:
    document = rendered(vhost="tenant")

    assert document["vhosts"] == [{"name": "tenant"}]
    for part in ("permissions", "topic_permissions", "policies", "queues", "bindings"):
        assert {each["vhost"] for each in document[part]} == {"tenant"}
