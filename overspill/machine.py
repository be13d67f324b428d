"""Whether this machine can run what is here, and how to mend what is missing.

Each check looks and gives a finding; nothing is changed and nothing stays running.
"""

from __future__ import annotations

import asyncio
import json
import os
import platform
import re
import shutil
import sys
import tempfile
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass
from enum import StrEnum
from importlib.util import find_spec
from pathlib import Path
from typing import Any, Final

from broker.node import RabbitMissing
from broker.node_files import find_server
from broker.ports import is_free
from overspill.example import Example, ExampleMissing
from overspill.mosquitto import PROGRAM_PATH, MosquittoMissing, find_mosquitto
from overspill.program import CommandFailed, environment, run_command

LEAST_PYTHON: Final = (3, 11)
LEAST_RABBITMQ: Final = (3, 10)
IMPORT_TIMEOUT_S: Final = 120.0
GIBIBYTE: Final = 1024**3
DISK_WANTED: Final = 1 * GIBIBYTE
DISK_NEEDED: Final = GIBIBYTE // 4
# Two workers with TensorFlow at 0.6 GB each, RabbitMQ, three agents.
MEMORY_WANTED: Final = 3 * GIBIBYTE
PORTS: Final = {1883: "MQTT", 5672: "AMQP"}
# What each part imports that the wheel without extras does not bring.
PACKAGES: Final = {
    "amqtt": "edge",
    "aio_pika": "cloud",
    "sqlalchemy": "fleet",
    "rich": "all",
    "matplotlib": "all",
}
_LITERT: Final = """
import json
try:
    import ai_edge_litert as runtime
except ImportError:
    import tflite_runtime as runtime
from importlib.metadata import packages_distributions, version
name = packages_distributions()[runtime.__name__][0]
print(json.dumps(f"{name} {version(name)}"))
"""
_TENSORFLOW: Final = """
import json, tensorflow as tf
gpus = [each.name for each in tf.config.list_physical_devices("GPU")]
print(json.dumps([tf.__version__, gpus]))
"""


WORKER_ROOT: Final = "OVERSPILL_WORKER_TRUSTED_ROOT"


class Verdict(StrEnum):
    """How bad it is: `fail` means that something here cannot run."""

    OK = "ok"
    WARN = "warn"
    FAIL = "fail"


@dataclass(frozen=True, slots=True)
class Finding:
    """What one check found.

    Attributes:
        name: what was looked at.
        verdict: how bad it is.
        found: what is there, in a few words.
        mend: what to do about it; None when it is fine.
    """

    name: str
    verdict: Verdict
    found: str
    mend: str | None = None


async def examine() -> list[Finding]:
    """Look at everything; takes as long as TensorFlow does to import."""
    litert, tensorflow = await asyncio.gather(_litert(), _tensorflow())
    return [
        python_version(sys.version_info[:3]),
        *packages(name for name in PACKAGES if find_spec(name) is None),
        *_rabbitmq(),
        *_mosquitto(),
        litert,
        tensorflow,
        *(port(number, free=is_free(number)) for number in PORTS),
        disk(shutil.disk_usage(tempfile.gettempdir()).free, tempfile.gettempdir()),
        memory(_memory_bytes()),
        _example(),
        pool_trust(os.environ.get(WORKER_ROOT)),
    ]


def failed(findings: Iterable[Finding]) -> bool:
    """Whether something needed is missing."""
    return any(each.verdict is Verdict.FAIL for each in findings)


def document(findings: Sequence[Finding]) -> dict[str, Any]:
    """As `--json` prints it."""
    return {"ok": not failed(findings), "findings": [asdict(each) for each in findings]}


def python_version(version: tuple[int, ...]) -> Finding:
    """This interpreter."""
    found = f"{'.'.join(map(str, version))} on {platform.machine()}"
    if version < LEAST_PYTHON:
        least = ".".join(map(str, LEAST_PYTHON))
        return Finding(
            "Python", Verdict.FAIL, found, f"install Python {least} or newer"
        )
    return Finding("Python", Verdict.OK, found)


def packages(missing: Iterable[str]) -> list[Finding]:
    """Python packages that some part needs."""
    absent = list(missing)
    if not absent:
        return [Finding("Python packages", Verdict.OK, "all there")]
    extras = sorted({PACKAGES[name] for name in absent})
    return [
        Finding(
            "Python packages",
            Verdict.FAIL,
            f"missing: {', '.join(absent)}",
            f"pip install 'overspill[{','.join(extras)}]'",
        )
    ]


def rabbitmq(server: Path | None, *, mqtt_plugin: bool) -> list[Finding]:
    """RabbitMQ and its MQTT plugin.

    Args:
        server: its start script, the version in its path; None when not installed.
        mqtt_plugin: whether the plugin is there.
    """
    if server is None:
        install = "sudo apt-get install rabbitmq-server"
        return [Finding("RabbitMQ", Verdict.FAIL, "not installed", install)]
    found = re.search(r"rabbitmq_server-(\d+(?:\.\d+)*)", str(server))
    if found is None:
        known = Finding(
            "RabbitMQ",
            Verdict.WARN,
            f"{server}, of unknown version",
            "make sure that it is 3.10 or newer",
        )
    elif tuple(map(int, found.group(1).split(".")))[:2] < LEAST_RABBITMQ:
        known = Finding(
            "RabbitMQ", Verdict.FAIL, found.group(1), "install RabbitMQ 3.10 or newer"
        )
    else:
        known = Finding("RabbitMQ", Verdict.OK, found.group(1))
    plugin = (
        Finding("RabbitMQ MQTT plugin", Verdict.OK, "there")
        if mqtt_plugin
        else Finding(
            "RabbitMQ MQTT plugin",
            Verdict.FAIL,
            "not there",
            "install a RabbitMQ that brings rabbitmq_mqtt, such as Debian's",
        )
    )
    return [known, plugin]


