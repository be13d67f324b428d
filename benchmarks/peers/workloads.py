"""What is put to a contender, and the figures that come of it."""

from __future__ import annotations

import asyncio
import random
import shutil
import time
from collections.abc import Sequence
from dataclasses import asdict
from typing import Final

from benchmarks.peers import processes
from benchmarks.peers.accounts import Accounts, Summary
from benchmarks.peers.arrivals import Arrival, bursts, poisson
from benchmarks.peers.contenders import OURS
from benchmarks.peers.session import Session

Figures = dict[str, float | None]

PROBE: Final = 300
PROBE_MOST_S: Final = 15.0
DRAIN_FEWEST: Final = 150
DRAIN_MOST: Final = 30_000
DRAIN_MOST_S: Final = 30.0
LOAD_DEADLINE_S: Final = 0.1
MIXED_DEADLINES_S: Final = (0.03, 0.15)
BURST_SIZE: Final = 150
BURST_EVERY_S: Final = 1.0
BURST_DEADLINE_S: Final = 0.25
QUIET_S: Final = 1.5
GRACE_S: Final = 6.0
KILL_AT_SHARE: Final = 0.25
KILL_MOST_S: Final = 60.0
KILL_QUIET_S: Final = 10.0
SWAP_SHARE: Final = 0.5
SWAP_OTHER_PER_S: Final = 10.0


async def drain(session: Session, model: str, seconds: float) -> Figures:
    """Throughput on a deep queue of one request a message; its cost and memory."""
    accounts = session.begin()
    began_s, *_ = await session.backlog(accounts, model, PROBE)
    await session.until_heard(accounts, PROBE_MOST_S)
    guess = accounts.heard / max(0.01, accounts.last_s - began_s)
    count = round(min(DRAIN_MOST, max(DRAIN_FEWEST, guess * seconds)))

    accounts = session.begin()
    began_s, worker_s, broker_s = await session.backlog(accounts, model, count)
    await session.until_heard(accounts, DRAIN_MOST_S)
    taken_s = max(1e-3, accounts.last_s - began_s)
    worker_after_s, broker_after_s = session.cpu_s()
    us_each = 1e6 / max(1, accounts.heard)
    return {
        "requests": count,
        "per_s": accounts.answered / taken_s,
        "cpu_us": (worker_after_s - worker_s + broker_after_s - broker_s) * us_each,
        "broker_cpu_us": (broker_after_s - broker_s) * us_each,
        "memory_mb": session.memory_mb(),
        "unanswered": len(accounts.sent) - accounts.answered,
    }


async def load(
    session: Session, draw: random.Random, per_s: float, seconds: float
) -> Figures:
    """The stub at a steady open-loop rate; good within 100 ms."""
    rate = {"per_s": per_s, "seconds": seconds}
    arrivals = poisson(draw, models=["stub"], deadlines_s=[LOAD_DEADLINE_S], **rate)
    return await _played(session, arrivals, expire=False)


async def mixed(
    session: Session, draw: random.Random, per_s: float, seconds: float
) -> Figures:
    """Two models in equal parts, deadlines half 30 ms and half 150 ms, told to all."""
    rate = {"per_s": per_s, "seconds": seconds}
    both = ["stub", "resnet"]
    arrivals = poisson(draw, models=both, deadlines_s=MIXED_DEADLINES_S, **rate)
    return await _played(session, arrivals, expire=True)


async def burst(
    session: Session, draw: random.Random, quiet_per_s: float, count: int
) -> Figures:
    """Bursts of 150 to the stub over a quiet stream; good within 250 ms."""
    arrivals = bursts(
        draw,
        count=count,
        size=BURST_SIZE,
        every_s=BURST_EVERY_S,
        quiet_per_s=quiet_per_s,
        model="stub",
        deadline_s=BURST_DEADLINE_S,
    )
    return await _played(session, arrivals, expire=False)


async def _played(
    session: Session, arrivals: Sequence[Arrival], *, expire: bool
) -> Figures:
    accounts = session.begin()
    await session.play(accounts, arrivals, expire=expire)
    await session.until_quiet(accounts, QUIET_S, GRACE_S)
    figures = _figures(accounts.summary())
    # What is still queued belongs to no later workload.
    await session.road.empty()
    accounts = session.begin()
    await session.until_quiet(accounts, QUIET_S, GRACE_S)
    return figures


