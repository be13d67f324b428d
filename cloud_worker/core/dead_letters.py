"""Read why the broker gave up on a request, and say so in words."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Final

REPUBLISHED: Final = "x-overspill-republished"
MAX_REPUBLISHED: Final = 3


@dataclass(frozen=True, slots=True)
class Death:
    """Why a message is in the dead letters; `expired` is an end of its own."""

    expired: bool
    reason: str


def read_death(headers: Mapping[str, Any]) -> Death:
    """The latest entry of RabbitMQ's `x-death` header in words.

    Source: RabbitMQ documentation, "Dead Letter Exchanges".
    """
    deaths = headers.get("x-death")
    latest = deaths[0] if isinstance(deaths, list) and deaths else {}
    if not isinstance(latest, dict):
        latest = {}
    queue = latest.get("queue", "its queue")
    match latest.get("reason"):
        case "expired":
            return Death(True, f"it waited in {queue} for longer than the queue keeps")
        case "maxlen":
            return Death(False, f"queue full: {queue} dropped it as its oldest")
        case "delivery_limit":
            return Death(
                False,
                f"given up by {queue} after too many deliveries: the workers that "
                "took it crashed or gave it back",
            )
        case "rejected":
            return Death(False, "a worker could not read it and rejected it")
        case other:
            return Death(False, f"dead-lettered by {queue}: {other or 'no reason'}")


def times_republished(headers: Mapping[str, Any]) -> int:
    """How often the pool has sent an unrouted message on its way again."""
    count = headers.get(REPUBLISHED, 0)
    return count if isinstance(count, int) and count >= 0 else MAX_REPUBLISHED
