"""What is written on a dead letter: why it died, and what had happened to it before.

RabbitMQ writes `x-death` on what a queue gives up. A worker that answers a request
which breaks its model writes the headers named here.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from datetime import datetime
from typing import Any, Final

POISON: Final = "poison"
"""The cause of a letter that a worker has written."""
EXPIRED: Final = "expired"
MAX_MISHAPS: Final = 16
MAX_ERROR_CHARS: Final = 512
MAX_REASON_CHARS: Final = 1024

_PREFIX: Final = "x-overspill-"
ANSWERED: Final = _PREFIX + "answered"
RETRIED: Final = _PREFIX + "retried"
_HISTORY: Final = _PREFIX + "history"
_AT_MS: Final = _PREFIX + "died-at-ms"


@dataclass(frozen=True, slots=True)
class Mishap:
    """One batch that failed with the request in it.

    Attributes:
        at_ms: Unix time.
        requests: how many were in the batch.
        crashed: whether the model process died, rather than give an error.
        error: what was said.
    """

    at_ms: int
    requests: int
    crashed: bool
    error: str


@dataclass(frozen=True, slots=True)
class Death:
    """Why a message is among the dead letters.

    Attributes:
        cause: `poison`, or RabbitMQ's word: `expired`, `maxlen`, `delivery_limit`,
            `rejected`.
        reason: the cause in words.
        at_ms: Unix time; None when nothing says it.
        model: which a worker ran it on, or nothing, as `version` and `worker`.
        history: what went wrong before, oldest first.
        answered: whether its agent has been told already.
    """

    cause: str
    reason: str
    at_ms: int | None = None
    model: str = ""
    version: str = ""
    worker: str = ""
    history: tuple[Mishap, ...] = ()
    answered: bool = False

    @property
    def expired(self) -> bool:
        """Whether its time was over, which is an end of its own."""
        return self.cause == EXPIRED


def headers_of(death: Death) -> dict[str, Any]:
    """The headers of a letter that a worker writes, bounded in size."""
    return {
        ANSWERED: death.answered,
        _AT_MS: death.at_ms or 0,
        _PREFIX + "cause": death.cause,
        _PREFIX + "reason": death.reason[:MAX_REASON_CHARS],
        _PREFIX + "model": death.model,
        _PREFIX + "version": death.version,
        _PREFIX + "worker": death.worker,
        _HISTORY: [
            {
                "at_ms": each.at_ms,
                "requests": each.requests,
                "crashed": each.crashed,
                "error": each.error[:MAX_ERROR_CHARS],
            }
            for each in death.history[-MAX_MISHAPS:]
        ],
    }


def read_death(headers: Mapping[str, Any]) -> Death:
    """Why a message died: a worker's word, or the latest entry of `x-death`.

    Source of the latter: RabbitMQ documentation, "Dead Letter Exchanges".
    """
    deaths = headers.get("x-death")
    # First: whoever sent a request may have written the other headers on it.
    if isinstance(deaths, list) and deaths and isinstance(deaths[0], dict):
        return _given_up(deaths[0])
    if ANSWERED in headers:
        return _written(headers)
    return _given_up({})


def times_retried(headers: Mapping[str, Any]) -> int:
    """How often operators have sent the message on its way again."""
    return _count(headers.get(RETRIED))


def _given_up(entry: Mapping[str, Any]) -> Death:
    queue = entry.get("queue", "its queue")
    cause = entry.get("reason")
    match cause:
        case "expired":
            reason = f"it waited in {queue} for longer than the queue keeps"
        case "maxlen":
            reason = f"queue full: {queue} dropped it as its oldest"
        case "delivery_limit":
            reason = (
                f"given up by {queue} after too many deliveries: the workers that "
                "took it crashed or gave it back"
            )
        case "rejected":
            reason = "a worker could not read it and rejected it"
        case _:
            reason = f"dead-lettered by {queue}: {cause or 'no reason'}"
    at = entry.get("time")
    at_ms = int(at.timestamp() * 1000) if isinstance(at, datetime) else None
    return Death(_text(cause, 64) or "unknown", reason, at_ms)


def _written(headers: Mapping[str, Any]) -> Death:
    def said(name: str, most: int = 64) -> str:
        return _text(headers.get(_PREFIX + name), most)

    history = headers.get(_HISTORY)
    entries = history[-MAX_MISHAPS:] if isinstance(history, list) else []
    death = Death(
        cause=said("cause") or "unknown",
        reason=said("reason", MAX_REASON_CHARS) or "no reason",
        at_ms=_count(headers.get(_AT_MS)) or None,
        model=said("model"),
        version=said("version"),
        worker=said("worker"),
        answered=headers.get(ANSWERED) is True,
    )
    return replace(
        death,
        history=tuple(_mishap(each) for each in entries if isinstance(each, dict)),
    )


def _mishap(entry: Mapping[str, Any]) -> Mishap:
    return Mishap(
        at_ms=_count(entry.get("at_ms")),
        requests=_count(entry.get("requests")),
        crashed=entry.get("crashed") is True,
        error=_text(entry.get("error"), MAX_ERROR_CHARS),
    )


def _count(value: object) -> int:
    return value if isinstance(value, int) and value > 0 else 0


def _text(value: object, most: int) -> str:
    return value[:most] if isinstance(value, str) else ""
