"""How each system writes a request and its answer on RabbitMQ, read from its source.

The benchmark writes these itself, so that a peer's client is not what is measured.
"""

from __future__ import annotations

import base64
import json
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Any, Final, Protocol

import msgpack
from pamqp.commands import Basic

from benchmarks.peers.accounts import Answer
from broker.codec import encode
from broker.messages import Priority, Reason, Request, Tensor
from broker.topics import as_routing_key, requests, results

AGENT: Final = "bench"
PERSISTENT: Final = 2
TRANSIENT: Final = 1


@dataclass(frozen=True, slots=True)
class Ask:
    """One request: its number, the model, the input, and when it is worth nothing.

    `expires_ms` is Unix time; None is never.
    """

    number: int
    model: str
    body: bytes
    sent_ms: int
    expires_ms: int | None = None

    @property
    def ttl_ms(self) -> int | None:
        """How long it may wait."""
        return None if self.expires_ms is None else self.expires_ms - self.sent_ms


@dataclass(frozen=True, slots=True)
class Letter:
    """A message, ready to be published."""

    body: bytes
    routing_key: str
    properties: Basic.Properties
    exchange: str = ""


@dataclass(frozen=True, slots=True)
class Inbox:
    """The queue of answers: how it is declared and, for ours, bound."""

    arguments: dict[str, Any] = field(default_factory=dict)
    exchange: str | None = None
    routing_key: str = ""


class Wire(Protocol):
    """One system's requests and answers."""

    def inbox(self, name: str) -> Inbox:
        """How the system declares the queue of answers named `name`."""

    def queues(self, queue: str) -> list[str]:
        """The queues that its worker consumes, given the one it was told."""

    def write(self, ask: Ask, queue: str, answers_to: str) -> Letter:
        """One request."""

    def read(self, body: bytes, properties: Basic.Properties) -> list[Answer]:
        """The answers in one message."""


class OursWire:
    """Envelopes of one request each."""

    def inbox(self, name: str) -> Inbox:  # noqa: ARG002 - a binding does the rest
        return Inbox({}, "amq.topic", as_routing_key(results(AGENT)))

    def queues(self, queue: str) -> list[str]:  # noqa: ARG002 - ours have fixed names
        return [f"infer.{model}.norm" for model in ("noop", "stub", "resnet")]

    def write(self, ask: Ask, queue: str, answers_to: str) -> Letter:  # noqa: ARG002
        if ask.model == "resnet":
            shape, dtype, name = [1, 28, 28, 1], "float32", "image"
        else:
            shape, dtype, name = [1, len(ask.body)], "uint8", "payload"
        request = Request(
            id=f"r{ask.number}",
            device="cam",
            model=ask.model,
            reason=Reason.FORCED,
            expires_at_ms=ask.expires_ms or ask.sent_ms + 3_600_000,
            tensors={name: Tensor(dtype=dtype, shape=shape, data=ask.body)},
        )
        key = as_routing_key(requests(AGENT, ask.model, Priority.NORM))
        properties = Basic.Properties(delivery_mode=PERSISTENT)
        return Letter(encode(request), key, properties, "amq.topic")

    def read(self, body: bytes, properties: Basic.Properties) -> list[Answer]:  # noqa: ARG002
        items = map(msgpack.unpackb, msgpack.unpackb(body)["items"])
        return [
            Answer(int(each["id"][1:]), each["status"] == "ok", each.get("version"))
            for each in items
        ]


