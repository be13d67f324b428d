"""`python -m tests.faults.agent HISTORIES`: the real agent, with a journal that listens.

Every setting comes from OVERSPILL_AGENT_… as the daemon's does.
"""

from __future__ import annotations

import asyncio
import contextlib
import shutil
import sqlite3
import tempfile
from pathlib import Path
from typing import Annotated

import typer

from edge_agent.app import Agent
from edge_agent.settings import AgentSettings
from lifecycle.logs import configure_logs
from lifecycle.signals import stop_on_signals
from tests.faults.history import History
from tests.faults.journal import FaultJournal, KillAt

OPEN, SETTLED = 0, 1


def main(
    histories: Path,
    kill_at: Annotated[str | None, typer.Option(help="EVENT:NUMBER")] = None,
) -> None:
    """Serve until SIGTERM, or until the journal ends it."""
    configure_logs("info")
    settings = AgentSettings()
    where = None if kill_at is None else KillAt.read(kill_at)
    journal = FaultJournal(histories, f"agent:{settings.agent_id}", where)
    tell_what_is_there(settings.state_dir / "outbox.db", journal.history)
    asyncio.run(serve(settings, journal))


async def serve(settings: AgentSettings, journal: FaultJournal) -> None:
    stop = stop_on_signals()
    async with Agent(settings, journal=journal) as agent:
        await agent.run(stop)


def tell_what_is_there(path: Path, history: History) -> None:
    """Note each row that somebody still waits for, before the agent opens the file."""
    history.note("started")
    if not path.exists():
        return
    try:
        rows = read(path)
    except sqlite3.OperationalError:
        # A full disk has no room for what reading takes; another has.
        with tempfile.TemporaryDirectory() as elsewhere:
            for file in (path, path.with_name(f"{path.name}-wal")):
                if file.exists():
                    shutil.copy(file, elsewhere)
            rows = read(Path(elsewhere) / path.name)
    except sqlite3.Error as error:
        history.note("unreadable", detail=str(error))
        return
    for device, id_, stage, outcome in rows:
        history.note("recovered", device, id_, "open" if stage == OPEN else outcome)


def read(path: Path) -> list[tuple[str, str, int, str]]:
    """Rows that somebody waits for: device, id, stage, outcome."""
    # To read must not be to repair: that is the agent's own work.
    with contextlib.closing(
        sqlite3.connect(f"file:{path}?mode=ro", uri=True, timeout=10)
    ) as db:
        return db.execute(
            "SELECT device, id, stage, outcome FROM spill WHERE stage IN (?, ?)",
            (OPEN, SETTLED),
        ).fetchall()


if __name__ == "__main__":
    typer.run(main)
