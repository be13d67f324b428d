"""Who takes part: how each is started, what it speaks, and what it promises."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Final, Literal

from benchmarks.peers.wires import (
    TRANSIENT,
    CeleryWire,
    DramatiqWire,
    FastStreamWire,
    OursWire,
    TaskiqWire,
    Wire,
)

ROOT: Final = Path(__file__).parent.parent.parent
APPS: Final = "benchmarks.peers.apps"
OURS: Final = "overspill"

Mode = Literal["as_they_come", "equal_safety"]
MODES: Final[tuple[Mode, ...]] = ("as_they_come", "equal_safety")


@dataclass(frozen=True, slots=True)
class Place:
    """What a worker is told when it is started."""

    amqp_url: str
    queue: str
    results: str
    models: Path
    port: int
    python: Path

    def variables(self, mode: Mode) -> dict[str, str]:
        """The environment of a peer's program."""
        return {
            "BENCH_AMQP_URL": self.amqp_url,
            "BENCH_QUEUE": self.queue,
            "BENCH_RESULTS": self.results,
            "BENCH_MODELS": str(self.models),
            "BENCH_PORT": str(self.port),
            "BENCH_SAFE": str(int(mode == "equal_safety")),
            "PYTHONPATH": str(ROOT),
            "PATH": f"{self.python.parent}:/usr/local/bin:/usr/bin:/bin",
            # Nothing of a benchmark is told to anybody.
            "BENTOML_DO_NOT_TRACK": "True",
            "RAY_USAGE_STATS_ENABLED": "0",
            "LITSERVE_SKIP_VERSION_CHECK": "1",
        }


@dataclass(frozen=True, slots=True)
class Contender:
    """One system.

    Attributes:
        name: as the tables show it.
        command: how its worker is started.
        wires: what it speaks on RabbitMQ, in each mode it is measured in; empty for a
            server without a queue.
        path: where such a server takes a model's requests.
        distributions: what must be installed for it.
    """

    name: str
    command: Callable[[Place], list[str]]
    wires: Mapping[Mode, Wire]
    path: Callable[[str], str] = lambda _: ""
    distributions: tuple[str, ...] = ()

    @property
    def queued(self) -> bool:
        """Whether it takes its work from RabbitMQ."""
        return bool(self.wires)

    @property
    def modes(self) -> tuple[Mode, ...]:
        """The modes it is measured in; a server without a queue has its own only."""
        return tuple(self.wires) or ("as_they_come",)


def _ours(place: Place) -> list[str]:
    worker = [sys.executable, "-m", "cloud_worker", "run", "--log-level", "warning"]
    return [*worker, "--amqp-url", place.amqp_url, "--models", str(place.models)]


def _celery(app: str) -> Callable[[Place], list[str]]:
    def command(place: Place) -> list[str]:
        program = [str(place.python), "-m", "celery", "-A", f"{APPS}.{app}", "worker"]
        # A name of its own, so that two may overlap when one replaces the other.
        name = f"{app}-{time.monotonic_ns()}@%h"
        options = ["--concurrency", "1", "--loglevel", "WARNING", "--hostname", name]
        return [*program, *options]

    return command


def _dramatiq(place: Place) -> list[str]:
    program = [str(place.python), "-m", "dramatiq", f"{APPS}.dramatiq_app"]
    return [*program, "--processes", "1", "--queues", place.queue]


def _taskiq(place: Place) -> list[str]:
    program = [str(place.python), "-m", "taskiq", "worker", f"{APPS}.taskiq_app:broker"]
    return [*program, "--workers", "1", "--log-level", "WARNING"]


def _program(name: str) -> Callable[[Place], list[str]]:
    return lambda place: [str(place.python), "-m", f"{APPS}.{name}"]


def _bentoml(place: Place) -> list[str]:
    program = [
        str(place.python),
        "-m",
        "bentoml",
        "serve",
        f"{APPS}.bentoml_app:Served",
    ]
    return [*program, "--host", "127.0.0.1", "--port", str(place.port)]


def _both(wire: Wire) -> dict[Mode, Wire]:
    return dict.fromkeys(MODES, wire)


CONTENDERS: Final = (
    # It has no less safe way to run: one measure stands in both tables.
    Contender(OURS, _ours, {"equal_safety": OursWire()}),
    Contender(
        "celery", _celery("celery_app"), _both(CeleryWire()), distributions=("celery",)
    ),
    Contender(
        "celery-batches",
        _celery("celery_batches_app"),
        _both(CeleryWire()),
        distributions=("celery", "celery-batches"),
    ),
    Contender(
        "dramatiq", _dramatiq, _both(DramatiqWire()), distributions=("dramatiq",)
    ),
    # It runs at equal safety as it comes.
    Contender(
        "taskiq",
        _taskiq,
        {"equal_safety": TaskiqWire()},
        distributions=("taskiq", "taskiq-aio-pika"),
    ),
    Contender(
        "faststream",
        _program("faststream_app"),
        {"as_they_come": FastStreamWire(TRANSIENT), "equal_safety": FastStreamWire()},
        distributions=("faststream",),
    ),
    Contender(
        "litserve",
        _program("litserve_app"),
        {},
        path=lambda _: "/predict",
        distributions=("litserve",),
    ),
    Contender(
        "bentoml",
        _bentoml,
        {},
        path=lambda model: f"/{model}",
        distributions=("bentoml",),
    ),
    Contender(
        "ray-serve",
        _program("ray_app"),
        {},
        path=lambda _: "/",
        distributions=("ray",),
    ),
)
BY_NAME: Final = {each.name: each for each in CONTENDERS}