class CeleryWire:
    """Protocol 2 of Celery's messages, JSON; answers as its rpc:// backend sends."""

    def inbox(self, name: str) -> Inbox:  # noqa: ARG002
        return Inbox()

    def queues(self, queue: str) -> list[str]:
        return [queue]

    def write(self, ask: Ask, queue: str, answers_to: str) -> Letter:
        name = str(ask.number)
        expires = (
            ask.expires_ms
            and datetime.fromtimestamp(ask.expires_ms / 1000, UTC).isoformat()
        )
        embed = {"callbacks": None, "errbacks": None, "chain": None, "chord": None}
        properties = Basic.Properties(
            content_type="application/json",
            content_encoding="utf-8",
            correlation_id=name,
            reply_to=answers_to,
            delivery_mode=PERSISTENT,
            headers={
                "lang": "py",
                "task": "infer",
                "id": name,
                "root_id": name,
                "parent_id": None,
                "group": None,
                "shadow": None,
                "eta": None,
                "expires": expires,
                "retries": 0,
                "timelimit": [None, None],
                "argsrepr": "",
                "kwargsrepr": "{}",
                "origin": "bench",
                "ignore_result": False,
            },
        )
        body = json.dumps([[ask.model, _text(ask.body)], {}, embed]).encode()
        return Letter(body, queue, properties)

    def read(self, body: bytes, properties: Basic.Properties) -> list[Answer]:
        number = int(properties.correlation_id or -1)
        return [Answer(number, json.loads(body)["status"] == "SUCCESS")]


class DramatiqWire:
    """Dramatiq's JSON; an answer is a message for the actor `report`."""

    def inbox(self, name: str) -> Inbox:
        dead = {"x-dead-letter-exchange": "", "x-dead-letter-routing-key": f"{name}.XQ"}
        return Inbox(dead)

    def queues(self, queue: str) -> list[str]:
        return [queue]

    def write(self, ask: Ask, queue: str, answers_to: str) -> Letter:  # noqa: ARG002
        body = {
            "queue_name": queue,
            "actor_name": "infer",
            "args": [ask.number, ask.model, _text(ask.body)],
            "kwargs": {},
            "options": {} if ask.ttl_ms is None else {"max_age": ask.ttl_ms},
            "message_id": str(ask.number),
            "message_timestamp": ask.sent_ms,
        }
        properties = Basic.Properties(delivery_mode=PERSISTENT)
        return Letter(json.dumps(body).encode(), queue, properties)

    def read(self, body: bytes, properties: Basic.Properties) -> list[Answer]:  # noqa: ARG002
        return [Answer(int(json.loads(body)["args"][0]))]


class TaskiqWire:
    """taskiq's JSON; it knows no expiry, so RabbitMQ's own is used."""

    def inbox(self, name: str) -> Inbox:  # noqa: ARG002
        return Inbox(
            {
                "x-dead-letter-exchange": "",
                "x-dead-letter-routing-key": "taskiq.dead_letter",
                "x-queue-type": "classic",
            }
        )

    def queues(self, queue: str) -> list[str]:
        return [queue]

    def write(self, ask: Ask, queue: str, answers_to: str) -> Letter:  # noqa: ARG002
        name = str(ask.number)
        body = {
            "task_id": name,
            "task_name": "infer",
            "labels": {},
            "labels_types": {},
            "args": [ask.number, ask.model, _text(ask.body)],
            "kwargs": {},
        }
        properties = Basic.Properties(
            delivery_mode=PERSISTENT,
            expiration=_expiration(ask),
            headers={"task_id": name, "task_name": "infer"},
        )
        return Letter(json.dumps(body).encode(), queue, properties)

    def read(self, body: bytes, properties: Basic.Properties) -> list[Answer]:  # noqa: ARG002
        return [Answer(int(json.loads(body)["args"][0]))]


@dataclass(frozen=True, slots=True)
class FastStreamWire:
    """Bare bytes with headers; it knows no expiry, so RabbitMQ's own is used."""

    delivery_mode: int = PERSISTENT

    def inbox(self, name: str) -> Inbox:  # noqa: ARG002
        return Inbox()

    def queues(self, queue: str) -> list[str]:
        return [queue]

    def write(self, ask: Ask, queue: str, answers_to: str) -> Letter:  # noqa: ARG002
        properties = Basic.Properties(
            content_type="application/octet-stream",
            correlation_id=str(ask.number),
            delivery_mode=self.delivery_mode,
            expiration=_expiration(ask),
            headers={"model": ask.model},
        )
        return Letter(ask.body, queue, properties)

    def read(self, body: bytes, properties: Basic.Properties) -> list[Answer]:  # noqa: ARG002
        return [Answer(int(properties.correlation_id or -1))]


def _expiration(ask: Ask) -> str | None:
    return None if ask.ttl_ms is None else str(max(0, ask.ttl_ms))


def _text(body: bytes) -> str:
    return base64.b64encode(body).decode()
