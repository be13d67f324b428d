"""The pool beside the limit and beside its peers, in one run.

    python -m benchmarks.pool [--json] [--quick] [--peers celery,dramatiq]
        [--workloads noop,resnet,kill] [--repeats 5] [--pictures DIR]

`resnet` also holds the worker against the same SavedModel called in process. The
peers run in `.venv-bench`; see benchmarks/README.md for what each workload is.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import json
import os
import random
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from benchmarks import beside_in_process
from benchmarks.limits import progress, report
from benchmarks.peers import environment
from benchmarks.peers.contenders import BY_NAME, CONTENDERS, OURS
from benchmarks.peers.environment import NoEnvironment
from benchmarks.peers.results import Results, limits
from benchmarks.peers.rounds import DRAINS, LOADS, OTHERS, Plan, Rounds
from benchmarks.peers.session import Stage, bodies
from benchmarks.peers.wires import AGENT
from broker.node import Node
from lifecycle.logs import configure_logs

WORKLOADS: Final = (*DRAINS, *LOADS, *OTHERS)
CORES: Final = 2
MODELS_MOST_S: Final = 180.0
# A smoke run: one with a queue, and one without.
QUICK_PEERS: Final = "celery-batches,litserve"


@dataclass(frozen=True, slots=True)
class Size:
    """How much of each thing."""

    turns: int
    drain_s: float
    load_s: float
    bursts: int
    kill_requests: int
    swap_s: float
    minutes: float


FULL: Final = Size(5, 2.5, 3.0, 4, 600, 24.0, 40.0)
QUICK: Final = Size(1, 0.5, 0.7, 1, 200, 6.0, 2.5)


def main() -> int:
    chosen = _arguments()
    configure_logs("error")
    names = _names(chosen.peers or (QUICK_PEERS if chosen.quick else None))
    size = QUICK if chosen.quick else FULL
    results = asyncio.run(_measure(chosen, names, size))
    figures = {**results.notes, "contenders": results.tables()}
    figures["failures"] = results.failures
    if chosen.pictures is not None:
        from benchmarks.peers.pictures import draw  # noqa: PLC0415 - slow to import

        draw(results, names, chosen.pictures)
    if not chosen.json:
        figures = _lines(results, names)
    return report(figures, limits(results, names), as_json=chosen.json)


async def _measure(chosen: argparse.Namespace, names: list[str], size: Size) -> Results:
    until_s = time.monotonic() + (chosen.minutes or size.minutes) * 60
    repeats = 1 if chosen.quick else chosen.repeats
    results = Results()
    results.notes.update(seed=chosen.seed, repeats=repeats, machine=_machine())
    progress(f"seed {chosen.seed}")
    with contextlib.suppress(AttributeError):
        # Everything that is started inherits it: the broker and the load as well.
        os.sched_setaffinity(0, sorted(os.sched_getaffinity(0))[:CORES])
    names = _prepared(names, results)
    if "resnet" in chosen.workloads and OURS in names:
        results.notes["in_process"] = await beside_in_process.measure(size.turns)
    plan = Plan(
        names=names,
        workloads=chosen.workloads,
        repeats=repeats,
        seed=chosen.seed,
        drain_s=size.drain_s,
        load_s=size.load_s,
        bursts=size.bursts,
        kill_requests=size.kill_requests,
        swap_s=size.swap_s,
        until_s=until_s,
        every_mode=not chosen.quick,
    )
    with tempfile.TemporaryDirectory(prefix="ovs-") as name:
        folder = Path(name)
        progress("writing and calibrating the models")
        results.notes["models"] = _write_models(folder / "models")
        node = Node(folder / "r", agents=(AGENT,), models=DRAINS)
        async with node:
            peers_python = environment.python() if names != [OURS] else Path()
            stage = Stage(node, folder / "models", peers_python, folder, bodies())
            await Rounds(stage, plan, results).run()
    return results


def _prepared(names: list[str], results: Results) -> list[str]:
    """Those that can run; the others become rows that say why not."""
    if names == [OURS]:
        return names
    try:
        program = environment.python()
    except NoEnvironment as error:
        for name in names:
            if name != OURS:
                results.fail(name, BY_NAME[name].modes[-1], "install", str(error)[:400])
        return [name for name in names if name == OURS]
    wanted = tuple(each for name in names for each in BY_NAME[name].distributions)
    found = environment.versions(program, wanted)
    results.notes["versions"] = found
    able = []
    for name in names:
        missing = [
            each for each in BY_NAME[name].distributions if found[each] == "missing"
        ]
        if missing:
            why = f"not installed: {', '.join(missing)}"
            results.fail(name, BY_NAME[name].modes[-1], "install", why)
        else:
            able.append(name)
    return able


def _write_models(folder: Path) -> dict[str, float]:
    # In a process of its own: TensorFlow would stay in this one, which sends the load.
    said = subprocess.run(
        [sys.executable, "-m", "benchmarks.peers.models", str(folder)],
        check=True,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        timeout=MODELS_MOST_S,
    ).stdout
    calibrated: dict[str, float] = json.loads(said.splitlines()[-1])
    return calibrated


def _machine() -> dict[str, Any]:
    return {"cores": os.cpu_count(), "load_before": round(os.getloadavg()[0], 2)}


def _lines(results: Results, names: list[str]) -> dict[str, Any]:
    """One line a contender, mode and workload; the spread is in --json."""
    lines: dict[str, Any] = {
        name: value for name, value in results.notes.items() if name != "in_process"
    }
    lines.update(results.notes.get("in_process", {}))
    tables = results.tables()
    for name in names:
        for mode, workloads in tables.get(name, {}).items():
            for workload, measures in workloads.items():
                shown = [f"{key} {of['median']:.4g}" for key, of in measures.items()]
                lines[f"{name} {mode} {workload}"] = ", ".join(shown)
    for number, failure in enumerate(results.failures, 1):
        lines[f"failure {number}"] = " | ".join(map(str, failure.values()))
    return lines


def _names(asked: str | None) -> list[str]:
    every = [each.name for each in CONTENDERS]
    if asked is None:
        return every
    wanted = {OURS, *filter(None, asked.split(","))}
    if unknown := wanted - set(every):
        raise SystemExit(f"no such peer: {', '.join(sorted(unknown))}; known: {every}")
    return [each for each in every if each in wanted]


def _workloads(text: str) -> list[str]:
    wanted = text.split(",")
    if unknown := set(wanted) - set(WORKLOADS):
        raise argparse.ArgumentTypeError(
            f"unknown {sorted(unknown)}; known {WORKLOADS}"
        )
    return wanted


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--json", action="store_true", help="print figures as JSON")
    parser.add_argument(
        "--quick", action="store_true", help=f"a smoke run, with {QUICK_PEERS}"
    )
    parser.add_argument("--peers", help="some of them, with commas; ours is always in")
    parser.add_argument(
        "--workloads", type=_workloads, default=list(WORKLOADS), help="with commas"
    )
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--minutes", type=float, help="begin no round that ends later")
    parser.add_argument(
        "--seed", type=int, default=random.SystemRandom().randrange(10**6)
    )
    parser.add_argument("--pictures", type=Path, metavar="DIR", help="draw there")
    return parser.parse_args()


if __name__ == "__main__":
    sys.exit(main())
