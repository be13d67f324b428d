"""Pulls from a real registry onto a real disk, past sources that fail in every way."""

from __future__ import annotations

import asyncio
import hashlib
import random
import resource
import shutil
import threading
import time
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager, suppress
from pathlib import Path
from typing import Any

import pytest

from broker.messages import UpdatePolicy
from bundle import layout
from bundle.delta.coded import encode
from bundle.delta.container import Header, Packed, Segment, Stream
from bundle.delta.offer import Offer
from bundle.delta.offering import offer_delta
from bundle.seal import Seal
from bundle.source import Piece, Source, SourceUnavailable
from bundle.tree_source import TreeSource
from edge_agent.adapters import part_file
from edge_agent.adapters.day_file import DayFile
from edge_agent.adapters.part_file import PartFile
from edge_agent.core.chunks import Chunks
from edge_agent.loops.asking import BudgetSpent, PullInterrupted, Superseded
from edge_agent.loops.fetching import FetchSettings
from edge_agent.loops.metering import Metering
from edge_agent.loops.pulling import Puller, PullSettings
from tests.registries import (
    CHUNK_BYTES,
    Registry,
    Wayward,
    fails,
    lacks,
    lies,
    model_bytes,
    sha256_of,
    stalls,
    tuned,
)

SIZE = 120_000
OLD = model_bytes(SIZE)
WINDOW = 4
DAY_S = 86_400.0


