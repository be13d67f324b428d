"""Durable accepts a second against bare SQLite, and how long one accept takes.

Bare SQLite inserts the same rows into one table (WAL, synchronous=FULL), fifty a
commit, and beside that as many a commit as the outbox had; they take turns. The latency of an
accept, of arrivals at random, is held against the group window plus one fsync of as
many bytes as a commit writes; these take turns too.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import itertools
import os
import random
import sqlite3
import sys
import tempfile
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Final

from benchmarks.limits import Limit, median, progress, quantile, report, together
from broker.messages import Priority, Reason
from edge_agent.adapters.outbox import Outbox
from edge_agent.adapters.spill_rows import RANKS
from edge_agent.core.delivery import Channel, Spill
from edge_agent.core.quotas import QuotaLimits
from lifecycle.clock import SystemClock
from lifecycle.interpreter import share_interpreter
from lifecycle.logs import configure_logs

PAYLOAD_BYTES: Final = 1024
WAITING: Final = 512
BARE_ROWS: Final = 50
TURNS: Final = 12
TURN_S: Final = 1.0
LATENCY_TURNS: Final = 10
LATENCY_TURN_S: Final = 2.0
ARRIVALS_PER_S: Final = 200.0
FSYNCS_A_TURN: Final = 100
GROUP_MS: Final = 20.0
LIMITS: Final = QuotaLimits(
    max_bytes=1 << 40, device_max_rows=1 << 30, device_max_bytes=1 << 40
)

BARE: Final = """
CREATE TABLE spill (
  seq INTEGER PRIMARY KEY, device TEXT, id TEXT, model TEXT, priority INTEGER,
  reason TEXT, channel TEXT, encoding TEXT, request BLOB, accepted_ms REAL,
  deadline_ms REAL, due_ms REAL, attempt INTEGER, stage INTEGER, UNIQUE (device, id)
) STRICT
"""


def spills() -> Iterator[Spill]:
    """Requests of 1 KB, each with an id of its own."""
    now_ms = float(SystemClock().wall_ms())
    first = Spill(
        device="cam",
        id="",
        model="fashion",
        priority=Priority.NORM,
        reason=Reason.HARD,
        channel=Channel.MQTT,
        encoding="json",
        request=os.urandom(PAYLOAD_BYTES),
        accepted_ms=now_ms,
        deadline_ms=now_ms + 3_600_000,
        due_ms=now_ms + 60_000,
        attempt=1,
    )
    for number in itertools.count():
        yield replace(first, id=f"0198c0de-0000-7000-8000-{number:012d}")


class Bare:
    """SQLite and nothing else."""

    def __init__(self, path: Path) -> None:
        self._db = sqlite3.connect(path, isolation_level=None)
        self._db.execute("PRAGMA journal_mode = WAL")
        self._db.execute("PRAGMA synchronous = FULL")
        self._db.execute(BARE)

    def per_second(self, rows: Iterator[Spill], a_commit: int) -> float:
        """Rows a second during one turn."""
        done, started = 0, time.perf_counter()
        while (now := time.perf_counter()) < started + TURN_S:
            group = [_columns(next(rows)) for _ in range(a_commit)]
            self._db.execute("BEGIN IMMEDIATE")
            self._db.executemany(f"INSERT INTO spill VALUES (NULL{', ?' * 13})", group)
            self._db.execute("COMMIT")
            done += a_commit
        return done / (now - started)

    def close(self) -> None:
        self._db.close()


def _columns(each: Spill) -> tuple[object, ...]:
    return (
        each.device,
        each.id,
        each.model,
        RANKS[each.priority],
        each.reason.value,
        each.channel.value,
        each.encoding,
        each.request,
        each.accepted_ms,
        each.deadline_ms,
        each.due_ms,
        each.attempt,
        0,
    )


async def accepts_per_second(
    outbox: Outbox, rows: Iterator[Spill]
) -> tuple[float, int]:
    """Accepts a second with many waiting, and the rows of its usual commit."""
    done = 0
    groups = outbox.counters.groups
    give_up = time.perf_counter() + TURN_S

    async def offer() -> None:
        nonlocal done
        while time.perf_counter() < give_up:
            await outbox.accept(next(rows))
            done += 1

    started = time.perf_counter()
    async with asyncio.TaskGroup() as tasks:
        for _ in range(WAITING):
            tasks.create_task(offer())
    rate = done / (time.perf_counter() - started)
    return rate, round(done / (outbox.counters.groups - groups))


async def throughput(folder: Path) -> dict[str, list[float]]:
    """Turns of ours and of bare SQLite."""
    ours: list[float] = []
    bare: list[float] = []
    same: list[float] = []
    groups: list[float] = []
    rows = spills()
    with contextlib.closing(Bare(folder / "bare.db")) as limit:
        async with Outbox(
            folder / "ours.db", group_commit_ms=GROUP_MS, limits=LIMITS
        ) as outbox:
            await accepts_per_second(outbox, rows)  # The first turn warms up.
            for _ in range(TURNS):
                rate, group = await accepts_per_second(outbox, rows)
                ours.append(rate)
                groups.append(group)
                bare.append(limit.per_second(rows, BARE_ROWS))
                same.append(limit.per_second(rows, group))
    return {"ours": ours, "bare": bare, "same": same, "groups": groups}


async def latencies_ms(
    outbox: Outbox, rows: Iterator[Spill], rng: random.Random
) -> list[float]:
    """Milliseconds from `accept` to the device's `accepted`, of arrivals at random."""
    taken: list[float] = []
    give_up = time.perf_counter() + LATENCY_TURN_S

    async def offer() -> None:
        started = time.perf_counter()
        await outbox.accept(next(rows))
        taken.append((time.perf_counter() - started) * 1000)

    async with asyncio.TaskGroup() as tasks:
        while time.perf_counter() < give_up:
            tasks.create_task(offer())
            await asyncio.sleep(rng.expovariate(ARRIVALS_PER_S))
    return taken


