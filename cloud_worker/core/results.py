"""Say how a request ended, as the one `Result` its agent will hear."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Final, NamedTuple

from broker.codec import pack_fields
from broker.messages import Request, Result, Status, Tensor, Timings
from cloud_worker.core.outputs import BatchOutputs
from cloud_worker.core.reading import Reading

MAX_REASON_CHARS: Final = 1024
MAX_LABEL_CHARS: Final = 1024
# Larger ones are few to an envelope, and one that no broker would carry is among them.
MAX_ANSWER_BYTES: Final = 256 * 1024


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


class Answer(NamedTuple):
    """A result that is packed already, and what is told of it on its way."""

    id: str
    device: str
    model: str
    status: Status
    packed: bytes


class Answers:
    """The answers of one batch. What they share is checked once, for all of them.

    A checked message for each request, as `answered` makes it, costs three times as
    much.

    Args:
        model: its name.
        outputs: of which `fit` is true.
        served: how the batch was run; `queue_ms` is each request's own.
        stamp: what each of them says of the pool.

    Raises:
        ValidationError: what the model gave cannot travel.
    """

    @staticmethod
    def fit(outputs: BatchOutputs) -> bool:
        """Whether the outputs of a batch are alike, and not large."""
        size_bytes = sum(len(block.data) for block in outputs.blocks)
        return size_bytes <= outputs.count * MAX_ANSWER_BYTES and all(
            len(block.shapes) == 1 for block in outputs.blocks
        )

    def __init__(
        self, model: str, outputs: BatchOutputs, served: Served, stamp: Stamp
    ) -> None:
        subject = Subject("checked", "checked", model)
        # The last one, which ends where the data must.
        last = outputs.part(outputs.count - 1)
        answered(subject, last, Reading(), served, stamp)
        timings = served.timings
        self._cuts = tuple(
            (block.name, block.dtype, shape, len(last[block.name].data), block.data)
            for block in outputs.blocks
            for shape in block.shapes
        )
        self._times = {"batch_ms": timings.batch_ms, "infer_ms": timings.infer_ms}
        self._before = {
            "model": model,
            "status": Status.OK,
            "version": served.version,
            "worker": stamp.worker,
        }
        self._after = {
            "batch_size": served.batch_size,
            "server_time_ms": stamp.server_time_ms,
            "pool_wait_ms": stamp.pool_wait_ms,
        }

    def of(
        self, subject: Subject, index: int, reading: Reading, queue_ms: float
    ) -> Answer:
        """The answer to one request of the batch.

        Args:
            subject: the request, which names the batch's model.
            index: its place in the batch.
            reading: what its outputs mean; a label of at most `MAX_LABEL_CHARS`.
            queue_ms: how long it waited; not negative.
        """
        packed = pack_fields(
            {
                "id": subject.id,
                "device": subject.device,
                **self._before,
                "outputs": {
                    name: {
                        "dtype": dtype,
                        "shape": shape,
                        "data": data[index * size : (index + 1) * size],
                    }
                    for name, dtype, shape, size, data in self._cuts
                },
                "label": reading.label,
                "confidence": reading.confidence,
                "timings": {"queue_ms": queue_ms, **self._times},
                **self._after,
            }
        )
        return Answer(subject.id, subject.device, subject.model, Status.OK, packed)


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