class Stage:
    """A registry with two versions, and an agent's folder."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.registry = Registry(folder)
        self.base, self.old_seal = self.registry.publish("1", OLD)
        self.wanted, self.seal = self.registry.publish("2", tuned(OLD, 0.9))
        self.good = Wayward("good", self.source())

    def source(self) -> Source:
        return TreeSource(self.registry.tree)

    def puller(self, *sources: Source, **more: Any) -> Puller:
        fetch: dict[str, Any] = {"window": WINDOW, "stall_s": 2.0}
        fetch |= {"shared_first_s": 0.1, "shared_silent_s": 0.02}
        fetch |= {key: more.pop(key) for key in list(more) if key in fetch}
        return Puller(
            sources or (self.good,),
            self.folder / "parts",
            metering=more.pop("metering", None) or self.metering(),
            rng=random.Random(1),
            settings=PullSettings(FetchSettings(**fetch)),
            **more,
        )

    def metering(self, local_now_s: Callable[[], float] = lambda: DAY_S) -> Metering:
        return Metering(DayFile(self.folder / "day.json"), local_now_s=local_now_s)

    def parts(self) -> list[str]:
        return sorted(each.name for each in (self.folder / "parts").iterdir())


@pytest.fixture
def stage(tmp_path: Path) -> Stage:
    return Stage(tmp_path)


async def pull(
    puller: Puller,
    seal: Seal,
    base: Path | None = None,
    *,
    superseded: Callable[[], bool] = lambda: False,
    progress: Callable[[int, int], None] = lambda _done, _total: None,
    **policy: Any,
) -> Path:
    async with asyncio.timeout(20):
        return await puller.pull(
            seal,
            base,
            policy=UpdatePolicy(**policy),
            superseded=superseded,
            progress=progress,
        )


async def test_a_pull_brings_what_was_sealed_and_leaves_nothing_else(
    stage: Stage,
) -> None:
    told: list[tuple[int, int]] = []
    puller = stage.puller()
    packed = await pull(
        puller, stage.seal, progress=lambda done, total: told.append((done, total))
    )
    assert packed.read_bytes() == stage.wanted.read_bytes()
    assert stage.parts() == [packed.name]
    assert told[-1] == (stage.seal.size_bytes, stage.seal.size_bytes)
    assert [done for done, _ in told] == sorted(done for done, _ in told)
    assert stage.good.chunks_of(stage.seal) == len(stage.seal.chunks)
    # And once it is here nobody is asked again.
    assert await pull(puller, stage.seal) == packed
    assert stage.good.chunks_of(stage.seal) == len(stage.seal.chunks)


@pytest.mark.parametrize("mood", [lies, stalls, fails, lacks])
async def test_another_source_is_tried_when_one_fails_in_any_way(
    stage: Stage, monkeypatch: pytest.MonkeyPatch, mood: Any
) -> None:
    # A source has a deadline of its own; this is for one that does not keep it.
    monkeypatch.setattr("edge_agent.loops.asking.READ_S", 0.1)
    bad = Wayward("bad", stage.source(), mood)
    packed = await pull(stage.puller(bad, stage.good), stage.seal)
    assert sha256_of(packed) == stage.seal.sha256
    assert bad.asked


@pytest.mark.parametrize("mood", [lies, stalls, fails, lacks])
async def test_without_a_good_source_a_pull_ends_in_time_and_says_why(
    stage: Stage, monkeypatch: pytest.MonkeyPatch, mood: Any
) -> None:
    monkeypatch.setattr("edge_agent.loops.asking.READ_S", 0.1)
    bad = Wayward("bad", stage.source(), mood)
    with pytest.raises(PullInterrupted, match="bad: "):
        await pull(stage.puller(bad, stall_s=0.5), stage.seal)


async def test_a_source_that_lies_of_a_size_is_believed_nothing(stage: Stage) -> None:
    async def endless(path: str, offset: int, length: int) -> Piece | None:
        piece = await stage.source().read(path, offset, length)
        return Piece(piece.data, 2**60)

    bad = Wayward("endless", stage.source(), endless)
    packed = await pull(stage.puller(bad, stage.good), stage.seal)
    assert sha256_of(packed) == stage.seal.sha256
    assert bad.chunks_of(stage.seal) < len(stage.seal.chunks)


async def test_endless_data_is_not_written_anywhere(stage: Stage) -> None:
    async def more(_path: str, _offset: int, _length: int) -> Piece | None:
        return Piece(b"x" * 4_000_000, stage.seal.size_bytes)

    bad = Wayward("endless", stage.source(), more)
    with pytest.raises(PullInterrupted, match="something else than chunk"):
        await pull(stage.puller(bad, stall_s=0.5), stage.seal)
    sizes = {each.stat().st_size for each in (stage.folder / "parts").iterdir()}
    assert max(sizes) == stage.seal.size_bytes


async def test_a_busy_source_is_asked_again_when_it_said(stage: Stage) -> None:
    busy_until_s = time.monotonic() + 0.3

    async def busy(_path: str, _offset: int, _length: int) -> Piece | None:
        if time.monotonic() < busy_until_s:
            raise SourceUnavailable("busy", retry_after_s=0.2)
        return None

    source = Wayward("pool", stage.source(), busy)
    packed = await pull(stage.puller(source), stage.seal)
    assert sha256_of(packed) == stage.seal.sha256


async def test_a_pull_that_is_superseded_leaves_off_between_chunks_and_goes_on_later(
    stage: Stage,
) -> None:
    puller = stage.puller()
    with pytest.raises(Superseded):
        await pull(
            puller,
            stage.seal,
            superseded=lambda: stage.good.chunks_of(stage.seal) >= 8,
        )
    first = stage.good.chunks_of(stage.seal)
    assert 8 <= first < len(stage.seal.chunks)
    packed = await pull(stage.puller(), stage.seal)
    assert sha256_of(packed) == stage.seal.sha256
    # What was under way is awaited, so not even a window comes twice.
    assert stage.good.chunks_of(stage.seal) <= len(stage.seal.chunks) + WINDOW


async def test_chunks_that_are_here_already_are_not_fetched(stage: Stage) -> None:
    half = OLD[: SIZE // 2] + model_bytes(SIZE // 2, seed=8)
    packed, seal = stage.registry.publish("3", half)
    # Neither manifest nor tail are equal, and all chunks in between are.
    got = await pull(stage.puller(), seal, stage.base)
    assert got.read_bytes() == packed.read_bytes()
    equal = SIZE // 2 // CHUNK_BYTES - 1
    assert stage.good.chunks_of(seal) <= len(seal.chunks) - equal


# --- what the disk does ---------------------------------------------------------------


async def interrupted(stage: Stage, chunks: int) -> Path:
    """A pull of which some chunks are here; where it would go."""
    puller = stage.puller(window=1)
    with pytest.raises(Superseded):
        await pull(
            puller,
            stage.seal,
            superseded=lambda: stage.good.chunks_of(stage.seal) >= chunks,
        )
    stage.good.asked.clear()
    return puller.dest(stage.seal)


@pytest.mark.parametrize("damage", ["cut", "flipped", "gone", "of another"])
async def test_a_damaged_bitmap_costs_a_look_at_the_file_and_no_chunk(
    stage: Stage, damage: str
) -> None:
    _, bitmap = PartFile.names(await interrupted(stage, 10))
    data = bytearray(bitmap.read_bytes())
    match damage:
        case "cut":
            bitmap.write_bytes(data[:-1])
        case "flipped":
            data[45] ^= 0xFF
            bitmap.write_bytes(data)
        case "gone":
            bitmap.unlink()
        case _:
            data[8] ^= 1
            bitmap.write_bytes(data)
    packed = await pull(stage.puller(), stage.seal)
    assert sha256_of(packed) == stage.seal.sha256
    assert stage.good.chunks_of(stage.seal) == len(stage.seal.chunks) - 10


async def test_chunks_that_the_disk_lost_are_fetched_again_and_no_others(
    stage: Stage,
) -> None:
    part, _ = PartFile.names(await interrupted(stage, 10))
    with part.open("r+b") as file:
        file.seek(3 * CHUNK_BYTES)
        file.write(b"\x00" * 2 * CHUNK_BYTES)  # as after a power cut
    packed = await pull(stage.puller(), stage.seal)
    assert sha256_of(packed) == stage.seal.sha256
    assert stage.good.chunks_of(stage.seal) == len(stage.seal.chunks) - 10 + 2


async def test_a_part_of_another_length_is_made_right(stage: Stage) -> None:
    part, _ = PartFile.names(await interrupted(stage, 10))
    part.write_bytes(part.read_bytes()[: 4 * CHUNK_BYTES] + b"")
    with part.open("ab") as file:
        file.write(b"?" * (stage.seal.size_bytes * 2))
    packed = await pull(stage.puller(), stage.seal)
    assert sha256_of(packed) == stage.seal.sha256


async def test_a_pulled_file_that_rotted_is_pulled_anew(stage: Stage) -> None:
    packed = await pull(stage.puller(), stage.seal)
    packed.write_bytes(b"rot" + packed.read_bytes()[3:])
    assert await pull(stage.puller(), stage.seal) == packed
    assert sha256_of(packed) == stage.seal.sha256


async def test_a_disk_without_room_is_known_before_anything_is_fetched(
    stage: Stage,
) -> None:
    huge = 1 << 20
    seal = stage.seal.model_copy(
        update={
            "size_bytes": huge * 600,
            "chunk_bytes": huge,
            "chunks": ("0" * 64,) * 600,
        }
    )
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (huge, limits[1]))
    try:
        with pytest.raises(OSError, match=r"File too large|No space"):
            await pull(stage.puller(), seal)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert not stage.good.asked


# --- deltas ---------------------------------------------------------------------------


def offered(stage: Stage) -> str:
    """Have a delta offered; gives the path of its blob."""
    offer = offer_delta(stage.registry.tree, stage.old_seal.sha256, stage.seal.sha256)
    assert offer.kind == "subtract"
    return layout.blob(offer.sha256)


async def test_a_delta_is_pulled_instead_of_the_file(stage: Stage) -> None:
    blob = offered(stage)
    packed = await pull(stage.puller(), stage.seal, stage.base)
    assert packed.read_bytes() == stage.wanted.read_bytes()
    assert stage.good.chunks_of(stage.seal) == 0
    assert any(path == blob for path, _ in stage.good.asked)
    assert stage.parts() == [packed.name]


async def test_the_whole_file_comes_when_no_delta_is_offered(stage: Stage) -> None:
    packed = await pull(stage.puller(), stage.seal, stage.base)
    assert packed.read_bytes() == stage.wanted.read_bytes()


def spoil_blob(stage: Stage, blob: str) -> None:
    """Other bytes than were offered."""
    path = stage.registry.path(blob)
    path.write_bytes(b"?" * path.stat().st_size)


def spoil_offer(stage: Stage, _blob: str) -> None:
    """No offer at all."""
    path = layout.delta_offer(stage.old_seal.sha256, stage.seal.sha256)
    stage.registry.path(path).write_bytes(b"\x00" * 3000)


def endless_offer(stage: Stage, _blob: str) -> None:
    """An offer that is too long to be one."""
    path = layout.delta_offer(stage.old_seal.sha256, stage.seal.sha256)
    stage.registry.path(path).write_bytes(b" " * 1_000_000)


def no_blob(stage: Stage, blob: str) -> None:
    """An offer of what is not there."""
    stage.registry.path(blob).unlink()


def other_delta(stage: Stage, _blob: str) -> None:
    """The delta of another base, well formed, under the name of ours."""
    other, other_seal = stage.registry.publish("9", model_bytes(SIZE, seed=11))
    tuned_packed, tuned_seal = stage.registry.publish(
        "10", tuned(model_bytes(SIZE, seed=11), 0.5)
    )
    assert other != tuned_packed
    offer_delta(stage.registry.tree, other_seal.sha256, tuned_seal.sha256)
    theirs = layout.delta_offer(other_seal.sha256, tuned_seal.sha256)
    ours = layout.delta_offer(stage.old_seal.sha256, stage.seal.sha256)
    shutil.copy(stage.registry.path(theirs), stage.registry.path(ours))


def bomb(stage: Stage, _blob: str) -> None:
    """A small blob that says it makes something far too big."""
    size = 600 * 1024 * 1024
    coding, packed = encode(bytes(8 * 1024 * 1024), lambda: None, level=5)
    mark = bytes.fromhex(stage.old_seal.sha256)[:8]
    stream = Stream(0, 0, 0, Packed(coding, len(packed), size))
    head = Header(mark, size, 0, (Segment(0, size),), (stream,))
    data = head.pack() + packed
    digest = hashlib.sha256(data).hexdigest()
    stage.registry.tree.write(layout.blob(digest), data)
    offer = Offer(
        kind="subtract", sha256=digest, size_bytes=len(data), chunks=(digest,)
    )
    path = layout.delta_offer(stage.old_seal.sha256, stage.seal.sha256)
    stage.registry.tree.write(path, offer.to_json())


@pytest.mark.parametrize(
    "spoil", [spoil_blob, spoil_offer, endless_offer, no_blob, other_delta, bomb]
)
async def test_a_delta_that_is_no_good_falls_back_to_the_whole_file_by_itself(
    stage: Stage, spoil: Callable[[Stage, str], None]
) -> None:
    spoil(stage, offered(stage))
    packed = await pull(stage.puller(), stage.seal, stage.base)
    assert packed.read_bytes() == stage.wanted.read_bytes()
    assert stage.good.chunks_of(stage.seal) > 0
    assert stage.parts() == [packed.name]


async def test_a_delta_that_never_comes_holds_up_no_pull_for_ever(stage: Stage) -> None:
    blob = offered(stage)

    async def busy(path: str, _offset: int, _length: int) -> Piece | None:
        if path == blob:
            raise SourceUnavailable("not now, as ever", 0.05)
        return None

    puller = stage.puller(Wayward("busy", stage.source(), busy), stall_s=0.3)
    packed = await pull(puller, stage.seal, stage.base)
    assert packed.read_bytes() == stage.wanted.read_bytes()
    assert stage.parts() == [packed.name]


async def test_a_base_that_cannot_be_read_falls_back_to_the_whole_file(
    stage: Stage, tmp_path: Path
) -> None:
    packed = await pull(stage.puller(), stage.seal, tmp_path / "gone")
    assert packed.read_bytes() == stage.wanted.read_bytes()


async def test_a_delta_that_was_refused_is_not_fetched_again_after_a_restart(
    stage: Stage,
) -> None:
    blob = offered(stage)
    bomb(stage, blob)

    def never(_: object = None) -> bool:
        return stage.good.chunks_of(stage.seal) >= 4

    with pytest.raises(Superseded):
        await pull(stage.puller(), stage.seal, stage.base, superseded=never)
    deltas = [path for path, _ in stage.good.asked if path.startswith("blobs/")]
    stage.good.asked.clear()
    packed = await pull(stage.puller(), stage.seal, stage.base)
    assert sha256_of(packed) == stage.seal.sha256
    again = {path for path, _ in stage.good.asked if path.startswith("blobs/")}
    assert again == {layout.blob(stage.seal.sha256)}
    assert len(set(deltas)) == 2


# --- what it may cost -----------------------------------------------------------------


async def test_a_days_budget_ends_a_pull_and_the_next_day_goes_on(
    stage: Stage,
) -> None:
    day = [1000 * 86_400.0]
    metering = stage.metering(lambda: day[0])
    puller = stage.puller(metering=metering)
    with pytest.raises(BudgetSpent, match="today's budget") as ended:
        await pull(puller, stage.seal, bytes_per_day=10 * CHUNK_BYTES)
    assert ended.value.retry_after_s == 86_400
    assert stage.good.chunks_of(stage.seal) == 10
    # A restart does not make a new day.
    again = stage.puller(metering=stage.metering(lambda: day[0]))
    with pytest.raises(BudgetSpent):
        await pull(again, stage.seal, bytes_per_day=10 * CHUNK_BYTES)
    assert stage.good.chunks_of(stage.seal) == 10
    day[0] += 86_400
    packed = await pull(puller, stage.seal, bytes_per_day=100 * CHUNK_BYTES)
    assert sha256_of(packed) == stage.seal.sha256
    assert stage.good.chunks_of(stage.seal) < len(stage.seal.chunks) + WINDOW


async def test_a_rate_limit_is_kept(stage: Stage) -> None:
    began_s = time.monotonic()
    packed = await pull(stage.puller(), stage.seal, bytes_per_s=100_000)
    took_s = time.monotonic() - began_s
    assert sha256_of(packed) == stage.seal.sha256
    # One second's worth may come at once, and a window is under way.
    left = stage.seal.size_bytes - 100_000 - WINDOW * CHUNK_BYTES
    assert took_s >= left / 100_000


# --- a wave that shares one transfer --------------------------------------------------


class Wave:
    """A topic in memory: what anybody asks for comes to all who listen."""

    def __init__(self, source: Source) -> None:
        self._source = source
        self._listeners: list[Callable[[int, bytes], None]] = []
        self.published: set[int] = set()
        self.heard = asyncio.Event()
        self.spoil = False
        self.deaf = False
        self.mute = False

    @asynccontextmanager
    async def hearing(
        self, sha256: str, heard: Callable[[int, bytes], None]
    ) -> AsyncIterator[None]:
        assert len(sha256) == 64
        if self.deaf:
            raise SourceUnavailable("not granted")
        self._listeners.append(heard)
        self.heard.set()
        try:
            yield
        finally:
            self._listeners.remove(heard)

    async def ask_shared(
        self, path: str, offset: int, length: int, listening_s: float
    ) -> None:
        assert listening_s >= 0
        if self.mute or offset in self.published:
            return
        self.published.add(offset)
        piece = await self._source.read(path, offset, length)
        data = b"\x00" * length if self.spoil else piece.data
        for heard in list(self._listeners):
            heard(offset, data)


async def test_agents_of_a_wave_share_one_transfer_and_each_verifies(
    stage: Stage,
) -> None:
    wave = Wave(stage.source())
    pullers = []
    for index in range(5):
        puller = stage.puller(sharing=wave)
        puller._folder = stage.folder / f"agent-{index}"
        puller._rng = random.Random(index)
        pullers.append(puller)
    async with asyncio.TaskGroup() as tasks:
        pulls = [
            tasks.create_task(pull(each, stage.seal, shared=True)) for each in pullers
        ]
    for each in pulls:
        assert sha256_of(each.result()) == stage.seal.sha256
    assert len(wave.published) == len(stage.seal.chunks)
    # Hardly anything was asked for alone.
    assert stage.good.chunks_of(stage.seal) <= len(stage.seal.chunks)


@pytest.mark.parametrize("trouble", ["spoiled", "deaf"])
async def test_an_agent_that_cannot_use_what_the_wave_hears_asks_alone(
    stage: Stage, trouble: str
) -> None:
    wave = Wave(stage.source())
    wave.spoil, wave.deaf = trouble == "spoiled", trouble == "deaf"
    puller = stage.puller(sharing=wave)
    packed = await pull(puller, stage.seal, shared=True)
    assert sha256_of(packed) == stage.seal.sha256
    assert stage.good.chunks_of(stage.seal) == len(stage.seal.chunks)


async def test_an_agent_that_listens_leaves_off_when_something_else_is_desired(
    stage: Stage,
) -> None:
    wave = Wave(stage.source())
    wave.mute = True
    looks = 0

    def superseded() -> bool:
        nonlocal looks
        looks += 1
        return looks > 3

    puller = stage.puller(sharing=wave, shared_first_s=60.0)
    with pytest.raises(Superseded):
        await pull(puller, stage.seal, superseded=superseded, shared=True)


async def test_an_agent_that_only_listens_keeps_to_its_days_budget(
    stage: Stage,
) -> None:
    wave = Wave(stage.source())
    metering = stage.metering()
    puller = stage.puller(sharing=wave, metering=metering, shared_first_s=60.0)

    async def others_ask() -> None:
        await wave.heard.wait()
        for index in range(len(stage.seal.chunks)):
            offset, length = stage.seal.chunk_span(index)
            await wave.ask_shared(layout.blob(stage.seal.sha256), offset, length, 0.0)
            await asyncio.sleep(0.01)

    budget = 10 * CHUNK_BYTES
    async with asyncio.TaskGroup() as tasks:
        tasks.create_task(others_ask())
        with pytest.raises(BudgetSpent):
            await pull(puller, stage.seal, shared=True, bytes_per_day=budget)
    assert metering.spent_bytes <= budget + CHUNK_BYTES


def test_what_is_claimed_by_a_bitmap_is_checked(stage: Stage, tmp_path: Path) -> None:
    chunks = Chunks.of(stage.seal)
    part = PartFile(tmp_path / "x", chunks).open()
    assert not part.put(0, b"\x00" * chunks.span(0)[1])
    assert not part.put(0, b"")
    assert part.missing() == list(range(len(chunks)))
    part.close()


def test_a_part_that_is_closed_while_a_chunk_is_written_spoils_no_other_file(
    stage: Stage, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    really = part_file._write_all
    writes, closed = threading.Event(), threading.Event()

    def late(file: int, data: bytes | memoryview, offset: int) -> None:
        writes.set()
        closed.wait(0.3)
        really(file, data, offset)

    part = PartFile(tmp_path / "new", Chunks.of(stage.seal)).open()
    monkeypatch.setattr(part_file, "_write_all", late)
    chunk = stage.wanted.read_bytes()[:CHUNK_BYTES]

    def put() -> None:
        with suppress(OSError):
            part.put(0, chunk)

    writer = threading.Thread(target=put)
    writer.start()
    writes.wait(5)
    part.close()
    # The system gives the number of the closed file to the next one.
    with (tmp_path / "other").open("w+b") as other:
        closed.set()
        writer.join(5)
        assert other.read() == b""
