"""Converge from what the slots hold to what the fleet desires. The active model serves on.

Pull over the uplink's own connection, verify, try in a child process, swap. A pull
that cannot be finished is left for the next look, and a newer desired state replaces
an older one at once, so that one deployment never blocks the next.
"""

from __future__ import annotations

import asyncio
import random
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import structlog

from broker import topics
from broker.codec import WireError, decode, encode
from broker.link import LinkDown
from broker.messages import Blob, Desired, DesiredModel, Get
from bundle.pack import BundleRejected
from bundle.seal import Seal, SealRejected, open_seal
from bundle.trust import TrustedKeys
from edge_agent.adapters.model_store import ModelStore, StoredBundle
from edge_agent.adapters.trial import TrialFailed
from edge_agent.core.served import Served
from edge_agent.core.slots import Adopt, GoBack, Nothing, Pull, Slots, decide
from edge_agent.loops.uplink import Link

log = structlog.get_logger(__name__)

TRIES: Final = 6
RETRY_S: Final = 5.0
# The packed bundle, the unpacked one, and room to breathe.
SPACE_FACTOR: Final = 3

_Asked = tuple[str, str | None, str | None, int]


class PullInterrupted(Exception):
    """The pull cannot go on now: the pool is silent, or something newer is desired."""


class ModelRefused(Exception):
    """The version must not serve here; the reason is reported to the fleet."""


# What says nothing of a version: it is tried again later.
WAITS: Final = (LinkDown, PullInterrupted, OSError)
REFUSALS: Final = (SealRejected, BundleRejected, ModelRefused, TrialFailed)


@dataclass(frozen=True, slots=True)
class UpdateSettings:
    """How pulls are made."""

    window: int
    timeout_s: float
    poll_every_s: float