def port(number: int, *, free: bool) -> Finding:
    """A port that clients expect things at; nothing here insists on it."""
    name = f"port {number} ({PORTS[number]})"
    if free:
        return Finding(name, Verdict.OK, "free")
    return Finding(
        name,
        Verdict.WARN,
        "in use",
        "nothing to do: `overspill up` takes another port and prints it",
    )


def disk(free_bytes: int, where: str) -> Finding:
    """Room for queues, outboxes and logs."""
    found = f"{free_bytes / GIBIBYTE:.1f} GiB free in {where}"
    if free_bytes >= DISK_WANTED:
        return Finding("disk", Verdict.OK, found)
    verdict = Verdict.WARN if free_bytes >= DISK_NEEDED else Verdict.FAIL
    return Finding("disk", verdict, found, "make room, or set TMPDIR to another disk")


def memory(available_bytes: int | None) -> Finding:
    """Room for two workers with TensorFlow."""
    if available_bytes is None:
        return Finding("memory", Verdict.OK, "unknown")
    found = f"{available_bytes / GIBIBYTE:.1f} GiB available"
    if available_bytes >= MEMORY_WANTED:
        return Finding("memory", Verdict.OK, found)
    return Finding(
        "memory", Verdict.WARN, found, "close other programs: a demo takes about 3 GiB"
    )


def tensorflow(version: str, gpus: Sequence[str]) -> Finding:
    """The cloud's runtime and what it runs on."""
    if gpus:
        return Finding("TensorFlow", Verdict.OK, f"{version}, {len(gpus)} GPU")
    return Finding(
        "TensorFlow", Verdict.OK, f"{version}, no GPU: workers use the processor"
    )


def pool_trust(root: str | None) -> Finding:
    """Whether workers started from here load what nobody has signed."""
    name = "trust of the pool"
    if not root:
        return Finding(
            name,
            Verdict.OK,
            f"{WORKER_ROOT} is not set: workers load unsigned models, as in development",
        )
    if Path(root).expanduser().is_file():
        return Finding(name, Verdict.OK, f"workers load what {root} vouches for")
    return Finding(
        name,
        Verdict.FAIL,
        f"{root} is not there",
        f"copy the fleet's trust/root.json to where {WORKER_ROOT} says",
    )


def _rabbitmq() -> list[Finding]:
    try:
        server = find_server()
    except RabbitMissing:
        return rabbitmq(None, mqtt_plugin=False)
    plugins = server.parent.parent / "plugins"
    return rabbitmq(server, mqtt_plugin=any(plugins.glob("rabbitmq_mqtt-*")))


def _mosquitto() -> list[Finding]:
    install = "sudo apt-get install mosquitto mosquitto-clients"
    try:
        broker = Finding("Mosquitto", Verdict.OK, find_mosquitto())
    except MosquittoMissing:
        broker = Finding("Mosquitto", Verdict.FAIL, "not installed", install)
    path = f"{os.environ.get('PATH', '')}:{PROGRAM_PATH}"
    client = shutil.which("mosquitto_pub", path=path)
    if client is not None:
        return [broker, Finding("Mosquitto clients", Verdict.OK, client)]
    return [broker, Finding("Mosquitto clients", Verdict.WARN, "not there", install)]


async def _litert() -> Finding:
    said, why = await _ask_python(_LITERT)
    if said is None:
        return Finding("LiteRT", Verdict.FAIL, why, "pip install 'overspill[edge]'")
    return Finding("LiteRT", Verdict.OK, str(said))


async def _tensorflow() -> Finding:
    said, why = await _ask_python(_TENSORFLOW)
    if said is None:
        mend = "pip install 'overspill[cloud]' (or [gpu] with an accelerator)"
        return Finding("TensorFlow", Verdict.FAIL, why, mend)
    return tensorflow(*said)


async def _ask_python(code: str) -> tuple[Any, str]:
    """What a fresh interpreter prints as JSON; None and why when it fails."""
    variables = environment(TF_CPP_MIN_LOG_LEVEL="3")
    command = [sys.executable, "-P", "-c", code]
    try:
        status, out, err = await run_command(
            command, variables, timeout_s=IMPORT_TIMEOUT_S
        )
    except CommandFailed:
        return None, f"importing it took over {IMPORT_TIMEOUT_S:g} s"
    if status:
        return None, (err.strip().splitlines() or ["it cannot be imported"])[-1]
    return json.loads(out.splitlines()[-1]), ""


def _memory_bytes() -> int | None:
    try:
        text = Path("/proc/meminfo").read_text()
    except OSError:
        return None
    found = re.search(r"MemAvailable:\s+(\d+) kB", text)
    return int(found.group(1)) * 1024 if found else None


def _example() -> Finding:
    try:
        return Finding("example", Verdict.OK, str(Example.beside_package().folder))
    except ExampleMissing:
        return Finding(
            "example",
            Verdict.WARN,
            "not there: `overspill demo` and `up` need it",
            "run them in a clone of the repository; the wheel does not bring it",
        )
