"""Celery, one message a call: `celery -A … worker --concurrency 1`.

Safe: late acknowledgement, and a task whose process died goes back (user guide, "Tasks"
and "Optimizing: reserve one task at a time"), a quorum queue, confirmed results.
"""

from __future__ import annotations

from celery import Celery
from celery.signals import worker_process_init
from kombu import Queue

from benchmarks.peers.apps import served

app = Celery("peer", broker=served.URL, backend="rpc://")
app.conf.task_default_queue = served.QUEUE
app.conf.worker_send_task_events = False
app.conf.broker_connection_retry_on_startup = True
if served.SAFE:
    app.conf.update(
        task_acks_late=True,
        task_reject_on_worker_lost=True,
        worker_prefetch_multiplier=1,
        result_persistent=True,
        broker_transport_options={"confirm_publish": True},
        task_default_queue_type="quorum",
        task_queues=[Queue(served.QUEUE, queue_arguments={"x-queue-type": "quorum"})],
    )


@worker_process_init.connect
def load(**_: object) -> None:
    served.load()


@app.task(name="infer")
def infer(model: str, data: str) -> int:
    return served.answers(model, [served.decoded(data)])[0]
