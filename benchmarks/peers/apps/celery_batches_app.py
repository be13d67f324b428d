"""Celery with celery-batches: a task that is given many requests at once.

As its documentation has it: results are stored for each request by the task itself.
Prefetch is twice the batch, because what is not prefetched cannot be gathered.
"""

from __future__ import annotations

from celery import Celery
from celery.signals import worker_process_init
from celery_batches import Batches, SimpleRequest
from kombu import Queue

from benchmarks.peers.apps import served

app = Celery("peer", broker=served.URL, backend="rpc://")
app.conf.task_default_queue = served.QUEUE
app.conf.worker_send_task_events = False
app.conf.broker_connection_retry_on_startup = True
app.conf.worker_prefetch_multiplier = 2 * served.MAX_BATCH
if served.SAFE:
    app.conf.update(
        task_acks_late=True,
        task_reject_on_worker_lost=True,
        result_persistent=True,
        broker_transport_options={"confirm_publish": True},
        task_default_queue_type="quorum",
        task_queues=[Queue(served.QUEUE, queue_arguments={"x-queue-type": "quorum"})],
    )


@worker_process_init.connect
def load(**_: object) -> None:
    served.load()


@app.task(
    name="infer",
    base=Batches,
    flush_every=served.MAX_BATCH,
    flush_interval=served.LINGER_S,
)
def infer(requests: list[SimpleRequest]) -> None:
    for model in served.MODELS:
        chosen = [each for each in requests if each.args[0] == model]
        if not chosen:
            continue
        bodies = [served.decoded(each.args[1]) for each in chosen]
        for each, label in zip(chosen, served.answers(model, bodies), strict=True):
            app.backend.mark_as_done(each.id, label, request=each)
