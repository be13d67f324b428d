"""A damaged outbox: set aside and reported, never deleted; what can be read is kept.

Files of the product's own outbox, closed cleanly or cut off with a log beside them,
are damaged in many places: flipped bytes, a page of rubbish, a cut, a header that is
none, a broken log. However they look, the outbox opens, accepts and answers; a file
that it found damaged lies beside it byte for byte; and each row is either as it was
or gone with that file. A row that is there and cannot be reached would wait for ever.
"""

from __future__ import annotations

import asyncio
import contextlib
import random
import shutil
import signal
import sqlite3
import tempfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final, TypeAlias

from structlog.testing import capture_logs

from edge_agent.adapters.outbox import Committed, Outbox, OutboxFailed
from edge_agent.core.delivery import Outcome, Step
from tests.faults.row import Row
from tests.faults.rows.power_cut import DEVICE, FILE, NOW_MS, content_of, spill_of
from tests.faults.stage import Stage

PAGE: Final = 4096
ROWS_OF_A_FILE: Final = 150

Files: TypeAlias = dict[str, bytes]
Damage: TypeAlias = Callable[[Files, random.Random], Files]


async def files_of(rows: int, *, clean: bool) -> Files:
    """An outbox with open, ended and told rows: closed, or as a killed agent leaves it."""
    with _folder() as folder:
        async with Outbox(folder / FILE, group_commit_ms=1.0) as outbox:
            ids = [f"r{n}" for n in range(rows)]
            await asyncio.gather(*(outbox.accept(spill_of(id_)) for id_ in ids))
            for number, id_ in enumerate(ids):
                if number % 3:
                    await outbox.settle(
                        (DEVICE, id_),
                        Outcome.ANSWERED,
                        content_of(f"answer {id_}"),
                        ended_ms=NOW_MS,
                        step=Step.ANSWER_CALLER if number % 3 == 2 else Step.SETTLE,
                    )
            if not clean:
                return _read(folder)
        return _read(folder)


def _read(folder: Path) -> Files:
    return {
        each.name: each.read_bytes()
        for each in sorted(folder.iterdir())
        # Shared memory, which SQLite makes anew when nobody has it open.
        if not each.name.endswith("-shm")
    }


# --- how it is damaged -------------------------------------------------------------------


def flipped_byte(files: Files, rng: random.Random) -> Files:
    """One byte of the database."""
    return {**files, FILE: _flip(files[FILE], rng, 1)}


def many_flipped(files: Files, rng: random.Random) -> Files:
    """Two hundred bytes all over the database."""
    return {**files, FILE: _flip(files[FILE], rng, 200)}


