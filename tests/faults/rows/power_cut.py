"""Power cut: whatever the disk kept of what was not synced, what was accepted is there.

The product's own outbox works under load on a disk that remembers every write. Then
the trace is cut at many steps, each time with another choice of the unsynced sectors
that survived, and the outbox is opened on the remains. An accepted row must be there:
open with the bytes that were sent, or ended with the outcome that was recorded.
"""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
import json
import random
import shutil
import sqlite3
import tempfile
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final, Literal, Protocol

from broker.messages import Priority, Reason
from edge_agent.adapters.outbox import Committed, Outbox
from edge_agent.adapters.spill_file import open_table
from edge_agent.core.delivery import Channel, Outcome, Spill
from lifecycle.journal import Event
from tests.faults.history import History
from tests.faults.row import Row
from tests.faults.stage import Stage
from tests.faults.unsynced import Disk, Remains
from tests.faults.watched_disk import Mark, Step, WatchedDisk, watched

DEVICE: Final = "cam1"
FILE: Final = "outbox.db"
NOW_MS: Final = 1_700_000_000_000.0
WAVE: Final = 24
ANSWERED: Final = json.dumps({"status": "answered", "source": "cloud", "final": True})
REFUSED: Final = json.dumps({"status": "refused", "source": None, "final": True})


def content_of(id_: str) -> bytes:
    """The request that a device makes of its id: other ids give other bytes."""
    seed = hashlib.sha256(id_.encode()).digest()
    # Some fit a page, some need several.
    return seed * (1 + seed[0] % 8 * 20)


def spill_of(id_: str) -> Spill:
    """An open spill of that id."""
    return Spill(
        device=DEVICE,
        id=id_,
        model="copy",
        priority=random.Random(id_).choice(list(Priority)),
        reason=Reason.HARD,
        channel=Channel.MQTT,
        encoding="json",
        request=content_of(id_),
        accepted_ms=NOW_MS,
        deadline_ms=NOW_MS + 60_000.0,
        due_ms=NOW_MS,
    )


async def work(disk: WatchedDisk, requests: int, rng: random.Random) -> None:
    """Accept, settle, tell and send `requests`, and mark in the trace what was promised."""
    waves = [range(n, min(n + WAVE, requests)) for n in range(0, requests, WAVE)]
    half = len(waves) // 2
    # Stopped in between as an agent is: the log is folded in and removed.
    for some in (waves[:half], waves[half:]):
        await _live(disk, some, rng)


async def _live(
    disk: WatchedDisk, waves: Iterable[Sequence[int]], rng: random.Random
) -> None:
    path = disk.folder / FILE
    async with Outbox(path, group_commit_ms=1.0) as outbox:
        for numbers in waves:
            ids = [f"r{n}" for n in numbers]
            async with asyncio.TaskGroup() as wave:
                for id_ in ids:
                    wave.create_task(_one(outbox, disk, id_, rng))
            if rng.random() < 0.3:
                # As another program does that closes the file, or a long log.
                how = rng.choice(("PASSIVE", "RESTART", "TRUNCATE"))
                await asyncio.to_thread(_checkpoint, path, how)


async def _one(outbox: Outbox, disk: WatchedDisk, id_: str, rng: random.Random) -> None:
    each = spill_of(id_)
    disk.mark("offered", id_)
    accepting = outbox.accept(each)
    if rng.random() < 0.1:
        # Answered before its commit: never accepted, and nothing is promised.
        _ = outbox.settle(each.key, Outcome.ANSWERED, b"early", ended_ms=NOW_MS)
    if await accepting != Committed():
        return
    disk.mark("accepted", id_)
    if rng.random() < 0.4:
        await outbox.claim_due(
            NOW_MS,
            limit=4,
            max_bytes=1 << 20,
            next_due_ms=lambda sends: NOW_MS + sends,
        )
    if rng.random() < 0.5:
        answer = hashlib.sha256(b"answer" + id_.encode()).digest()
        disk.mark("ending", id_, answer)
        await outbox.settle(each.key, Outcome.ANSWERED, answer, ended_ms=NOW_MS + 1)
        if rng.random() < 0.5:
            await outbox.mark_told([each.key], NOW_MS + 2)


