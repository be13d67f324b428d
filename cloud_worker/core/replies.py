"""Decide which results travel together: one agent's, within the bounds of an envelope."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Final, Generic, TypeVar

from broker.codec import pack, seal_envelope
from broker.messages import Result, Status
from cloud_worker.core.ledger import Cause
from cloud_worker.core.results import Answer

MAX_RESULTS: Final = 256
MAX_BYTES: Final = 1024 * 1024
# RabbitMQ 4 refuses messages over 16 MiB; leave room for the envelope around it.
MAX_RESULT_BYTES: Final = 15 * 1024 * 1024

T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class Finished(Generic[T]):
    """A result, why it is so, whom it is for, and what its confirmation settles."""

    agent: str
    result: Result | Answer
    settles: T
    cause: Cause


@dataclass(frozen=True, slots=True)
class Reply(Generic[T]):
    """One sealed envelope of results for one agent, and what is in it."""

    agent: str
    body: bytes
    settles: tuple[T, ...]
    results: tuple[Result | Answer, ...]
    causes: tuple[Cause, ...]


def group_replies(
    finished: Iterable[Finished[T]],
    *,
    max_results: int = MAX_RESULTS,
    max_bytes: int = MAX_BYTES,
) -> list[Reply[T]]:
    """Seal results into envelopes, keeping their order within an agent.

    A result larger than `max_bytes` travels alone; one that no broker would carry
    is replaced by a `failed` that says so.
    """
    replies: list[Reply[T]] = []
    open_: dict[str, _Draft[T]] = {}
    for each in finished:
        packed, result, cause = _packed(each.result, each.cause)
        draft = open_.get(each.agent)
        if draft is not None and not draft.has_room(
            len(packed), max_results, max_bytes
        ):
            replies.append(draft.sealed())
            draft = None
        if draft is None:
            draft = open_[each.agent] = _Draft(each.agent, [], [], [], [])
        draft.packed.append(packed)
        draft.settles.append(each.settles)
        draft.results.append(result)
        draft.causes.append(cause)
        draft.size_bytes += len(packed)
    replies.extend(draft.sealed() for draft in open_.values())
    return replies


@dataclass(slots=True)
class _Draft(Generic[T]):
    agent: str
    packed: list[bytes]
    settles: list[T]
    results: list[Result | Answer]
    causes: list[Cause]
    size_bytes: int = 0

    def has_room(self, more_bytes: int, max_results: int, max_bytes: int) -> bool:
        return (
            len(self.packed) < max_results and self.size_bytes + more_bytes <= max_bytes
        )

    def sealed(self) -> Reply[T]:
        body = seal_envelope(Result, self.packed)
        return Reply(
            self.agent,
            body,
            tuple(self.settles),
            tuple(self.results),
            tuple(self.causes),
        )


def _packed(
    result: Result | Answer, cause: Cause
) -> tuple[bytes, Result | Answer, Cause]:
    """The result that can be carried: the one that was given, or a failure."""
    if isinstance(result, Answer):
        return result.packed, result, cause
    packed = pack(result)
    if len(packed) <= MAX_RESULT_BYTES:
        return packed, result, cause
    reason = (
        f"the result has {len(packed)} bytes, over the limit of {MAX_RESULT_BYTES}: "
        "ask for a model with smaller outputs"
    )
    refused = {"status": Status.FAILED, "outputs": {}, "reason": reason}
    instead = result.model_copy(update=refused)
    return pack(instead), instead, Cause.TOO_LARGE
