"""An edge answer through the Python API against the interpreter alone; the agent at rest.

The interpreter's own time is `Interpreter.invoke`, nothing else. The two take turns
in short rounds. The daemon is started as users start it, against a Mosquitto.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Final

import numpy as np

from benchmarks.limits import (
    Limit,
    arguments,
    median,
    progress,
    quantile,
    report,
    together,
)
from broker.ports import free_port
from edge_agent.app import Agent
from edge_agent.settings import AgentSettings
from lifecycle.logs import configure_logs

ROUNDS: Final = 20
PER_ROUND: Final = 300
STARTS: Final = 5
EXAMPLE: Final = Path(__file__).parent.parent / "examples" / "fashion"
BUNDLE: Final = EXAMPLE / "edge" / "small"


def interpreter_alone() -> Any:  # noqa: ANN401 - untyped library
    """A function that invokes the bundle's model once, by LiteRT itself."""
    from ai_edge_litert.interpreter import Interpreter

    interpreter = Interpreter(str(BUNDLE / "model.tflite"), num_threads=1)
    interpreter.allocate_tensors()
    return interpreter


async def overhead() -> dict[str, float]:
    """Microseconds at p50 and p99, the interpreter's and ours."""
    images = np.load(EXAMPLE / "images" / "test1000.npz")["images"]
    inputs = [(each[None, :, :, None] / 255).astype(np.float32) for each in images]
    interpreter = interpreter_alone()
    where = interpreter.get_input_details()[0]["index"]
    with tempfile.TemporaryDirectory(prefix="ovs-") as folder:
        settings = AgentSettings(
            agent_id="bench", state_dir=Path(folder), bundles=[BUNDLE], local=False
        )
        alone: list[list[float]] = []
        ours: list[list[float]] = []
        async with Agent(settings) as agent:
            for number in range(ROUNDS):
                offset = number * PER_ROUND
                chosen = [inputs[(offset + i) % len(inputs)] for i in range(PER_ROUND)]
                taken = []
                for each in chosen:
                    interpreter.set_tensor(where, each)
                    started = time.perf_counter()
                    interpreter.invoke()
                    taken.append((time.perf_counter() - started) * 1e6)
                alone.append(taken)
                taken = []
                for each in chosen:
                    started = time.perf_counter()
                    await agent.infer("fashion", each)
                    taken.append((time.perf_counter() - started) * 1e6)
                ours.append(taken)
    added = [median(b) - median(a) for a, b in zip(alone, ours, strict=True)]
    return {
        "invoke_p50_us": median(together(alone)),
        "invoke_p99_us": quantile(together(alone), 0.99),
        "answer_p50_us": median(together(ours)),
        "answer_p99_us": quantile(together(ours), 0.99),
        "added_p50_us": median(added),
    }


@contextlib.contextmanager
def mosquitto(folder: Path) -> Iterator[str]:
    """The URL of a private Mosquitto."""
    port = free_port()
    config = folder / "mosquitto.conf"
    config.write_text(f"listener {port} 127.0.0.1\nallow_anonymous true\n")
    program = shutil.which("mosquitto", path=os.environ["PATH"] + ":/usr/sbin")
    if program is None:
        raise SystemExit(
            "run `sudo apt-get install mosquitto`: this benchmark needs it"
        )
    with subprocess.Popen([program, "-c", config], stderr=subprocess.DEVNULL) as server:
        try:
            yield f"mqtt://127.0.0.1:{port}"
        finally:
            server.terminate()


def daemon_at_rest(folder: Path, local_url: str) -> dict[str, float]:
    """Start the daemon without a model: seconds to ready, memory, CPU at rest."""
    state = folder / f"agent-{time.monotonic_ns()}"
    command = [sys.executable, "-m", "edge_agent", "run", "--state-dir", str(state)]
    started = time.perf_counter()
    with subprocess.Popen(
        [*command, "--agent-id", "bench", "--local-url", local_url],
        stderr=subprocess.PIPE,
        text=True,
    ) as daemon:
        try:
            ready_s = wait_ready(daemon, started)
            rest_s = 3.0
            before = cpu_s(daemon.pid)
            time.sleep(rest_s)
            after = cpu_s(daemon.pid)
            maps = Path(f"/proc/{daemon.pid}/maps").read_text()
            return {
                "ready_s": ready_s,
                "resident_mb": resident_mb(daemon.pid),
                "cpu_share": (after - before) / rest_s,
                "tensorflow_mapped": float("tensorflow" in maps),
            }
        finally:
            daemon.terminate()


def wait_ready(daemon: subprocess.Popen[str], started: float) -> float:
    """Seconds until the daemon says that devices can be heard."""
    assert daemon.stderr is not None
    for line in daemon.stderr:
        with contextlib.suppress(ValueError):
            if json.loads(line).get("event") == "ready":
                return time.perf_counter() - started
    raise SystemExit("the agent ended before it was ready")


def resident_mb(pid: int) -> float:
    """Resident memory of a process."""
    fields = Path(f"/proc/{pid}/status").read_text().split("VmRSS:")[1].split()
    return int(fields[0]) / 1024


def cpu_s(pid: int) -> float:
    """Processor seconds that a process has used."""
    fields = Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def main() -> int:
    chosen = arguments(__doc__ or "")
    configure_logs("error")
    progress("interpreter and Python API in turn")
    local = asyncio.run(overhead())
    progress(f"starting the daemon {STARTS} times")
    with tempfile.TemporaryDirectory(prefix="ovs-") as name:
        folder = Path(name)
        with mosquitto(folder) as url:
            starts = [daemon_at_rest(folder, url) for _ in range(STARTS)]
    rest = {key: median([each[key] for each in starts]) for key in starts[0]}
    figures = {key: round(value, 3) for key, value in {**local, **rest}.items()}
    limits = [
        Limit("added_p50_us", figures["added_p50_us"], 60.0),
        Limit("resident_mb", figures["resident_mb"], 80.0),
        Limit("ready_s", figures["ready_s"], 1.0),
        Limit("cpu_share_at_rest", figures["cpu_share"], 0.01),
        Limit("tensorflow_mapped", figures["tensorflow_mapped"], 0.0),
    ]
    return report(figures, limits, as_json=chosen.json)


if __name__ == "__main__":
    sys.exit(main())
