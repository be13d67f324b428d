"""What becomes of a spill: its stages, when it is sent again, which outcome ends it.

A stage changes only as `NEXT` says; what has no entry there cannot happen. Pure: time and randomness come as arguments, in milliseconds of the agent's own
clock, which never jumps while the agent runs.
"""

from __future__ import annotations

from collections.abc import Mapping
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


class Why(StrEnum):
    """What brought the outcome about."""

    CLOUD = "cloud"
    """The pool's answer."""
    DEADLINE = "deadline"
    """It came before the pool's answer: the edge's own, or `expired`."""
    POOL_FAILED = "pool_failed"
    """The pool could not answer: the edge's own, or `failed`."""
    CANCELLED = "cancelled"
    """The operator ended it."""
    DAMAGED = "damaged"
    """What was stored of it was damaged on the disk."""


class Channel(StrEnum):
    """How the device reached the agent, and so how it is told."""

    MQTT = "mqtt"
    CALL = "call"


class Stage(IntEnum):
    """How far a spill has come."""

    OPEN = 0
    """Accepted, without an outcome."""
    SETTLED = 1
    """Its outcome is recorded; the device has not acknowledged it."""
    TOLD = 2
    """The device, or its broker, has the answer."""
    UNDELIVERED = 3
    """Its outcome is recorded; nobody acknowledged it within the time limit."""


class Step(StrEnum):
    """What moves a spill from one stage to the next."""

    SETTLE = "settle"
    """An outcome is recorded for a device that must still be told."""
    ANSWER_CALLER = "answer_caller"
    """An outcome is recorded for a caller in this process, who has it with that."""
    TELL = "tell"
    """The device's broker has acknowledged the answer."""
    GIVE_UP = "give_up"
    """The time limit for telling has passed."""


NEXT: Final[Mapping[tuple[Stage, Step], Stage]] = {
    (Stage.OPEN, Step.SETTLE): Stage.SETTLED,
    (Stage.OPEN, Step.ANSWER_CALLER): Stage.TOLD,
    (Stage.SETTLED, Step.TELL): Stage.TOLD,
    (Stage.SETTLED, Step.GIVE_UP): Stage.UNDELIVERED,
    # A device that sends the id again hears it again; the record stands.
    (Stage.TOLD, Step.TELL): Stage.TOLD,
    (Stage.UNDELIVERED, Step.TELL): Stage.UNDELIVERED,
}


class ImpossibleStep(Exception):
    """A spill was to take a step that its stage does not have."""


def after_step(stage: Stage, step: Step) -> Stage:
    """The stage that a step leads to.

    Raises:
        ImpossibleStep: it is not in the table.
    """
    try:
        return NEXT[stage, step]
    except KeyError:
        raise ImpossibleStep(f"a spill that is {stage.name} cannot {step}") from None


def settling_step(channel: Channel) -> Step:
    """How an outcome is recorded for whoever reached the agent this way."""
    return Step.ANSWER_CALLER if channel is Channel.CALL else Step.SETTLE


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
    why: Why


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
            answer = _from_cloud(spill, result, now_ms)
            return Ending(Outcome.ANSWERED, answer, Why.CLOUD)
        case Status.EXPIRED:
            if now_ms < spill.deadline_ms - result.left_ms - EXPIRY_SLACK_MS:
                return Retry()
            if result.left_ms and result.reason:
                # Known in good time: another try would only end there as well.
                return expire(spill, now_ms, f"too little time for it: {result.reason}")
            return expire(spill, now_ms)
        case Status.FAILED:
            why = result.reason or "the pool gave no reason"
            if spill.edge is not None:
                fallen = _fall_back(spill, spill.edge, f"cloud failed: {why}", now_ms)
                return Ending(Outcome.ANSWERED, fallen, Why.POOL_FAILED)
            failed = _fail(spill, why, Why.POOL_FAILED, now_ms)
            # An overloaded pool says when to ask again; sending it now would only
            # add to the load, and the pool has seen that its time will not do.
            answer = replace(failed.answer, retry_after_s=result.retry_after_s)
            return replace(failed, answer=answer)


def expire(spill: Spill, now_ms: float, why: str | None = None) -> Ending:
    """What a device is told when its deadline comes before the cloud's answer.

    `why` says more than that, where more is known.
    """
    if spill.edge is not None:
        fallen = _fall_back(spill, spill.edge, why or "deadline came first", now_ms)
        return Ending(Outcome.ANSWERED, fallen, Why.DEADLINE)
    return Ending(
        Outcome.EXPIRED,
        Answer.expired(
            spill.id,
            spill.device,
            spill.model,
            reason=why or "the deadline came before an answer",
            ms=now_ms - spill.accepted_ms,
        ),
        Why.DEADLINE,
    )


def cancel(spill: Spill, now_ms: float) -> Ending:
    """What a device is told when the operator ends its request."""
    return _fail(spill, "cancelled by the operator", Why.CANCELLED, now_ms)


def _fail(spill: Spill, reason: str, why: Why, now_ms: float) -> Ending:
    answer = Answer.failed(
        spill.id,
        spill.device,
        spill.model,
        reason=reason,
        ms=now_ms - spill.accepted_ms,
    )
    return Ending(Outcome.FAILED, answer, why)


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


def _fall_back(spill: Spill, edge: Answer, why: str, now_ms: float) -> Answer:
    return replace(
        edge,
        source=Source.EDGE_FALLBACK,
        reason=f"{spill.reason.value}; {why}",
        ms=now_ms - spill.accepted_ms,
    )
