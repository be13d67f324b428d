"""Names of topics. `/` on MQTT is `.` on AMQP, so ids hold neither."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Final

from broker.messages import ID_PATTERN, Priority

_ID: Final = re.compile(ID_PATTERN.removesuffix("$") + r"\Z")


class BadId(ValueError):
    """A name that would change the routing."""


def check_id(what: str, value: str) -> str:
    """Give `value` back if it may stand in a topic.

    Raises:
        BadId: it holds something else than `[a-z0-9][a-z0-9_-]{0,63}`.
    """
    if _ID.match(value) is None:
        raise BadId(
            f"{what} {value[:80]!r} is not a valid id: use 1 to 64 of a-z, 0-9, "
            "'_' and '-', starting with a letter or digit (no dots, no slashes)"
        )
    return value


def requests(agent: str, model: str, priority: Priority) -> str:
    """The MQTT topic an agent publishes requests to."""
    return f"e1/{agent}/up/req/{model}/{priority.value}"


def wants_result(topic: str) -> bool:
    """Whether what an agent publishes there is answered with results."""
    return "/up/req/" in topic


def gets(agent: str) -> str:
    """The MQTT topic an agent asks for model updates on."""
    return f"e1/{agent}/up/get"


def telemetry(agent: str) -> str:
    """The MQTT topic an agent reports on."""
    return f"e1/{agent}/up/tel"


def results(agent: str) -> str:
    """The MQTT topic an agent hears results on."""
    return f"e1/{agent}/dn/res"


def blobs(agent: str) -> str:
    """The MQTT topic an agent hears chunks on."""
    return f"e1/{agent}/dn/blob"


def shared_blobs(digest: str) -> str:
    """The MQTT topic where all agents of a wave hear the chunks of one blob.

    Args:
        digest: the SHA-256 of the whole blob, in hexadecimal.
    """
    return f"w1/{digest}"


def commands(agent: str) -> str:
    """The MQTT topic an agent hears hints on."""
    return f"e1/{agent}/dn/cmd"


def downlink(agent: str) -> str:
    """The MQTT filter that covers all an agent hears."""
    return f"e1/{agent}/dn/#"


def as_routing_key(topic: str) -> str:
    """An MQTT topic or filter as RabbitMQ routes it."""
    return topic.replace("/", ".").replace("+", "*")


@dataclass(frozen=True, slots=True)
class RequestAddress:
    """Who sent a request and to which queue, as the broker enforced it."""

    agent: str
    model: str
    priority: Priority


def read_request_key(routing_key: str) -> RequestAddress | None:
    """The address in `e1.{agent}.up.req.{model}.{class}`; None for any other key.

    A key whose agent or model is no valid id is another key: whatever answers it
    would publish where its own permissions end.
    """
    match routing_key.split("."):
        case ["e1", agent, "up", "req", model, ("hi" | "norm" | "bulk") as priority]:
            if _ID.match(agent) and _ID.match(model):
                return RequestAddress(agent, model, Priority(priority))
        case _:
            pass
    return None


def read_agent(routing_key: str) -> str | None:
    """The agent in any `e1.{agent}.…` key; None for any other key."""
    match routing_key.split("."):
        case ["e1", agent, _, *_] if _ID.match(agent):
            return agent
        case _:
            return None
