"""What the loops tell of each batch and reply: for metrics, traces and the pool's wait.

Called once for a batch, so that it costs a request well under a microsecond; spans are
made only where traces are on, and only for requests whose trace is sampled.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Sequence
from typing import TYPE_CHECKING, Final

from broker.traceparent import sampled
from cloud_worker.core.line import Item
from cloud_worker.core.overload import EnvelopeSize, ServedRate
from cloud_worker.core.replies import Reply
from cloud_worker.loops.parcels import Held, Parcel
from lifecycle.clock import Clock
from lifecycle.metrics import OTHER, SECONDS, SIZES, Histogram, Histograms
from lifecycle.tracing import Tracing, unix_zero_ns

if TYPE_CHECKING:
    from collections.abc import Container

Batch = Sequence[Item[Held]]

MAX_LINKS: Final = 128
MAX_UNPUBLISHED: Final = 8192


class Observer:
    """Counts what the metrics tell and what the estimate of the pool's wait stands on.

    Args:
        clock: the loops' own.
        tracing: None: no spans.

    Attributes:
        models: the names that may be labels: those that are served now.
        rate: what a request costs this worker.
        sizes: how many requests a message holds.
        busy_s: seconds that the models ran, by model.
        running: requests in batches that have not ended.
        published: results that were confirmed.
    """

    def __init__(
        self,
        clock: Clock,
        tracing: Tracing | None = None,
    ) -> None:
        self.rate = ServedRate()
        self.sizes = EnvelopeSize()
        self.batch_size = Histograms(SIZES, labels=2)
        self.queue_wait = Histograms(SECONDS, labels=2)
        self.infer_time = Histograms(SECONDS, labels=2)
        self.whole_time = Histograms(SECONDS, labels=1)
        self.busy_s: dict[str, float] = {}
        self.failed_batches: dict[str, int] = {}
        self.running = 0
        self.published = 0
        self._clock = clock
        self.models: Container[str] = ()
        self._spans = None if tracing is None else _Spans(tracing)
        self._waiting_then = 0

    def now_s(self) -> float:
        """The time in which batches and replies are told of."""
        return self._clock.monotonic()

    def came(self, model: str, requests: int) -> None:
        """A message of a model that is served brought so many requests."""
        self.sizes.came(model, requests)

    def batch_started(self, batch: Batch, waiting: int) -> None:
        """A batch goes to its runner; so many requests are left waiting."""
        self.running += len(batch)
        self._waiting_then = waiting

    def batch_failed(self, batch: Batch) -> None:
        """A batch came back without outputs; its requests are tried again or failed."""
        self.running -= len(batch)
        model = batch[0].work.model.name
        self.failed_batches[model] = self.failed_batches.get(model, 0) + 1

    def batch_ended(
        self, batch: Batch, started_s: float, done_s: float, infer_ms: float
    ) -> None:
        """A batch came back with outputs."""
        model = batch[0].work.model
        name, count, infer_s = model.name, len(batch), infer_ms / 1000
        self.running -= count
        # The next batch may have been started before this one is written up.
        pressed = self.running > 0 or self._waiting_then > 0
        self.rate.batch_ended(name, count, done_s, pressed=pressed)
        self.busy_s[name] = self.busy_s.get(name, 0.0) + infer_s
        self.batch_size.of((name, model.version)).observe(count)
        self.infer_time.of((name, model.version)).observe(infer_s)
        priority = batch[0].priority
        waits = self.queue_wait.of((name, priority.value))
        for item in batch:
            if item.priority is not priority:  # mostly that of its neighbour
                priority = item.priority
                waits = self.queue_wait.of((name, priority.value))
            waits.observe(started_s - item.work.parcel.delivery.received_at)
        if self._spans is not None:
            self._spans.batch(
                batch, started_s, done_s, infer_s, self._clock.monotonic()
            )

    def confirmed(self, reply: Reply[Parcel], began_s: float) -> None:
        """The broker has taken an envelope of results, sent at `began_s`."""
        now_s = self._clock.monotonic()
        self.published += len(reply.results)
        model = reply.results[0].model
        times = self._times_of(model)
        for result, parcel in zip(reply.results, reply.settles, strict=True):
            if result.model != model:
                model = result.model
                times = self._times_of(model)
            times.observe(now_s - parcel.delivery.received_at)
        if self._spans is not None:
            self._spans.published(reply, began_s, now_s)

    def _times_of(self, model: str) -> Histogram:
        # A request may name any model; a label may not.
        return self.whole_time.of((model if model in self.models else OTHER,))


class _Spans:
    """The worker's part of each trace: queue, batch, infer, publish.

    A batch is one span in the trace of its first request, with links to all of them;
    the others' queue spans link to it.
    """

    def __init__(self, tracing: Tracing) -> None:
        self._tracing = tracing
        # What a result says does not hold its request's trace.
        self._unpublished: OrderedDict[tuple[str, str], str] = OrderedDict()

    def batch(
        self,
        batch: Batch,
        started_s: float,
        done_s: float,
        infer_s: float,
        now_s: float,
    ) -> None:
        traced = [item.work for item in batch if sampled(item.work.traceparent)]
        if not traced:
            return
        tracing, model = self._tracing, batch[0].work.model
        zero_ns = unix_zero_ns(now_s)
        started_ns, done_ns = (zero_ns + int(s * 1e9) for s in (started_s, done_s))
        names = {"overspill.model": model.name, "overspill.version": model.version}
        parents = [each.traceparent or "" for each in traced]
        whole = tracing.span(
            "batch",
            parent=parents[0],
            attributes={**names, "overspill.batch_size": len(batch)},
            links=parents[:MAX_LINKS],
            start_ns=started_ns,
        )
        whole_parent = tracing.traceparent(whole)
        for index, each in enumerate(traced):
            queued = tracing.span(
                "queue",
                parent=parents[index],
                kind="consumer",
                attributes={**names, "overspill.request": each.subject.id},
                links=(whole_parent,) if index else (),
                start_ns=zero_ns + int(each.parcel.delivery.received_at * 1e9),
            )
            queued.end(started_ns)
            self._remember((each.subject.device, each.subject.id), parents[index])
        # The runner says how long it took; its results lie ready when it is done.
        begun_ns = max(done_ns - int(infer_s * 1e9), started_ns)
        inner = tracing.span(
            "infer", parent=whole_parent, attributes=names, start_ns=begun_ns
        )
        inner.end(done_ns)
        whole.end(done_ns)

    def published(self, reply: Reply[Parcel], began_s: float, now_s: float) -> None:
        for result in reply.results:
            parent = self._unpublished.pop((result.device, result.id), None)
            if parent is None:
                continue
            span = self._tracing.span(
                "publish",
                parent=parent,
                kind="producer",
                attributes={
                    "overspill.status": result.status.value,
                    "overspill.results": len(reply.results),
                },
                start_ns=unix_zero_ns(now_s) + int(began_s * 1e9),
            )
            span.end()

    def _remember(self, key: tuple[str, str], parent: str) -> None:
        self._unpublished[key] = parent
        # Those of deliveries that were lost are never published here.
        if len(self._unpublished) > MAX_UNPUBLISHED:
            self._unpublished.popitem(last=False)