def _figures(summary: Summary) -> Figures:
    return dict(asdict(summary))


async def kill(session: Session, count: int) -> Figures:
    """Kill -9 of every process of the worker in a backlog, and a new start."""
    accounts = session.begin()
    await session.backlog(accounts, "resnet", count)
    due = round(count * KILL_AT_SHARE)
    await session.until(lambda: accounts.heard >= due, KILL_MOST_S)
    processes.kill(processes.tree(session.worker.pid))
    await session.worker.wait()
    killed_s = time.perf_counter()
    heard = accounts.heard
    session.worker = await session.start_worker()
    await session.road.wait_consumed()
    await session.until(lambda: accounts.heard > heard, KILL_MOST_S / 2)
    back_s = time.perf_counter() - killed_s
    await session.until_quiet(accounts, KILL_QUIET_S, KILL_MOST_S)
    summary = accounts.summary()
    return {
        "sent": summary.sent,
        "lost": summary.sent - summary.answered,
        "told_lost": summary.refused,
        "duplicates": summary.duplicates,
        "back_after_s": back_s,
    }


async def swap(
    session: Session, draw: random.Random, per_s: float, seconds: float
) -> Figures:
    """A new version of the ResNet while the stub is under load.

    Ours is given a new folder in its repository. The others have no such thing: a
    second worker is started and, once it consumes, the first is asked to end.
    """
    accounts = session.begin()
    arrivals = poisson(
        draw,
        per_s=per_s,
        seconds=seconds,
        models=["stub"],
        deadlines_s=[LOAD_DEADLINE_S],
    )
    other = poisson(
        draw,
        per_s=SWAP_OTHER_PER_S,
        seconds=seconds,
        models=["resnet"],
        deadlines_s=[LOAD_DEADLINE_S],
    )
    merged = sorted([*arrivals, *other], key=lambda each: each.at_s)
    began_s = time.perf_counter()
    swap_at_s = began_s + seconds / 3
    done_s: list[float] = []

    async def change() -> None:
        await session.until(lambda: time.perf_counter() >= swap_at_s, seconds)
        if session.contender.name == OURS:
            await _new_version(session, accounts, seconds)
        else:
            await _second_worker(session)
        done_s.append(time.perf_counter())

    async with asyncio.TaskGroup() as tasks:
        changing = tasks.create_task(change())
        await session.play(accounts, merged, expire=False)
        await session.until_quiet(accounts, QUIET_S, GRACE_S)
        await changing
    ended_s = done_s[0]
    stub = [each for each in accounts.sent.values() if each.model == "stub"]
    before = accounts.summary(each for each in stub if each.intended_s < swap_at_s)
    during = accounts.summary(
        each for each in stub if swap_at_s <= each.intended_s <= ended_s
    )
    versions = {each.version for each in accounts.sent.values()}
    whole = accounts.summary()
    return {
        "swapped": float(session.contender.name != OURS or "2" in versions),
        "took_s": ended_s - swap_at_s,
        "p99_before_ms": before.p99_ms,
        "p99_during_ms": during.p99_ms,
        "ratio": _ratio(during.p99_ms, before.p99_ms),
        "failed": whole.refused + whole.unanswered,
        "duplicates": whole.duplicates,
    }


def _ratio(one: float | None, other: float | None) -> float | None:
    return None if one is None or not other else one / other


async def _new_version(session: Session, accounts: Accounts, most_s: float) -> None:
    folder = session.place.models / "resnet"
    await asyncio.to_thread(shutil.copytree, folder / "1", folder / ".2")
    (folder / ".2").rename(folder / "2")

    def taken_over() -> bool:
        return any(each.version == "2" for each in accounts.sent.values())

    await session.until(taken_over, most_s * 2 / 3)


async def _second_worker(session: Session) -> None:
    first = session.worker
    second = await session.start_worker()
    session.worker = second
    await session.road.wait_consumed(2)
    await processes.end(first)
