"""What the fleet's state costs: reports of 1,000 agents, and of what is recorded.

Real loops and a real SQLite file, synced at each commit. Reports are as large as those
of an agent with two models, counters and facts.
"""

from __future__ import annotations

import asyncio
import sys
import tempfile
import time
from collections.abc import Collection
from pathlib import Path
from typing import Final

import structlog

from benchmarks.limits import Limit, median, progress, report
from broker.codec import encode
from broker.messages import HealthReport, Report, SlotReport
from fleet.adapters.audit_head import AuditHead
from fleet.adapters.state.database import FleetDatabase
from fleet.loops.inventory import Inventory
from fleet.operator.examination import examine
from lifecycle.clock import SystemClock

AGENTS: Final = 1000
ROUNDS: Final = 3
ENTRIES: Final = 20_000
MOST_S: Final = 1.0
MOST_VERIFY_S: Final = 5.0
HEALTH: Final = HealthReport(
    for_s=30, requests=1000, errors=1, spilled=100, compared=90, agreed=80, p50_ms=1.0
)
FACTS: Final = {
    "machine": "aarch64",
    "board": "rpi4",
    "os": "linux",
    "runtime": "litert",
    "runtime_version": "2.3",
    "memory_mb": "4000",
    "free_disk_mb": "900",
    "utc_offset_min": "60",
    "clock": "ok",
}


class Letter:
    """A report as RabbitMQ delivers it."""

    def __init__(self, agent: str) -> None:
        self.routing_key = f"e1.{agent}.up.tel"
        slots = [
            SlotReport(model=model, active="1", generation=3, health=HEALTH)
            for model in ("boots", "fashion")
        ]
        counters = {f"counter_{number}": number for number in range(40)}
        self.body = encode(
            Report(agent=agent, at_ms=1, slots=slots, counters=counters, facts=FACTS)
        )

    def ack(self) -> None:
        """Nothing: no broker waits for it."""


async def write_reports(database: FleetDatabase, letters: list[Letter]) -> float:
    """How long the inventory needs for all of them, in seconds."""

    def heard(_: Collection[str]) -> None:
        """Nobody: what follows for rollouts is another benchmark's."""

    inventory = Inventory(database, clock=SystemClock(), heard=heard)
    begun = time.perf_counter()
    async with asyncio.TaskGroup() as group:
        task = group.create_task(inventory.run())
        for each in letters:
            await inventory.take(each)
        await inventory.settled()
        task.cancel()
    return time.perf_counter() - begun


def measure() -> tuple[dict[str, object], list[Limit]]:
    """Figures and limits of the fleet's state."""
    letters = [Letter(f"agent-{number:04}") for number in range(AGENTS)]
    with tempfile.TemporaryDirectory() as folder:
        head = AuditHead(Path(folder) / "head")
        with FleetDatabase(Path(folder) / "fleet.db", head=head) as database:
            progress(f"{ROUNDS} times the reports of {AGENTS:,} agents")
            with structlog.testing.capture_logs():
                took = [
                    asyncio.run(write_reports(database, letters)) for _ in range(ROUNDS)
                ]
            progress(f"an audit log of {ENTRIES:,} entries")
            with database.writing() as ledger:
                for number in range(ENTRIES):
                    ledger.record("alice@desk", "device.label", f"a{number}", at_ms=1)
            begun = time.perf_counter()
            found = examine(database, head)
            verified_s = time.perf_counter() - begun
    if found.faults or found.entries != ENTRIES:
        raise RuntimeError("the audit log is not whole")
    figures: dict[str, object] = {
        f"{AGENTS} reports, seconds": [round(each, 3) for each in took],
        f"{ENTRIES} audit entries verified, seconds": round(verified_s, 2),
    }
    return figures, [
        Limit(f"{AGENTS:,} reports written, seconds", median(took), MOST_S),
        Limit(f"{ENTRIES:,} entries verified, seconds", verified_s, MOST_VERIFY_S),
    ]


def main() -> int:
    """Measure, print, and fail when a limit does not hold."""
    figures, limits = measure()
    return report(figures, limits, as_json="--json" in sys.argv)


if __name__ == "__main__":
    sys.exit(main())
