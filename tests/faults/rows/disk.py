"""A disk that is full or broken: refusals with a reason, and nothing lost that was not.

The product's own outbox works on a disk that begins to fail at a chosen moment and is
mended later. While it fails, what is not accepted is refused and says why; before,
meanwhile and after, what was accepted stays; and when the disk is mended, the outbox
accepts again by itself. Each run ends in a power cut, for a disk that has failed a
sync may have kept less than later syncs say.
"""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import random
import shutil
import signal
import sqlite3
import subprocess
import tempfile
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

from structlog.testing import capture_logs

from edge_agent.adapters.outbox import Committed, Outbox, OutboxFailed, OutboxFull
from edge_agent.core.delivery import Outcome
from tests.faults.row import Row
from tests.faults.rows.power_cut import (
    DEVICE,
    FILE,
    NOW_MS,
    Chronicle,
    Findings,
    Found,
    Promises,
    cut_often,
    spill_of,
)
from tests.faults.stage import Gateway, Stage
from tests.faults.watched_disk import (
    FULL,
    IOERR_FSYNC,
    IOERR_READ,
    IOERR_TRUNCATE,
    IOERR_WRITE,
    OK,
    Fault,
    Op,
    WatchedDisk,
    watched,
)

PATIENCE_S: Final = 15.0
EACH: Final = 24


@dataclass(frozen=True, slots=True)
class Trouble:
    """What goes wrong: from the `after`-th time that `op` is asked of such a file."""

    name: str
    op: Op
    code: int
    suffix: str
    after: int
    lasting: bool

    def fault(self, trial: Trial) -> Fault:
        """A fault that begins then, and lasts or not."""
        asked = itertools.count()

        def broken(op: Op, file: str, size: int) -> int:
            if op is not self.op or not file.endswith(self.suffix):
                return OK
            number = next(asked)
            if number == self.after or (self.lasting and number > self.after):
                trial.failures += 1
                return self.code
            return OK

        return broken


TROUBLES: Final = tuple(
    Trouble(
        f"{name}, {where}, {'from' if lasting else 'only'} the {after + 1}.",
        op,
        code,
        suffix,
        after,
        lasting,
    )
    for name, op, code in (
        ("disk full", Op.WRITE, FULL),
        ("write error", Op.WRITE, IOERR_WRITE),
        ("sync error", Op.SYNC, IOERR_FSYNC),
        ("truncate error", Op.TRUNCATE, IOERR_TRUNCATE),
        ("read error", Op.READ, IOERR_READ),
    )
    for where, suffix in (("log", "-wal"), ("database", ".db"))
    for after in (0, 1, 5)
    for lasting in (True, False)
)


@dataclass(slots=True)
class Trial:
    """What was seen under one trouble.

    Attributes:
        failures: how often the disk failed.
        accepted: ids, in order.
        refused: ids, and what was said.
        wrong: what may not be, in words.
        cut: what was found after power cuts.
    """

    trouble: Trouble
    failures: int = 0
    accepted: list[str] = field(default_factory=list)
    refused: dict[str, str] = field(default_factory=dict)
    wrong: list[str] = field(default_factory=list)
    cut: Findings = field(default_factory=Findings)


async def try_all(troubles: Sequence[Trouble], *, cuts: int, seed: int) -> list[Trial]:
    """Every trouble, side by side, each on a disk of its own."""
    with contextlib.ExitStack() as stack:
        folders = [stack.enter_context(_folder()) for _ in troubles]
        disks = [stack.enter_context(watched(folder)) for folder in folders]
        async with asyncio.TaskGroup() as tasks:
            tried = [
                tasks.create_task(_try(trouble, disk, seed))
                for trouble, disk in zip(troubles, disks, strict=True)
            ]
        trials = [each.result() for each in tried]
    for trial, disk in zip(trials, disks, strict=True):
        trial.cut = await cut_often(disk.trace, cuts, seed)
    return trials


