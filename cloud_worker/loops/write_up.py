"""Write up what a model gave for a batch: a result for each of its requests."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TypeGuard

from pydantic import ValidationError

from broker.codec import explain
from broker.messages import Result, Tensor, Timings
from cloud_worker.core.ledger import Cause
from cloud_worker.core.line import Item
from cloud_worker.core.outputs import BatchOutputs
from cloud_worker.core.reading import Reading, Unreadable, read
from cloud_worker.core.replies import Finished
from cloud_worker.core.results import (
    MAX_LABEL_CHARS,
    Answer,
    Answers,
    Served,
    Stamp,
    answered,
    failed,
)
from cloud_worker.core.spec import ServedModel
from cloud_worker.core.split import Unjoinable
from cloud_worker.loops.parcels import Held, Parcel

Batch = tuple[Item[Held], ...]


def finished(
    item: Item[Held], result: Result | Answer, cause: Cause
) -> Finished[Parcel]:
    """A result of a request, for the agent that sent it."""
    parcel = item.work.parcel
    return Finished(parcel.agent, result, parcel, cause)


def results(
    batch: Batch,
    outputs: BatchOutputs,
    started_s: float,
    done_s: float,
    stamp: Stamp,
) -> list[Finished[Parcel]]:
    """What the requests of a batch get; those that wait for another part, nothing yet.

    Args:
        batch: as it ran, of one model version.
        outputs: what the model gave for it.
        started_s: monotonic seconds at which it was handed to the runner.
        done_s: and at which its outputs came.
        stamp: what each result says of the pool.
    """
    infer_ms = outputs.infer_ms
    batch_ms = max((done_s - started_s) * 1000 - infer_ms, 0.0)
    model = batch[0].work.model
    answers = _answers(model, outputs, len(batch), batch_ms, stamp)
    ended = []
    for index, reading in enumerate(read(outputs, model)):
        item = batch[index]
        held = item.work
        queue_ms = max((started_s - held.parcel.delivery.received_at) * 1000, 0.0)
        if answers is not None and held.joint is None and _is_plain(reading):
            answer = answers.of(held.subject, index, reading, queue_ms)
            ended.append(finished(item, answer, Cause.ANSWERED))
            continue
        timings = Timings(queue_ms=queue_ms, batch_ms=batch_ms, infer_ms=infer_ms)
        served = Served(model.version, len(batch), timings)
        was_over = held.over
        try:
            whole = _whole(held, outputs, index, reading)
            if whole is None:
                continue
            gave, meaning = whole
            if isinstance(meaning, Unreadable):
                result = failed(held.subject, meaning.reason, stamp, served)
                cause = Cause.MODEL
            else:
                result = answered(held.subject, gave, meaning, served, stamp)
                cause = Cause.ANSWERED
        except ValidationError as error:
            # The model's doing, and no reason for the worker to end.
            if was_over:
                continue
            held.end()
            reason = f"what model {model.name!r} gave cannot travel: {explain(error)}"
            result = failed(held.subject, reason, stamp, served)
            cause = Cause.MODEL
        ended.append(finished(item, result, cause))
    return ended


def _answers(
    model: ServedModel,
    outputs: BatchOutputs,
    count: int,
    batch_ms: float,
    stamp: Stamp,
) -> Answers | None:
    """What answers the whole batch; None where each answer is checked by itself."""
    if not Answers.fit(outputs):
        return None
    try:
        timings = Timings(batch_ms=batch_ms, infer_ms=outputs.infer_ms)
        served = Served(model.version, count, timings)
        return Answers(model.name, outputs, served, stamp)
    except ValidationError:
        return None


def _is_plain(reading: Reading | Unreadable) -> TypeGuard[Reading]:
    """Whether it is a reading that can travel as it is."""
    return isinstance(reading, Reading) and (
        reading.label is None or len(reading.label) <= MAX_LABEL_CHARS
    )


def _whole(
    held: Held, outputs: BatchOutputs, index: int, reading: Reading | Unreadable
) -> tuple[Mapping[str, Tensor], Reading | Unreadable] | None:
    """What a request gave and means; None while parts of it are missing."""
    if held.joint is None:
        gave = {} if isinstance(reading, Unreadable) else outputs.part(index)
        return gave, reading
    try:
        joined = held.joint.put(held.part, outputs.part(index), outputs.infer_ms)
    except Unjoinable as error:
        return ({}, Unreadable(str(error))) if held.end() else None
    if joined is None or not held.end():
        return None
    (reading,) = read(joined, held.model)
    return joined.part(0), reading
