"""What becomes of a spill: when it is sent again, and which outcome ends it.

Pure: time and randomness come as arguments, in milliseconds of the agent's own
clock, which never jumps while the agent runs.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from enum import IntEnum, StrEnum
from typing import Final, TypeAlias

from broker.messages import Priority, Reason, Result, Status
from edge_agent.core.answers import Answer, AnswerStatus, Source
from edge_agent.core.payload import from_wire_outputs

# A pool whose clock and ours disagree may call expired what is not.
EXPIRY_SLACK_MS: Final = 50.0

Key: TypeAlias = tuple[str, str]
"""(device, request id): two devices may use the same id."""


class Outcome(StrEnum):
    """The one terminal state of an accepted request."""

    ANSWERED = "answered"
    FAILED = "failed"
    EXPIRED = "expired"


class Channel(StrEnum):
    """How the device reached the agent, and so how it is told."""

    MQTT = "mqtt"
    CALL = "call"


class Stage(IntEnum):
    """How far a spill has come."""

    OPEN = 0
    SETTLED = 1
    TOLD = 2


@dataclass(frozen=True, slots=True)
class Spill:
    """One request on its way through the cloud, as the outbox holds it.

    `attempt` counts its sends; `due_ms` is when the next is due.
    """

    device: str
    id: str
    model: str
    priority: Priority
    reason: Reason
    channel: Channel
    encoding: str
    request: bytes
    accepted_ms: float
    deadline_ms: float
    due_ms: float
    attempt: int = 0
    edge: Answer | None = None

    @property
    def key(self) -> Key:
        """What a result is matched by."""
        return (self.device, self.id)


@dataclass(frozen=True, slots=True)
class Ending:
    """The outcome of a spill and what its device is told."""

    outcome: Outcome
    answer: Answer


@dataclass(frozen=True, slots=True)
class Retry:
    """The result settles nothing: send the request again."""


def resend_delay_ms(
    attempt: int, *, first_s: float, most_s: float, chance: float
) -> float:
    """How long to wait for a result before sending again, doubling, ± 20 %.

    Args:
        attempt: sends so far, from 0.
        first_s: the wait after the first send.
        most_s: the longest wait.
        chance: a random number in 0..1.
    """
    wait_s: float = min(most_s, first_s * 2.0 ** min(attempt, 30))
    return wait_s * 1000.0 * (0.8 + 0.4 * chance)


def conclude(spill: Spill, result: Result, now_ms: float) -> Ending | Retry:
    """What the pool's result means for a spill that is still open."""
    match result.status:
        case Status.OK:
            return Ending(Outcome.ANSWERED, _from_cloud(spill, result, now_ms))
        case Status.EXPIRED:
            if now_ms < spill.deadline_ms - EXPIRY_SLACK_MS:
                return Retry()
            return expire(spill, now_ms)
        case Status.FAILED:
            why = result.reason or "the pool gave no reason"
            if spill.edge is not None:
                return _fall_back(spill, spill.edge, f"cloud failed: {why}", now_ms)
            return Ending(
                Outcome.FAILED,
                Answer.failed(
                    spill.id,
                    spill.device,
                    spill.model,
                    reason=why,
                    ms=now_ms - spill.accepted_ms,
                ),
            )


def expire(spill: Spill, now_ms: float) -> Ending:
    """What a device is told when its deadline comes before the cloud's answer."""
    if spill.edge is not None:
        return _fall_back(spill, spill.edge, "deadline came first", now_ms)
    return Ending(
        Outcome.EXPIRED,
        Answer.expired(
            spill.id,
            spill.device,
            spill.model,
            reason="the deadline came before an answer",
            ms=now_ms - spill.accepted_ms,
        ),
    )


def _from_cloud(spill: Spill, result: Result, now_ms: float) -> Answer:
    return Answer(
        id=spill.id,
        device=spill.device,
        status=AnswerStatus.ANSWERED,
        source=Source.CLOUD,
        label=result.label,
        confidence=result.confidence,
        model=spill.model,
        version=result.version,
        reason=spill.reason.value,
        ms=now_ms - spill.accepted_ms,
        outputs=from_wire_outputs(result.outputs),
    )


def _fall_back(spill: Spill, edge: Answer, why: str, now_ms: float) -> Ending:
    answer = replace(
        edge,
        source=Source.EDGE_FALLBACK,
        reason=f"{spill.reason.value}; {why}",
        ms=now_ms - spill.accepted_ms,
    )
    return Ending(Outcome.ANSWERED, answer)