def flipped_page_head(files: Files, rng: random.Random) -> Files:
    """Where each page says what it is: pointers, cells, sizes."""
    content = bytearray(files[FILE])
    page = rng.randrange(len(content) // PAGE or 1)
    for _ in range(3):
        at = page * PAGE + rng.randrange(24)
        if at < len(content):
            content[at] ^= 1 << rng.randrange(8)
    return {**files, FILE: bytes(content)}


def rubbish_page(files: Files, rng: random.Random) -> Files:
    """A whole page, but not the first."""
    content = bytearray(files[FILE])
    page = rng.randrange(1, max(2, len(content) // PAGE))
    content[page * PAGE : (page + 1) * PAGE] = rng.randbytes(PAGE)
    return {**files, FILE: bytes(content)}


def rubbish_header(files: Files, rng: random.Random) -> Files:
    """The first hundred bytes, so that nothing knows the file as a database."""
    return {**files, FILE: rng.randbytes(100) + files[FILE][100:]}


def cut_short(files: Files, rng: random.Random) -> Files:
    """The database's end is missing."""
    return {**files, FILE: files[FILE][: rng.randrange(len(files[FILE]))]}


def rubbish_log(files: Files, rng: random.Random) -> Files:
    """The log is no log at all."""
    return {**files, f"{FILE}-wal": rng.randbytes(rng.randrange(1, 40_000))}


def rubbish_all(files: Files, rng: random.Random) -> Files:
    """Nothing of the database is left."""
    return {**files, FILE: rng.randbytes(len(files[FILE]) or PAGE)}


def _flip(content: bytes, rng: random.Random, times: int) -> bytes:
    flipped = bytearray(content)
    for _ in range(times if flipped else 0):
        flipped[rng.randrange(len(flipped))] ^= 1 << rng.randrange(8)
    return bytes(flipped)


DAMAGES: Final[tuple[Damage, ...]] = (
    flipped_byte,
    many_flipped,
    flipped_page_head,
    rubbish_page,
    rubbish_header,
    cut_short,
    rubbish_log,
    rubbish_all,
)


# --- what comes of it --------------------------------------------------------------------


@dataclass(slots=True)
class Outcomes:
    """What came of one kind of damage, over all tries.

    Attributes:
        tries: how many.
        set_aside: in how many of them the file was.
        rows: looked for, over all tries.
        kept: of those, there and as they were.
        given_up: ended `failed`, because their record was damaged.
        altered: there with other bytes, which SQLite does not see.
        unreachable: there, but not found by their id.
        wrong: what may not be, in words.
    """

    tries: int = 0
    set_aside: int = 0
    rows: int = 0
    kept: int = 0
    given_up: int = 0
    altered: int = 0
    unreachable: int = 0
    wrong: list[str] = field(default_factory=list)


async def damage_often(
    files: Files, damage: Damage, *, tries: int, seed: int
) -> Outcomes:
    """Damage the same files in `tries` ways of one kind, and open each."""
    rng = random.Random(f"{seed} {damage.__name__}")
    found = Outcomes()
    for number in range(tries):
        await _open(damage(files, rng), f"{damage.__name__} {number}", found)
        found.tries += 1
    return found


async def _open(damaged: Files, name: str, found: Outcomes) -> None:
    with _folder() as folder:
        for file, content in damaged.items():
            (folder / file).write_bytes(content)
        try:
            async with Outbox(folder / FILE, group_commit_ms=1.0) as outbox:
                await _look(outbox, folder, name, found)
        except (Exception, ExceptionGroup) as error:  # noqa: BLE001 - it may not happen at all
            found.wrong.append(f"{name}: {type(error).__name__}: {error}")
        aside = [each for each in folder.iterdir() if ".corrupt-" in each.name]
        found.set_aside += bool(aside)
        for each in aside:
            was = f"{FILE}-wal" if "-wal" in each.name else FILE
            # Where there was no log, looking at the file may have made an empty one.
            if each.read_bytes() != damaged.get(was, b""):
                found.wrong.append(f"{name}: what was set aside was changed")


async def _look(outbox: Outbox, folder: Path, name: str, found: Outcomes) -> None:
    await _read_all(outbox)
    if await outbox.accept(spill_of("new")) != Committed():
        found.wrong.append(f"{name}: accepts nothing")
    there = await asyncio.to_thread(_ids, folder / FILE)
    for number in range(ROWS_OF_A_FILE):
        found.rows += 1
        id_ = f"r{number}"
        recorded = await outbox.find((DEVICE, id_))
        if recorded is None:
            if id_ in there:
                found.unreachable += 1
            continue
        spill = await outbox.get((DEVICE, id_))
        right = (
            spill is not None and spill.request == content_of(id_)
            if number % 3 == 0
            else recorded.answer == content_of(f"answer {id_}")
        )
        found.kept += right
        given_up = recorded.outcome is Outcome.FAILED
        found.given_up += given_up
        found.altered += not right and not given_up


async def _read_all(outbox: Outbox) -> None:
    """Read every row as the loops do, which try again when the file was mended."""
    for number in range(ROWS_OF_A_FILE):
        key = (DEVICE, f"r{number}")
        for _ in range(3):
            with contextlib.suppress(OutboxFailed):
                await outbox.find(key)
                await outbox.get(key)
                break


def _ids(path: Path) -> set[str]:
    with contextlib.closing(sqlite3.connect(path, timeout=10)) as db:
        return {id_ for (id_,) in db.execute("SELECT id FROM spill NOT INDEXED")}


@contextlib.contextmanager
def _folder() -> Iterator[Path]:
    folder = Path(tempfile.mkdtemp(prefix="damage"))
    try:
        yield folder
    finally:
        shutil.rmtree(folder)


# --- the real agent ------------------------------------------------------------------------


async def damaged_anyhow(stage: Stage) -> None:
    """Every kind of damage, many times."""
    for clean in (True, False):
        files = await files_of(ROWS_OF_A_FILE, clean=clean)
        for damage in DAMAGES:
            with capture_logs() as logs:
                found = await damage_often(
                    files, damage, tries=stage.n(40), seed=stage.seed
                )
            assert not found.wrong, found.wrong[:3]
            reports = [log for log in logs if log["event"].endswith("_corrupt")]
            assert len(reports) == found.set_aside, "set aside and not reported"


async def damaged_while_down(stage: Stage) -> None:
    """Rubbish in an index, between two lives: every row is still there."""
    await damaged_anyhow(stage)
    gateway = await stage.usual()
    worker = stage.workers["w1"]
    worker.signal(signal.SIGSTOP)
    await stage.load(stage.n(100))
    await stage.until(
        lambda: all(each.heard_accepted >= each.open.keys() for each in stage.devices)
    )
    path = gateway.state_dir / FILE
    async with stage.fault("the outbox is damaged"):
        gateway.keep = False
        gateway.agent.signal(signal.SIGKILL)
        await gateway.agent.ended()
        await asyncio.to_thread(_damage_an_index, path)
        damaged = path.read_bytes()
        gateway.keep = True
        await stage.restarted(gateway)
        aside = list(path.parent.glob(f"{FILE}.corrupt-*"))
        kept = [each for each in aside if not each.name.endswith("-wal")]
        assert [each.read_bytes() for each in kept] == [damaged], "not set aside"
        worker.signal(signal.SIGCONT)
    await stage.load(stage.n(20))
    await stage.until_ended()


def _damage_an_index(path: Path) -> None:
    with contextlib.closing(sqlite3.connect(path, timeout=10)) as db:
        db.execute("PRAGMA wal_checkpoint(TRUNCATE)").fetchone()
        (page,) = db.execute(
            "SELECT rootpage FROM sqlite_schema WHERE name = 'open_by_deadline'"
        ).fetchone()
    with path.open("r+b") as file:
        file.seek((page - 1) * PAGE)
        file.write(b"\xa5" * PAGE)


ROWS: tuple[Row, ...] = (
    Row(
        name="database-damaged",
        fault="a page of the outbox turns to rubbish while the agent is down",
        must_hold="set aside byte for byte, and reported; every row salvaged",
        run=damaged_while_down,
        most_gap_s=15.0,
    ),
)
