"""Say how a request ended, as the one `Result` its agent will hear."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Final

from broker.messages import Request, Result, Status, Tensor, Timings
from cloud_worker.core.reading import Reading

MAX_REASON_CHARS: Final = 1024


@dataclass(frozen=True, slots=True)
class Subject:
    """Which request a result is about."""

    id: str
    device: str
    model: str

    @classmethod
    def of(cls, request: Request) -> Subject:
        """The subject of a request."""
        return cls(request.id, request.device, request.model)


@dataclass(frozen=True, slots=True)
class Stamp:
    """What every result tells the agent of the pool.

    The agent learns its clock's offset from `server_time_ms` (Unix time), and its
    spill policy uses `pool_wait_ms`.
    """

    worker: str
    server_time_ms: int
    pool_wait_ms: float


@dataclass(frozen=True, slots=True)
class Served:
    """How a request was run: by which version, in what company, for how long."""

    version: str
    batch_size: int
    timings: Timings


def answered(
    subject: Subject,
    outputs: Mapping[str, Tensor],
    reading: Reading,
    served: Served,
    stamp: Stamp,
) -> Result:
    """The model answered."""
    return Result(
        id=subject.id,
        device=subject.device,
        model=subject.model,
        status=Status.OK,
        version=served.version,
        worker=stamp.worker,
        outputs=dict(outputs),
        label=reading.label,
        confidence=reading.confidence,
        timings=served.timings,
        batch_size=served.batch_size,
        server_time_ms=stamp.server_time_ms,
        pool_wait_ms=stamp.pool_wait_ms,
    )


def failed(
    subject: Subject,
    reason: str,
    stamp: Stamp,
    served: Served | None = None,
    *,
    retry_after_s: float | None = None,
) -> Result:
    """The request cannot be answered, and `reason` says why.

    `retry_after_s` is when the same request may fare better; None: it would not.
    """
    result = _ended(Status.FAILED, subject, reason, stamp, served)
    if retry_after_s is None:
        return result
    return result.model_copy(update={"retry_after_s": retry_after_s})


def expired(
    subject: Subject, reason: str, stamp: Stamp, *, left_ms: float = 0.0
) -> Result:
    """The request's time was over before any work was done on it.

    `left_ms` is what it had left, where that is too little for the model.
    """
    result = _ended(Status.EXPIRED, subject, reason, stamp, None)
    return result.model_copy(update={"left_ms": left_ms}) if left_ms else result


def _ended(
    status: Status, subject: Subject, reason: str, stamp: Stamp, served: Served | None
) -> Result:
    return Result(
        id=subject.id,
        device=subject.device,
        model=subject.model,
        status=status,
        version=served.version if served else None,
        worker=stamp.worker,
        reason=reason[:MAX_REASON_CHARS],
        timings=served.timings if served else Timings(),
        batch_size=served.batch_size if served else 0,
        server_time_ms=stamp.server_time_ms,
        pool_wait_ms=stamp.pool_wait_ms,
    )