def fsyncs_ms(path: Path, size: int) -> list[float]:
    """Milliseconds of appending `size` bytes and one fsync."""
    taken = []
    data = os.urandom(size)
    with path.open("ab", buffering=0) as file:
        for _ in range(FSYNCS_A_TURN):
            started = time.perf_counter()
            file.write(data)
            os.fsync(file.fileno())
            taken.append((time.perf_counter() - started) * 1000)
            # As far apart as commits are.
            time.sleep(GROUP_MS / 2000)
    return taken


async def latency(folder: Path) -> tuple[list[list[float]], list[list[float]], int]:
    """Turns of accepts and of fsyncs."""
    accepts: list[list[float]] = []
    fsyncs: list[list[float]] = []
    rows = spills()
    rng = random.Random(1)
    path = folder / "latency.db"
    async with Outbox(path, group_commit_ms=GROUP_MS, limits=LIMITS) as outbox:
        wal = path.with_name(path.name + "-wal")
        before = wal.stat().st_size
        commits = 20
        for _ in range(commits):
            await asyncio.gather(*(outbox.accept(next(rows)) for _ in range(3)))
        size = (wal.stat().st_size - before) // commits
        for _ in range(LATENCY_TURNS):
            accepts.append(await latencies_ms(outbox, rows, rng))
            fsyncs.append(fsyncs_ms(folder / "written", size))
    return accepts, fsyncs, size


def _usual_p99(turns: list[list[float]]) -> float:
    """The p99 of the turn in the middle: one that the machine stalled says nothing."""
    return median([quantile(each, 0.99) for each in turns])


async def measure(folder: Path) -> tuple[dict[str, float], list[Limit]]:
    progress(f"{TURNS} turns of accepts with {WAITING} waiting, and of bare SQLite")
    rates = await throughput(folder)
    progress(f"{LATENCY_TURNS} turns of accepts at random, and of fsyncs")
    accepts, fsyncs, size = await latency(folder)
    ratios = [a / b for a, b in zip(rates["ours"], rates["bare"], strict=True)]
    as_many = [a / b for a, b in zip(rates["ours"], rates["same"], strict=True)]
    figures: dict[str, float] = {
        "payload_bytes": PAYLOAD_BYTES,
        "rows_a_commit": median(rates["groups"]),
        "accepts_per_s": round(median(rates["ours"]), 1),
        "bare_sqlite_50_a_commit_per_s": round(median(rates["bare"]), 1),
        "bare_sqlite_as_many_a_commit_per_s": round(median(rates["same"]), 1),
        "ratio_by_turn_p10": round(quantile(ratios, 0.1), 3),
        "ratio_by_turn_p50": round(median(ratios), 3),
        "ratio_as_many_a_commit_p50": round(median(as_many), 3),
        "group_window_ms": GROUP_MS,
        "fsync_bytes": size,
        "fsync_p50_ms": round(quantile(together(fsyncs), 0.5), 3),
        "fsync_p99_ms": round(quantile(together(fsyncs), 0.99), 3),
        "fsync_p99_of_a_turn_ms": round(_usual_p99(fsyncs), 3),
        "accepts_timed": len(together(accepts)),
        "accept_p50_ms": round(quantile(together(accepts), 0.5), 3),
        "accept_p99_ms": round(quantile(together(accepts), 0.99), 3),
        "accept_p99_of_a_turn_ms": round(_usual_p99(accepts), 3),
    }
    limits = [
        Limit(
            "accepts_over_bare_sqlite", figures["ratio_by_turn_p50"], 0.8, at_least=True
        ),
        Limit(
            "accept_p99_ms",
            figures["accept_p99_of_a_turn_ms"],
            round(GROUP_MS + figures["fsync_p99_of_a_turn_ms"], 3),
        ),
    ]
    return figures, limits


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--json", action="store_true", help="print figures as JSON")
    parser.add_argument(
        "--folder", type=Path, help="on the disk to be measured; /tmp if unset"
    )
    chosen = parser.parse_args()
    configure_logs("error")
    share_interpreter()  # as the daemon does
    with tempfile.TemporaryDirectory(prefix="ovs-", dir=chosen.folder) as folder:
        figures, limits = asyncio.run(measure(Path(folder)))
    return report(figures, limits, as_json=chosen.json)


if __name__ == "__main__":
    sys.exit(main())
