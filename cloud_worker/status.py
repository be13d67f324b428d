"""What a worker says of itself: whether it is ready, and its metrics.

Numbers are read here when Prometheus asks; only what the loops tell the observer is
counted as it happens. Labels are names of models and versions that are served, classes,
causes and runners: all bounded.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Final

from broker.amqp.link import AmqpLink
from cloud_worker.core.ledger import STATUS, Aside, Cause, Ledger
from cloud_worker.loops.capturing import Capturing
from cloud_worker.loops.observer import Observer
from cloud_worker.loops.overload import PoolWatch
from cloud_worker.loops.parcels import Room
from lifecycle.metrics import Family, Histograms, Labels, counter, gauge

PREFIX: Final = "overspill_worker_"


@dataclass(frozen=True, slots=True)
class RunnerLook:
    """What runs one model version.

    `resident_bytes` is of its process; None for one that has none now.
    """

    name: str
    ready: bool
    restarts: int
    resident_bytes: int | None


@dataclass(frozen=True, slots=True)
class Parts:
    """What there is to tell of once the models are loaded."""

    link: AmqpLink
    room: Room
    observer: Observer
    watch: PoolWatch
    waiting: Callable[[], int]
    runners: Callable[[], Sequence[RunnerLook]]
    capturing: Capturing | None = None


class WorkerStatus:
    """Readiness and metrics of one worker, from its first moment to its last.

    Attributes:
        parts: None until the models are loaded and warm.
        draining: whether it was asked to end.
    """

    def __init__(self, ledger: Ledger) -> None:
        self._ledger = ledger
        self.parts: Parts | None = None
        self.draining = False

    def why_not_ready(self) -> str | None:
        """Why it should get no work, in words; None while it works."""
        parts = self.parts
        if self.draining:
            held = 0 if parts is None else parts.room.held
            return f"draining, {held} requests held"
        if parts is None:
            return "loading and warming up its models"
        if not parts.link.up:
            why = parts.link.last_error or "connecting"
            return f"not consuming from RabbitMQ: {why}"
        runners = parts.runners()
        # One model that is down costs its own requests, and the others no traffic.
        if runners and not any(each.ready for each in runners):
            names = ", ".join(each.name for each in runners)
            return f"the model process of {names} is down and starts again"
        return None

    def families(self) -> Iterator[Family]:
        """Every metric as it is now."""
        ready = self.why_not_ready() is None
        yield gauge(
            f"{PREFIX}ready", "1 while it is warm, connected and consuming.", ready
        )
        yield from self._books()
        parts = self.parts
        if parts is not None:
            yield from _batches(parts.observer)
            yield from _hands(parts)
            yield from _runners(parts.runners())
            yield from _pool(parts.watch)
            yield from _examples(parts.capturing)

    def _books(self) -> Iterator[Family]:
        ledger = self._ledger
        ended: dict[Labels, float] = {
            (STATUS[cause].value, _reason(cause)): ledger.ended[cause]
            for cause in Cause
        }
        aside: dict[Labels, float] = {
            (each.value,): ledger.aside[each] for each in Aside
        }
        yield counter(
            f"{PREFIX}requests_taken_total",
            "Requests taken over; one that is delivered again is taken again.",
            ledger.taken,
        )
        yield Family(
            f"{PREFIX}requests_ended_total",
            "Requests whose result is confirmed, by how they ended and why.",
            "counter",
            ended,
            ("status", "reason"),
        )
        yield counter(
            f"{PREFIX}requests_given_back_total",
            "Requests whose channel died first: the broker delivers them again.",
            ledger.given_back,
        )
        yield Family(
            f"{PREFIX}set_aside_total",
            "What came and was not taken as a request, or not only.",
            "counter",
            aside,
            ("what",),
        )
        yield counter(
            f"{PREFIX}ledger_mismatches_total",
            "How often the books did not balance: a request was lost or ended twice.",
            ledger.mismatches,
        )


def _reason(cause: Cause) -> str:
    """`failed_model` is status failed, reason model."""
    return cause.value.partition("_")[2] or cause.value


def _batches(seen: Observer) -> Iterator[Family]:
    shape = ("model", "version")
    yield _histogram("batch_size", "Requests in a batch.", seen.batch_size, shape)
    yield _histogram(
        "infer_seconds", "What the model took for a batch.", seen.infer_time, shape
    )
    yield _histogram(
        "queue_wait_seconds",
        "From a request's delivery here to the start of its batch.",
        seen.queue_wait,
        ("model", "class"),
    )
    yield _histogram(
        "request_seconds",
        "From a request's delivery here to the confirm of its result.",
        seen.whole_time,
        ("model",),
    )
    yield Family(
        f"{PREFIX}busy_seconds_total",
        "Time that models ran; its rate is the share of the accelerator that is busy.",
        "counter",
        {(model,): seconds for model, seconds in seen.busy_s.items()},
        ("model",),
    )
    yield Family(
        f"{PREFIX}batches_failed_total",
        "Batches that came back without outputs and were tried again or taken apart.",
        "counter",
        {(model,): batches for model, batches in seen.failed_batches.items()},
        ("model",),
    )
    yield counter(
        f"{PREFIX}results_published_total",
        "Results that RabbitMQ has confirmed.",
        seen.published,
    )


def _hands(parts: Parts) -> Iterator[Family]:
    lag_s = parts.link.oldest_unacknowledged_s(time.monotonic())
    yield gauge(f"{PREFIX}held", "Requests taken and not yet settled.", parts.room.held)
    yield gauge(
        f"{PREFIX}waiting", "Held requests that wait for a batch.", parts.waiting()
    )
    yield gauge(
        f"{PREFIX}running", "Held requests in a batch now.", parts.observer.running
    )
    yield gauge(
        f"{PREFIX}acknowledgement_lag_seconds",
        "Age of the oldest delivery that is not acknowledged.",
        lag_s,
    )
    yield gauge(
        f"{PREFIX}link_up",
        "1 while both connections to RabbitMQ work and every queue is consumed.",
        parts.link.up,
    )


def _runners(runners: Sequence[RunnerLook]) -> Iterator[Family]:
    sizes: dict[Labels, float] = {
        (each.name,): each.resident_bytes
        for each in runners
        if each.resident_bytes is not None
    }
    yield Family(
        f"{PREFIX}runner_restarts_total",
        "How often a model process has died and come back.",
        "counter",
        {(each.name,): each.restarts for each in runners},
        ("runner",),
    )
    yield Family(
        f"{PREFIX}runner_resident_memory_bytes",
        "Memory of a model process.",
        "gauge",
        sizes,
        ("runner",),
    )


def _pool(watch: PoolWatch) -> Iterator[Family]:
    ready: dict[Labels, float] = {}
    consumers: dict[Labels, float] = {}
    for depth in watch.depths:
        key = (depth.model,)
        ready[key] = ready.get(key, 0) + depth.ready
        consumers[key] = max(consumers.get(key, 0), depth.consumers)
    yield Family(
        "overspill_pool_queue_messages",
        "Messages that wait in a model's queues, as this worker saw them last.",
        "gauge",
        ready,
        ("model",),
    )
    yield Family(
        "overspill_pool_workers",
        "Workers that consume a model's queues, as this worker saw them last.",
        "gauge",
        consumers,
        ("model",),
    )
    yield Family(
        "overspill_pool_wait_seconds",
        "How long a request that arrives now would wait for its batch.",
        "gauge",
        {(each.model,): watch.wait_s(each.model) for each in watch.depths},
        ("model",),
    )
    yield Family(
        "overspill_pool_work_seconds",
        "How long one worker would need for what waits in a model's queues.",
        "gauge",
        {(model,): work_s for model, work_s in watch.backlog.work_s.items()},
        ("model",),
    )
    yield gauge(
        "overspill_pool_drain_seconds",
        "How long the present pool needs for all that waits, if no more came.",
        watch.drain_s(),
    )


def _examples(seen: Capturing | None) -> Iterator[Family]:
    counts: dict[Labels, float] = {}
    kept: dict[Labels, float] = {}
    kept_bytes: dict[Labels, float] = {}
    if seen is not None:
        for (model, reason, fate), count in seen.counts.items():
            counts[model, reason.value, fate.value] = count
        for model, fill in seen.fill.items():
            kept[(model,)] = fill.examples
            kept_bytes[(model,)] = fill.size_bytes
    yield Family(
        f"{PREFIX}examples_total",
        "Requests that came to be kept as examples, by why they spilled and what "
        "became of them.",
        "counter",
        counts,
        ("model", "reason", "fate"),
    )
    yield Family(
        f"{PREFIX}examples",
        "Examples kept of a model, by this worker.",
        "gauge",
        kept,
        ("model",),
    )
    yield Family(
        f"{PREFIX}examples_bytes",
        "Their size.",
        "gauge",
        kept_bytes,
        ("model",),
    )
    yield gauge(
        f"{PREFIX}capture_stopped",
        "1 while the disk does not let examples be kept.",
        seen is not None and seen.stopped is not None,
    )


def _histogram(name: str, help_: str, histograms: Histograms, labels: Labels) -> Family:
    return Family(
        f"{PREFIX}{name}", help_, "histogram", dict(histograms.samples()), labels
    )
