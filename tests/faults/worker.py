"""`python -m tests.faults.worker HISTORIES`: the real worker, with a journal that listens.

Every setting comes from OVERSPILL_WORKER_… as the worker's does.
"""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Annotated

import typer

from cloud_worker.app import Worker
from cloud_worker.settings import WorkerSettings
from lifecycle.logs import configure_logs
from lifecycle.signals import stop_on_signals
from tests.faults.journal import FaultJournal, KillAt


def main(
    histories: Path,
    kill_at: Annotated[str | None, typer.Option(help="EVENT:NUMBER")] = None,
) -> None:
    """Work until SIGTERM, or until the journal ends it."""
    configure_logs("info")
    settings = WorkerSettings()
    where = None if kill_at is None else KillAt.read(kill_at)
    journal = FaultJournal(histories, f"worker:{settings.worker_id}", where)
    asyncio.run(work(settings, journal))


async def work(settings: WorkerSettings, journal: FaultJournal) -> None:
    await Worker(settings, journal=journal).run(stop_on_signals())


if __name__ == "__main__":
    typer.run(main)