async def _try(trouble: Trouble, disk: WatchedDisk, seed: int) -> Trial:
    rng = random.Random(f"{seed} {trouble.name}")
    trial = Trial(trouble)
    async with Outbox(disk.folder / FILE, group_commit_ms=1.0) as outbox:
        before = await _offer(outbox, disk, "before", trial)
        if trial.refused:
            trial.wrong.append("a healthy disk refused")
        ended = rng.sample(before, EACH // 4)
        await asyncio.to_thread(_touch, disk.folder / FILE)
        disk.fault = trouble.fault(trial)
        ending = [_settle(outbox, disk, id_) for id_ in ended]
        await _offer(outbox, disk, "during", trial)
        await _read_some(outbox)
        await asyncio.to_thread(_checkpoint, disk.folder / FILE)
        await _offer(outbox, disk, "still", trial)
        disk.heal()
        await _until_accepting(outbox, disk, trial)
        await _offer(outbox, disk, "after", trial)
        async with asyncio.timeout(PATIENCE_S):
            firsts = await asyncio.gather(*ending)
        if not all(firsts):
            trial.wrong.append("an outcome was recorded twice")
        await _look(outbox, trial, set(ended))
    return trial


async def _offer(
    outbox: Outbox, disk: WatchedDisk, when: str, trial: Trial
) -> list[str]:
    """Offer requests in waves; gives what was accepted of them."""
    ids = [f"{when}-{n}" for n in range(EACH)]
    for wave in range(0, EACH, 6):
        async with asyncio.TaskGroup() as tasks:
            for id_ in ids[wave : wave + 6]:
                tasks.create_task(_offer_one(outbox, disk, id_, trial))
    return [id_ for id_ in ids if id_ in trial.accepted]


async def _offer_one(outbox: Outbox, disk: WatchedDisk, id_: str, trial: Trial) -> bool:
    disk.mark("offered", id_)
    try:
        async with asyncio.timeout(PATIENCE_S):
            said = await outbox.accept(spill_of(id_))
    except OutboxFull as error:
        trial.refused[id_] = str(error)
        return False
    if said != Committed():
        trial.wrong.append(f"{id_} heard {said}")
    disk.mark("accepted", id_)
    trial.accepted.append(id_)
    return True


def _settle(outbox: Outbox, disk: WatchedDisk, id_: str) -> asyncio.Future[bool]:
    answer = f"answer to {id_}".encode()
    disk.mark("ending", id_, answer)
    return outbox.settle((DEVICE, id_), Outcome.ANSWERED, answer, ended_ms=NOW_MS + 1)


def _touch(path: Path) -> None:
    """Change the file as another program would, so that no page of it stays cached."""
    with contextlib.closing(sqlite3.connect(path, timeout=10)) as db:
        # The log begins anew, so that what follows is not all in it.
        db.execute("PRAGMA wal_checkpoint(TRUNCATE)").fetchone()
        db.execute("PRAGMA application_id = 7").fetchone()


def _checkpoint(path: Path) -> None:
    # It fails as the disk does, and the outbox has to live with what that leaves.
    with (
        contextlib.suppress(sqlite3.Error),
        contextlib.closing(sqlite3.connect(path, timeout=10)) as db,
    ):
        db.execute("PRAGMA wal_checkpoint(PASSIVE)").fetchone()


async def _read_some(outbox: Outbox) -> None:
    # Reading may fail on such a disk, but only in the way that the loops expect.
    with contextlib.suppress(OutboxFailed):
        await outbox.expired(NOW_MS)
        await outbox.counts()


async def _until_accepting(outbox: Outbox, disk: WatchedDisk, trial: Trial) -> None:
    async with asyncio.timeout(PATIENCE_S):
        for number in itertools.count():
            if await _offer_one(outbox, disk, f"again-{number}", trial):
                return
            await asyncio.sleep(0.05)  # between two tries: nothing tells of a disk


async def _look(outbox: Outbox, trial: Trial, ended: set[str]) -> None:
    for id_ in trial.accepted:
        found = await outbox.find((DEVICE, id_))
        if found is None:
            trial.wrong.append(f"{id_} was accepted and is gone")
        elif (found.answer is not None) != (id_ in ended):
            trial.wrong.append(f"{id_} is {found.stage.name}")
    for id_, why in trial.refused.items():
        if await outbox.find((DEVICE, id_)) is not None:
            trial.wrong.append(f"{id_} was refused ({why}) and kept")
        if not why.strip():
            trial.wrong.append(f"{id_} was refused without a reason")


@contextlib.contextmanager
def _folder() -> Iterator[Path]:
    folder = Path(tempfile.mkdtemp(prefix="disk"))
    try:
        yield folder
    finally:
        shutil.rmtree(folder)


# --- the real agent on a real full disk ----------------------------------------------------

SMALL_DISK_BYTES: Final = 16 * 1024**2


class NoSmallDisk(Exception):
    """This user may not mount one."""


@contextlib.contextmanager
def small_disk(folder: Path) -> Iterator[Path]:
    """A disk of its own at `folder`, gone afterwards whoever still has files open.

    Raises:
        NoSmallDisk: mounting is not allowed here.
    """
    folder.mkdir()
    options = f"size={SMALL_DISK_BYTES},mode=700"
    try:
        _run("mount", "-t", "tmpfs", "-o", options, "tmpfs", str(folder))
    except (OSError, subprocess.CalledProcessError) as error:
        folder.rmdir()
        raise NoSmallDisk(f"a small tmpfs cannot be mounted: {error}") from error
    try:
        yield folder
    finally:
        _run("umount", "--lazy", str(folder))


def _run(*command: str) -> None:
    subprocess.run(command, check=True, capture_output=True, timeout=PATIENCE_S)


def fill(folder: Path, name: str = "ballast") -> Path:
    """Take every free byte; gives the file that holds them."""
    ballast = folder / name
    with contextlib.suppress(OSError), ballast.open("wb", buffering=0) as file:
        while True:
            file.write(bytes(4096))
    return ballast


async def full_disk(stage: Stage) -> None:
    """Something else fills the agent's disk, and frees it again.

    Where no disk may be mounted, SQLite is told so by the watched disk instead.
    """
    try:
        await _fill_small_disk(stage)
    except NoSmallDisk as why:
        stage.note_fault(f"disk full, by a shim: {why}")
        await _try_and_tell(stage, [each for each in TROUBLES if each.code == FULL])


async def _fill_small_disk(stage: Stage) -> None:
    with small_disk(stage.folder / "agent-1") as disk:
        gateway = await stage.usual()
        await stage.load(stage.n(50))
        await stage.until(lambda: not any(device.open for device in stage.devices))
        worker = stage.workers["w1"]
        worker.signal(signal.SIGSTOP)
        await stage.load(stage.n(50))
        await stage.until(
            lambda: all(
                each.heard_accepted >= each.open.keys() for each in stage.devices
            )
        )
        before = {id_ for device in stage.devices for id_ in device.open}
        async with stage.fault("the disk is full, a tmpfs"):
            ballast = await asyncio.to_thread(fill, disk)
            # More than what the log's own pages still take.
            await stage.load(stage.n(600))
            status = await stage.until_status(gateway, _refuses)
            assert status["local"]["up"]
            # Outcomes come now, and cannot be written.
            come = status["counters"]["results"] + len(before)
            worker.signal(signal.SIGCONT)
            await stage.until_status(
                gateway, lambda now: now["counters"]["results"] >= come
            )
            await _start_on_full_disk(stage, gateway)
            ballast.unlink()
        await stage.until_ended()
        ended = {i for each in stage.devices for i in each.ended}
        assert before <= ended, "what was accepted before is gone"


async def _start_on_full_disk(stage: Stage, gateway: Gateway) -> None:
    """The agent is killed, and finds no room for what SQLite needs to open a file."""
    gateway.keep = False
    await gateway.agent.kill()
    # As a power cut leaves it; SQLite makes it anew, 32 KiB.
    (gateway.state_dir / "outbox.db-shm").unlink(missing_ok=True)
    await asyncio.to_thread(fill, gateway.state_dir, "more")
    gateway.keep = True
    await stage.restarted(gateway)
    await stage.until_status(gateway, lambda now: now["outbox"]["error"])
    await stage.load(stage.n(50))
    status = await stage.until_status(gateway, _refuses)
    assert status["outbox"]["error"], "it is open on a full disk"
    (gateway.state_dir / "more").unlink()


def _refuses(status: dict[str, Any]) -> bool:
    counters = status["counters"]
    return any(n for name, n in counters.items() if name.startswith("refused_"))


async def broken_disk(stage: Stage) -> None:
    """Every trouble of the list, each followed by power cuts."""
    await _try_and_tell(stage, TROUBLES)


async def _try_and_tell(stage: Stage, troubles: Sequence[Trouble]) -> None:
    with capture_logs():  # each refusal is one; they are looked at by what they say
        trials = await try_all(troubles, cuts=stage.n(40), seed=stage.seed)
    for number, trial in enumerate(trials):
        chronicle = Chronicle(stage.histories, f"t{number}")
        chronicle.tell(
            Promises(
                frozenset(trial.accepted) | trial.refused.keys(),
                frozenset(trial.accepted),
                {},
            ),
            {id_: Found(None, None, None) for id_ in trial.accepted},
            trial.refused,
        )
        name = trial.trouble.name
        assert not trial.wrong, f"{name}: {trial.wrong[:3]}"
        assert not trial.cut.lost, f"{name}: lost {trial.cut.lost[:3]}"
        assert not trial.cut.wrong, f"{name}: {trial.cut.wrong[:3]}"


ROWS: tuple[Row, ...] = (
    Row(
        name="disk-full",
        fault="others fill the agent's disk, a small tmpfs, and it starts anew on it",
        must_hold="refusals with a reason; earlier rows intact; accepts again after",
        run=full_disk,
        most_gap_s=15.0,
    ),
    Row(
        name="disk-broken",
        fault="reads, writes, truncations and syncs fail, once or for a while",
        must_hold="refusals with a reason; earlier rows intact, after a power cut too",
        run=broken_disk,
    ),
)
