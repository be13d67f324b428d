"""What a worker says of itself, without a broker."""

from __future__ import annotations

import re
from pathlib import Path

from broker.amqp.link import AmqpLink
from cloud_worker.core.ledger import Aside, Cause, Ledger
from cloud_worker.loops.observer import Observer
from cloud_worker.loops.overload import PoolWatch
from cloud_worker.loops.parcels import Room
from cloud_worker.status import Parts, RunnerLook, WorkerStatus
from lifecycle.clock import FakeClock

DOCS = Path(__file__).resolve().parents[3] / "docs" / "observability.md"
UNITS = ("_seconds", "_bytes", "_total")
COUNTED = {
    "batch_size",
    "held",
    "waiting",
    "running",
    "ready",
    "link_up",
    "examples",
    "capture_stopped",
}


def status(*runners: RunnerLook) -> WorkerStatus:
    """Of a worker whose models are loaded and whose RabbitMQ is away."""
    ledger, clock = Ledger(), FakeClock()
    link = AmqpLink("amqp://a@localhost/", name="w")
    observer = Observer(clock)
    watch = PoolWatch(link.look, models=tuple, observer=observer, waiting=lambda: 0)
    made = WorkerStatus(ledger)
    made.parts = Parts(
        link=link,
        room=Room(8, ledger),
        observer=observer,
        watch=watch,
        waiting=lambda: 0,
        runners=lambda: runners,
    )
    return made


def names_exposed() -> set[str]:
    """The names of all metrics of a worker."""
    return {family.name for family in status().families()}


def test_a_worker_is_not_ready_before_its_models_are() -> None:
    assert WorkerStatus(Ledger()).why_not_ready() == "loading and warming up its models"


def test_a_worker_without_rabbitmq_is_not_ready() -> None:
    why = status().why_not_ready()
    assert why == "not consuming from RabbitMQ: connecting"


def test_a_worker_that_drains_says_how_much_it_holds() -> None:
    made = status()
    made.draining = True
    assert made.why_not_ready() == "draining, 0 requests held"


def test_a_model_process_that_is_gone_costs_only_its_memory_s_sample() -> None:
    gone = RunnerLook("a/1", ready=False, restarts=3, resident_bytes=None)
    families = {each.name: each for each in status(gone).families()}
    assert families["overspill_worker_runner_resident_memory_bytes"].values == {}
    restarts = families["overspill_worker_runner_restarts_total"]
    assert restarts.values == {("a/1",): 3}


def test_every_cause_is_there_from_the_start() -> None:
    families = {each.name: each for each in status().families()}
    assert len(families["overspill_worker_requests_ended_total"].values) == len(Cause)
    assert len(families["overspill_worker_set_aside_total"].values) == len(Aside)


def test_names_are_as_prometheus_advises() -> None:
    for family in status().families():
        assert (family.kind == "counter") == family.name.endswith("_total")
        bare = re.sub(r"^overspill_(worker|pool)_", "", family.name)
        assert (
            bare.endswith(UNITS)
            or bare in COUNTED
            or family.name
            in {
                "overspill_pool_queue_messages",
                "overspill_pool_workers",
            }
        ), family.name


def test_the_page_names_the_metrics_that_there_are() -> None:
    text = DOCS.read_text()
    table = re.findall(r"^\| `(overspill_(?:worker|pool)_\w+)`", text, re.MULTILINE)
    assert sorted(table) == sorted(names_exposed())
    for name in re.findall(r"overspill_(?:worker|pool)_[a-z_]+[a-z]\b", text):
        assert name in table, name