def _checkpoint(path: Path, how: str) -> None:
    with contextlib.closing(sqlite3.connect(path, timeout=10)) as db:
        db.execute(f"PRAGMA wal_checkpoint({how})").fetchone()


async def recorded(requests: int, seed: int) -> list[Step]:
    """The trace of a run of its own, in a folder that is gone afterwards."""
    with _folder() as folder, watched(folder) as disk:
        await work(disk, requests, random.Random(seed))
        return disk.trace


def recorded_alone(requests: int, synchronous: Literal["FULL", "NORMAL"]) -> list[Step]:
    """The trace of rows accepted one by one, committed in the way that is given."""
    with _folder() as folder, watched(folder) as disk:
        table = open_table(folder / FILE)
        for id_ in (f"r{n}" for n in range(requests)):
            disk.mark("offered", id_)
            with table.transaction(synchronous):
                table.insert(spill_of(id_))
            disk.mark("accepted", id_)
        table.close()
        return disk.trace


@dataclass(frozen=True, slots=True)
class Promises:
    """What had been said when the power went."""

    offered: frozenset[str]
    accepted: frozenset[str]
    answers: dict[str, bytes]

    @classmethod
    def of(cls, steps: Iterable[Step]) -> Promises:
        """What a program had said by the end of `steps`."""
        marks = [step for step in steps if isinstance(step, Mark)]
        return cls(
            frozenset(mark.id for mark in marks if mark.what == "offered"),
            frozenset(mark.id for mark in marks if mark.what == "accepted"),
            {mark.id: mark.detail for mark in marks if mark.what == "ending"},
        )


@dataclass(slots=True)
class Findings:
    """What became of every cut.

    Attributes:
        cuts: how many were tried.
        checked: accepted ids looked for, over all cuts.
        open: of those, found open.
        ended: of those, found with their outcome.
        lost: found neither way, as `id at step`.
        wrong: anything else that may not be, in words.
    """

    cuts: int = 0
    checked: int = 0
    open: int = 0
    ended: int = 0
    lost: list[str] = field(default_factory=list)
    wrong: list[str] = field(default_factory=list)

    def add(self, other: Findings) -> None:
        """Count another's too."""
        self.cuts += other.cuts
        self.checked += other.checked
        self.open += other.open
        self.ended += other.ended
        self.lost += other.lost
        self.wrong += other.wrong


class Listener(Protocol):
    """Hears of every cut."""

    def tell(self, promised: Promises, rows: Mapping[str, Found]) -> None:
        """What had been promised, and which rows were found."""
        ...


