"""What a device hears. One frozen value whatever the encoding it leaves in."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from enum import StrEnum
from typing import Any, Self, TypeAlias

from numpy.typing import NDArray

Array: TypeAlias = NDArray[Any]


class AnswerStatus(StrEnum):
    """How far a request has come, as its device hears it."""

    ANSWERED = "answered"
    ACCEPTED = "accepted"
    FAILED = "failed"
    EXPIRED = "expired"
    REFUSED = "refused"


class Source(StrEnum):
    """Whose answer it is."""

    EDGE = "edge"
    CLOUD = "cloud"
    EDGE_FALLBACK = "edge_fallback"


@dataclass(frozen=True, slots=True, eq=False)
class Answer:
    """One message to a device about one request.

    Attributes:
        id: the request's; None only when a refused payload had no legible id.
        device: whom it is for.
        status: `accepted` is the one status that another answer follows.
        source: whose answer it is; None unless `answered`.
        final: whether nothing more will be said of this request.
        label: the class, where the model has labels.
        confidence: 0..1, of the model that answered.
        model: what was asked.
        version: of the model that answered.
        reason: why it spilled, failed, expired or was refused.
        ms: milliseconds from the request's arrival at the agent to this answer.
        outputs: the model's outputs by name, batch first.
        retry_after_s: on a refusal for want of room, when to send again; on a failure
            because the pool is overloaded, when to ask the same under a new id. None
            when sending the same again would not help.
    """

    id: str | None
    device: str
    status: AnswerStatus
    source: Source | None = None
    final: bool = True
    label: str | None = None
    confidence: float | None = None
    model: str | None = None
    version: str | None = None
    reason: str | None = None
    ms: float | None = None
    outputs: Mapping[str, Array] | None = None
    retry_after_s: float | None = None

    @classmethod
    def accepted(
        cls, id_: str, device: str, model: str, *, reason: str, ms: float
    ) -> Self:
        """The request is committed to the outbox: its outcome will follow."""
        return cls(
            id_,
            device,
            AnswerStatus.ACCEPTED,
            final=False,
            model=model,
            reason=reason,
            ms=ms,
        )

    @classmethod
    def refused(
        cls,
        id_: str | None,
        device: str,
        model: str | None,
        *,
        reason: str,
        retry_after_s: float | None = None,
    ) -> Self:
        """The request was not taken: nothing of it is kept.

        Send it again after `retry_after_s`; without that, only when it is mended.
        """
        return cls(
            id_,
            device,
            AnswerStatus.REFUSED,
            model=model,
            reason=reason,
            retry_after_s=retry_after_s,
        )

    @classmethod
    def failed(
        cls, id_: str, device: str, model: str, *, reason: str, ms: float | None = None
    ) -> Self:
        """The request was taken and cannot be answered."""
        return cls(id_, device, AnswerStatus.FAILED, model=model, reason=reason, ms=ms)

    @classmethod
    def expired(
        cls, id_: str, device: str, model: str, *, reason: str, ms: float | None = None
    ) -> Self:
        """The deadline came first and the edge had no answer of its own."""
        return cls(id_, device, AnswerStatus.EXPIRED, model=model, reason=reason, ms=ms)
