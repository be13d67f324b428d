"""Dramatiq: `dramatiq … --processes 1`, its eight threads left as they are.

It acknowledges after the actor has ended in either case. Safe: confirmed publishes and
quorum queues. It has no results over RabbitMQ, so an actor answers by a message.
"""

from __future__ import annotations

from typing import Any

import dramatiq
from dramatiq.brokers.rabbitmq import RabbitmqBroker

from benchmarks.peers.apps import served


class QuorumBroker(RabbitmqBroker):
    """Declares the queue of work as a quorum queue, which it has no setting for."""

    def _build_queue_arguments(self, queue_name: str) -> dict[str, Any]:
        arguments: dict[str, Any] = super()._build_queue_arguments(queue_name)
        if queue_name == served.QUEUE:
            arguments["x-queue-type"] = "quorum"
        return arguments


broker = (
    QuorumBroker(url=served.URL, confirm_delivery=True)
    if served.SAFE
    else RabbitmqBroker(url=served.URL)
)
dramatiq.set_broker(broker)
served.load()


@dramatiq.actor(queue_name=served.RESULTS, actor_name="report")
def report(number: int, label: int) -> None:
    """Consumed by the benchmark."""


@dramatiq.actor(queue_name=served.QUEUE, actor_name="infer")
def infer(number: int, model: str, data: str) -> None:
    report.send(number, served.answers(model, [served.decoded(data)])[0])