async def cut_often(
    steps: Sequence[Step], cuts: int, seed: int, listener: Listener | None = None
) -> Findings:
    """Cut the power at `cuts` random steps, each with other survivors."""
    rng = random.Random(seed)
    found = Findings()
    disk = Disk()
    done = 0
    # The moment after a promise is the hardest one.
    promises = [at for at, step in enumerate(steps, 1) if _is_promise(step)]
    moments = rng.choices(range(1, len(steps) + 1), k=cuts - cuts // 2)
    for at in sorted(moments + rng.choices(promises, k=cuts // 2)):
        disk.follow(steps[done:at])
        done = at
        promised = Promises.of(steps[:at])
        rows = await _look(disk.cut(rng), promised, at, found)
        if listener is not None:
            listener.tell(promised, rows)
        found.cuts += 1
    return found


def _is_promise(step: Step) -> bool:
    return isinstance(step, Mark) and step.what == "accepted"


async def _look(
    remains: Remains, promised: Promises, at: int, found: Findings
) -> dict[str, Found]:
    with _folder() as folder:
        remains.write_to(folder)
        async with Outbox(folder / FILE) as outbox:
            counts = await outbox.counts()
            rows, said = await asyncio.to_thread(_read, folder / FILE)
        if said != "ok":
            found.wrong.append(f"integrity_check at step {at}: {said}")
        if aside := [each.name for each in folder.iterdir() if "corrupt" in each.name]:
            found.wrong.append(f"set aside at step {at}: {aside}")
        if (open_ := sum(row.outcome is None for row in rows.values())) != counts.open:
            found.wrong.append(f"{open_} open at step {at}, but counted {counts.open}")
        found.wrong += [
            f"{id_} at step {at} was never offered"
            for id_ in rows.keys() - promised.offered
        ]
    for id_ in promised.accepted:
        found.checked += 1
        _judge(id_, rows.get(id_), promised, at, found)
    return rows


@dataclass(frozen=True, slots=True)
class Found:
    """A row as it lies in the file."""

    request: bytes | None
    outcome: str | None
    answer: bytes | None


def _judge(
    id_: str, row: Found | None, promised: Promises, at: int, found: Findings
) -> None:
    if row is None:
        found.lost.append(f"{id_} at step {at}")
    elif row.outcome is None:
        found.open += 1
        if row.request != content_of(id_):
            found.wrong.append(f"{id_} at step {at} has another request's bytes")
    else:
        found.ended += 1
        if row.answer != promised.answers.get(id_):
            found.wrong.append(f"{id_} at step {at} ended in what nobody said")


def _read(path: Path) -> tuple[dict[str, Found], str]:
    """All rows, and what SQLite thinks of the file, by a connection of its own."""
    with contextlib.closing(sqlite3.connect(path, timeout=10)) as db:
        rows: list[Any] = db.execute(
            "SELECT id, request, outcome, answer FROM spill"
        ).fetchall()
        (said,) = db.execute("PRAGMA integrity_check").fetchone()
    return {id_: Found(*values) for id_, *values in rows}, said


@contextlib.contextmanager
def _folder() -> Iterator[Path]:
    folder = Path(tempfile.mkdtemp(prefix="cut"))
    try:
        yield folder
    finally:
        shutil.rmtree(folder)


async def power_cut(stage: Stage) -> None:
    """Cut the power of many outboxes, and write what came of it as a history."""
    found = Findings()
    for number in range(stage.n(10)):
        seed = stage.seed * 1000 + number
        steps = await recorded(stage.n(400), seed)
        found.add(
            await cut_often(steps, 20, seed, Chronicle(stage.histories, f"c{number}"))
        )
    assert found.checked, "no promise was looked for"
    assert not found.lost, f"lost: {found.lost[:5]}"
    assert not found.wrong, f"wrong: {found.wrong[:5]}"


class Chronicle:
    """Tells each cut as a history: of an outbox of its own that loses power once."""

    def __init__(self, folder: Path, name: str) -> None:
        self._folder = folder
        self._name = name
        self._told = 0

    def tell(
        self,
        promised: Promises,
        rows: Mapping[str, Found],
        refused: Iterable[str] = (),
    ) -> None:
        """What one outbox had promised, what was found of it, and what it refused."""
        self._told += 1
        who = f"{self._name}-{self._told}"
        agent, device = (
            History(self._folder, f"{kind}:{who}") for kind in ("agent", "device")
        )
        for id_ in promised.offered:
            device.note("offered", who, id_)
        for id_ in promised.accepted:
            agent.note(Event.ACCEPTED, who, id_)
        agent.note("started")
        for id_, row in rows.items():
            agent.note("recovered", who, id_, row.outcome or "open")
        for id_, row in rows.items():
            if row.outcome is None:
                # It is open, so it will end; here it does at once.
                agent.note(Event.ENDING, who, id_)
                agent.note(Event.ENDED, who, id_, Outcome.ANSWERED.value)
            device.note("heard", who, id_, ANSWERED)
        for id_ in refused:
            device.note("heard", who, id_, REFUSED)
        agent.close()
        device.close()


ROWS: tuple[Row, ...] = (
    Row(
        name="power-cut",
        fault="the power fails; unsynced sectors survive or not, in any order",
        must_hold="what was acknowledged is recovered; integrity_check ok",
        run=power_cut,
        # What was not accepted is gone with the power, and nobody sends it again.
        may_pend=True,
    ),
)