class Updates:
    """Keeps the models of one agent as desired.

    Args:
        try_out: runs a stored bundle in a child process; raises TrialFailed.
        load: makes a bundle ready to serve in this process.
        swap: puts it in service.
        changed: called after each change of the slots.
    """

    def __init__(  # noqa: PLR0913 - wiring
        self,
        *,
        agent: str,
        link: Link,
        store: ModelStore,
        trusted: TrustedKeys,
        settings: UpdateSettings,
        try_out: Callable[[StoredBundle], Awaitable[object]],
        load: Callable[[StoredBundle], Awaitable[Served]],
        swap: Callable[[Served], Awaitable[None]],
        changed: Callable[[], None],
        rng: random.Random,
    ) -> None:
        self._agent = agent
        self._link = link
        self._store = store
        self._trusted = trusted
        self._settings = settings
        self._try_out = try_out
        self._load = load
        self._swap = swap
        self._changed = changed
        self._rng = rng
        self._slots: dict[str, Slots] = {}
        self._desired: dict[str, DesiredModel] = {}
        self._asked: dict[_Asked, asyncio.Future[Blob]] = {}
        self._look = asyncio.Event()
        self._unfinished = False

    @property
    def slots(self) -> Mapping[str, Slots]:
        """What is active, previous and staged, by model."""
        return self._slots

    def start_with(self, slots: Mapping[str, Slots]) -> None:
        """Begin from what is on the disk."""
        self._slots = dict(slots)

    def look_now(self) -> None:
        """The desired state may have changed."""
        self._look.set()

    def link_changed(self, up: bool) -> None:
        """Look as soon as the pool can be asked."""
        if up:
            self.look_now()

    def on_blob(self, payload: bytes) -> None:
        """Take answers to what was asked; anything else is ignored."""
        try:
            envelope = decode(payload, Blob)
        except WireError as error:
            log.warning("blob_unreadable", error=str(error))
            return
        for blob in envelope.items:
            asked = (blob.want, blob.model, blob.version, blob.index)
            future = self._asked.get(asked)
            if future is not None and not future.done():
                future.set_result(blob)

    async def run(self) -> None:
        """Converge whenever something may have changed, until cancelled."""
        # A run that failed may have left a pull or a trial that nobody would finish.
        self._slots = {name: each.interrupted() for name, each in self._slots.items()}
        self._look.set()
        while True:
            every_s = RETRY_S if self._unfinished else self._settings.poll_every_s
            poll_s = every_s * self._rng.uniform(0.8, 1.2)
            try:
                async with asyncio.timeout(poll_s):
                    await self._look.wait()
            except TimeoutError:
                pass
            self._look.clear()
            if not self._link.up:
                continue
            self._unfinished = False
            try:
                await self._converge()
            except WAITS as error:
                # OSError: not even the slots can be written, because the disk is full.
                self._unfinished = True
                log.info("update_waits", reason=str(error))

    async def _converge(self) -> None:
        await self._learn_desired()
        for desired in list(self._desired.values()):
            slots = self._slots.get(desired.model, Slots(desired.model))
            try:
                match decide(desired, slots):
                    case Pull(version, generation):
                        await self._pull(slots.pulling(version, generation))
                    case GoBack(version, generation):
                        await self._go_back(slots, version, generation)
                    case Adopt(generation):
                        await self._save(slots.adopted(generation))
                    case Nothing():
                        pass
            except WAITS as error:
                # The other models go on; this one is looked at again soon.
                self._unfinished = True
                log.info("update_waits", model=desired.model, reason=str(error))
                slots = self._slots.get(desired.model, slots)
                await self._save(slots.interrupted())

    async def _learn_desired(self) -> None:
        blob = await self._ask(Get(want="desired"))
        if blob.status == "not_found":
            return  # Nobody has ever desired anything of this agent.
        try:
            envelope = decode(blob.data, Desired)
        except WireError as error:
            raise PullInterrupted(
                f"the desired state is unreadable: {error}"
            ) from error
        for desired in envelope.items:
            if desired.agent == self._agent:
                self._desired = {each.model: each for each in desired.models}

    async def _pull(self, slots: Slots) -> None:
        version = slots.staged or ""
        await self._save(slots)
        log.info("update_begins", model=slots.model, version=version)
        try:
            seal = await self._fetch_seal(slots.model, version)
            packed = await self._fetch_chunks(seal)
            stored = await asyncio.to_thread(self._store.install, packed, seal)
            packed.unlink(missing_ok=True)
            slots = slots.pulled()
            await self._save(slots)
            await self._put_in_service(stored)
        except WAITS:
            raise
        except Exception as error:  # noqa: BLE001 - no bundle ends the agent
            await self._save(slots.refused(_why_refused(slots.model, version, error)))
            await asyncio.to_thread(self._store.collect, self._slots[slots.model])
            await asyncio.to_thread(self._store.drop_parts, slots.model, version)
            return
        await self._save(slots.passed())
        await asyncio.to_thread(self._store.collect, self._slots[slots.model])
        log.info("update_done", model=slots.model, version=version)

    async def _go_back(self, slots: Slots, version: str, generation: int) -> None:
        try:
            stored = await asyncio.to_thread(self._store.bundle, slots.model, version)
            await self._put_in_service(stored)
        except WAITS:
            raise
        except Exception as error:  # noqa: BLE001 - no bundle ends the agent
            reason = _why_refused(slots.model, version, error)
            await self._save(slots.refused(reason, version, generation))
            return
        await self._save(slots.went_back(generation))
        log.info("update_went_back", model=slots.model, version=version)

    async def _put_in_service(self, stored: StoredBundle) -> None:
        await self._try_out(stored)
        await self._swap(await self._load(stored))

    async def _fetch_seal(self, model: str, version: str) -> Seal:
        blob = await self._ask(Get(want="seal", model=model, version=version))
        if blob.status != "ok":
            raise ModelRefused(
                f"the pool has no bundle {model} {version}: "
                f"{blob.reason or blob.status}"
            )
        seal = open_seal(blob.data, self._trusted)
        if (seal.name, seal.version) != (model, version):
            raise SealRejected(
                f"asked for {model} {version}, sealed is {seal.name} {seal.version}"
            )
        free = await asyncio.to_thread(self._store.free_bytes)
        if free < SPACE_FACTOR * seal.size_bytes:
            raise ModelRefused(
                f"the disk has {free} bytes free; {model} {version} needs "
                f"{SPACE_FACTOR * seal.size_bytes}"
            )
        return seal

    async def _fetch_chunks(self, seal: Seal) -> Path:
        """The packed bundle, each chunk checked; what an earlier try has is kept."""
        path = self._store.part(seal)
        missing = await asyncio.to_thread(_missing_chunks, path, seal)
        window = asyncio.Semaphore(self._settings.window)

        async def fetch(index: int) -> None:
            async with window:
                if self._look.is_set():
                    # Perhaps something else is desired by now. What was fetched is
                    # kept, so looking costs one question.
                    raise PullInterrupted("the desired state may have changed")
                data = await self._fetch_chunk(seal, index)
                await asyncio.to_thread(_write_chunk, path, seal, index, data)

        try:
            async with asyncio.TaskGroup() as fetches:
                for index in missing:
                    fetches.create_task(fetch(index))
        except ExceptionGroup as group:
            raise group.exceptions[0] from None
        return path

    async def _fetch_chunk(self, seal: Seal, index: int) -> bytes:
        get = Get(want="chunk", model=seal.name, version=seal.version, index=index)
        rejected: SealRejected | None = None
        for _ in range(2):
            blob = await self._ask(get)
            if blob.status != "ok":
                raise ModelRefused(
                    f"chunk {index} of {seal.name} {seal.version}: "
                    f"{blob.reason or blob.status}"
                )
            try:
                seal.check_chunk(index, blob.data)
            except SealRejected as error:
                rejected = error
            else:
                return blob.data
        raise rejected or SealRejected(f"chunk {index} was never right")

    async def _ask(self, get: Get) -> Blob:
        """Ask the pool until it answers.

        Raises:
            PullInterrupted: `TRIES` questions were not answered in time.
            LinkDown: there is no link.
        """
        asked = (get.want, get.model, get.version, get.index)
        topic = topics.gets(self._agent)
        question = encode(get)
        for _ in range(TRIES):
            future: asyncio.Future[Blob] = asyncio.get_running_loop().create_future()
            self._asked[asked] = future
            try:
                await self._link.publish(topic, question)
                async with asyncio.timeout(self._settings.timeout_s):
                    return await future
            except TimeoutError:
                continue
            finally:
                self._asked.pop(asked, None)
        raise PullInterrupted(
            f"the pool did not answer {get.want} after {TRIES} tries; is a worker "
            "with a registry running?"
        )

    async def _save(self, slots: Slots) -> None:
        if self._slots.get(slots.model) == slots:
            return
        await asyncio.to_thread(self._store.save, slots)
        self._slots[slots.model] = slots
        self._changed()


def _why_refused(model: str, version: str, error: Exception) -> str:
    if isinstance(error, REFUSALS):
        log.error("update_refused", model=model, version=version, reason=str(error))
        return str(error)
    log.error("update_crashed", model=model, version=version, exc_info=error)
    return f"the agent failed on {model} {version}: {error!r}"


def _missing_chunks(path: Path, seal: Seal) -> list[int]:
    """The chunks that the unfinished file at `path` does not hold yet."""
    if not path.exists():
        with path.open("wb") as file:
            file.truncate(seal.size_bytes)
        return list(range(len(seal.chunks)))
    missing = []
    with path.open("rb") as file:
        for index in range(len(seal.chunks)):
            try:
                seal.check_chunk(index, file.read(seal.chunk_bytes))
            except SealRejected:
                missing.append(index)
    return missing


def _write_chunk(path: Path, seal: Seal, index: int, data: bytes) -> None:
    offset, _ = seal.chunk_span(index)
    with path.open("r+b") as file:
        file.seek(offset)
        file.write(data)
