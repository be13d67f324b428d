"""A registry in a folder and the parts of an agent that keep its models as desired.

All is real but for two: who signed is read from files without a signature, and a model
that serves is its manifest alone, so that a trial costs no process unless one is asked
for.
"""

from __future__ import annotations

import asyncio
import json
import random
from collections import Counter
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from broker.codec import encode
from broker.messages import Desired, DesiredModel, UpdatePolicy
from bundle import layout
from bundle.folder_tree import FolderTree
from bundle.manifest import Requires
from bundle.pack import pack
from bundle.seal import Seal, make_seal
from bundle.source import NotThere, Piece, SourceUnavailable
from bundle.trust.errors import NotSigned
from edge_agent.adapters.day_file import DayFile
from edge_agent.adapters.model_store import ModelStore, StoredBundle
from edge_agent.core.accounts import Accounts
from edge_agent.core.answers import Array
from edge_agent.core.fit import Device
from edge_agent.core.probation import ended_too_often
from edge_agent.core.served import Served
from edge_agent.core.slots import Slots, State
from edge_agent.loops.metering import Metering
from edge_agent.loops.probation import Probation
from edge_agent.loops.pulling import Puller
from edge_agent.loops.slot_book import SlotBook
from edge_agent.loops.update_ports import Here
from edge_agent.loops.updates import Updates, UpdateSettings
from tests.waiting import until

AGENT = "edge"
MODEL = "fashion"
HERE = Device(machine="x86_64", board="gateway-2", runtime="litert", memory_mb=512)


class Registry:
    """What the fleet offers; faults are set on it."""

    name = "folder"

    def __init__(self, root: Path) -> None:
        self.root = root
        self.tree = FolderTree(root / "tree")
        self.down = False
        self.asked: Counter[tuple[str, int]] = Counter()
        self.spoiled: set[int] = set()
        self.before_read: Callable[[str, int], None] = lambda _path, _offset: None

    def publish(
        self,
        version: str,
        epoch: int = 0,
        *,
        model: str = MODEL,
        data: bytes = b"a model",
        requires: Requires | None = None,
        signed: bool = True,
        **manifest: Any,
    ) -> Seal:
        """Offer a version in an epoch."""
        folder = self.root / f"{model}-{version}"
        folder.mkdir(parents=True, exist_ok=True)
        (folder / "m.tflite").write_bytes(data)
        said = {"format": 1, "name": model, "version": version, **manifest}
        (folder / "manifest.json").write_text(
            json.dumps({**said, "model_file": "m.tflite"})
        )
        return self.seal(folder, epoch, requires=requires, signed=signed)

    def seal(
        self,
        folder: Path,
        epoch: int = 0,
        *,
        requires: Requires | None = None,
        signed: bool = True,
    ) -> Seal:
        """Pack a folder and offer it in an epoch."""
        packed = self.root / "packed.tar"
        manifest = pack(folder, packed)
        made = make_seal(packed, manifest.name, manifest.version)
        seal = made.model_copy(
            update={"epoch": epoch, "requires": requires or Requires()}
        )
        self.tree.write_copy(layout.blob(seal.sha256), packed)
        if signed:
            self.sign(seal)
        return seal

    def sign(self, seal: Seal) -> None:
        """Vouch for a seal."""
        target = layout.seal_target(seal.name, seal.version, seal.epoch)
        path = f"{layout.TARGETS}/{target}"
        self.tree.write(path, seal.model_dump_json().encode())

    def desire(self, *models: DesiredModel) -> None:
        """Say what the agent should serve."""
        data = encode(Desired(agent=AGENT, models=list(models)))
        self.tree.write(f"{layout.DESIRED}/{AGENT}", data, durable=False)

    async def read(self, path: str, offset: int, length: int) -> Piece:
        """A range of a file, as a source gives it."""
        self.asked[path, offset] += 1
        self.before_read(path, offset)
        if self.down:
            raise SourceUnavailable("the test took the source down")
        piece = self.tree.piece(path, offset, length)
        if path.startswith(layout.BLOBS) and offset in self.spoiled:
            self.spoiled.discard(offset)
            data = piece.data[:-1] + bytes([piece.data[-1] ^ 1])
            return Piece(data, piece.total_bytes)
        return piece

    async def refresh(self) -> None:
        """As trust does."""

    async def seal_for(self, model: str, version: str, epoch: int) -> Seal:
        """As trust does; what was not `sign`ed is not."""
        target = layout.seal_target(model, version, epoch)
        try:
            data = self.tree.read(f"{layout.TARGETS}/{target}", max_bytes=1 << 20)
        except NotThere:
            raise NotSigned(f"{target} is not signed") from None
        return Seal.model_validate_json(data)

    def looks(self) -> int:
        """How often the agent has read what is desired."""
        return self.asked[f"{layout.DESIRED}/{AGENT}", 0]

    def chunks(self, seal: Seal) -> dict[int, int]:
        """How often each chunk of a bundle was asked for."""
        return {
            offset // seal.chunk_bytes: count
            for (path, offset), count in self.asked.items()
            if path == layout.blob(seal.sha256)
        }


def want(
    version: str, generation: int, epoch: int = 0, *, model: str = MODEL, **more: Any
) -> DesiredModel:
    """One model's line of a desired state."""
    policy = UpdatePolicy(**more.pop("policy", {}))
    return DesiredModel(
        model=model,
        version=version,
        generation=generation,
        epoch=epoch,
        policy=policy,
        **more,
    )


@dataclass
class Idle:
    """A loaded model that nobody asks."""

    predicted_ms: float = 0.0
    closed: bool = False

    async def infer(self, inputs: Any) -> dict[str, Array]:
        """Never asked."""
        raise NotImplementedError(inputs)

    async def close(self) -> None:
        """Out of service."""
        self.closed = True


class NoShadows:
    """Where no candidate runs, but it is known which would."""

    def __init__(self) -> None:
        self.running: dict[str, str] = {}

    async def start(self, stored: StoredBundle) -> None:
        """Run one."""
        self.running[stored.manifest.name] = stored.manifest.version

    async def stop(self, model: str) -> None:
        """End one."""
        self.running.pop(model, None)


class Agent:
    """What keeps models as desired, and what it serves."""

    def __init__(
        self,
        root: Path,
        registry: Registry,
        store: ModelStore | None = None,
        *,
        spread_s: float = 0.0,
        seed: int = 1,
    ) -> None:
        self.root = root
        self.registry = registry
        self.store = store or ModelStore(root / "models")
        self.store.prepare()
        self.book = SlotBook(self.store)
        self.accounts = Accounts()
        self.shadows = NoShadows()
        self.serving: dict[str, str] = {}
        self.swapped: list[str] = []
        self.bad: dict[str, Exception] = {}
        self.unloadable: set[str] = set()
        self.now_s = 1000.0
        self.local_now: datetime | None = datetime(2026, 11, 23, 12, 0, tzinfo=UTC)
        self.device = HERE
        self.probation = Probation(
            slots=self.book,
            store=self.store,
            accounts=self.accounts,
            load=self.load,
            swap=self.swap,
            remove=self.remove,
            now_s=lambda: self.now_s,
        )
        self.updates = Updates(
            agent=AGENT,
            sources=[registry],
            store=self.store,
            slots=self.book,
            trust=registry,
            pulls=Puller(
                [registry],
                self.store.parts,
                metering=Metering(DayFile(root / "day.json"), local_now_s=lambda: 0.0),
                rng=random.Random(1),
            ),
            probation=self.probation,
            shadows=self.shadows,
            here=Here(lambda: self.device, lambda: self.local_now),
            settings=UpdateSettings(poll_every_s=60.0, spread_s=spread_s),
            try_out=self.try_out,
            rng=random.Random(seed),
        )
        self.book.start_with(self.restored())
        self.serving.update(
            {
                name: slots.active
                for name, slots in self.book.all.items()
                if slots.active is not None
            }
        )

    def restored(self) -> dict[str, Slots]:
        """The slots on the disk, a start on probation counted, as `Loading` does."""
        found = {}
        for name, slots in self.store.slots().items():
            found[name] = slots
            if slots.state is State.PROBATION:
                why = ended_too_often(slots.starts)
                found[name] = slots.started() if why is None else slots.returned(why)
                self.store.save(found[name])
        return found

    async def try_out(
        self, stored: StoredBundle, before: StoredBundle | None, policy: UpdatePolicy
    ) -> object:
        """A trial without a process."""
        if (error := self.bad.get(stored.manifest.version)) is not None:
            raise error
        return before, policy

    async def load(self, stored: StoredBundle) -> Served:
        """Make it ready."""
        if stored.manifest.version in self.unloadable:
            raise RuntimeError(f"{stored.manifest.version} does not load")
        return Served(stored.manifest, Idle(), {}, None)

    async def swap(self, served: Served) -> None:
        """Put it in service."""
        self.serving[served.manifest.name] = served.manifest.version
        self.swapped.append(served.manifest.version)

    async def remove(self, model: str) -> None:
        """Take it out of service."""
        self.serving.pop(model, None)

    @property
    def slots(self) -> Slots:
        """Those of the usual model."""
        return self.book.of(MODEL)

    def is_in(self, state: State) -> bool:
        """Whether the usual model is in that state by now."""
        return self.slots.state is state

    async def until_state(self, state: State, version: str | None = None) -> Slots:
        """Wait for a state, and for which version is active then."""
        await until(
            lambda: (
                self.slots.state is state
                and (version is None or self.slots.active == version)
            ),
            10,
        )
        return self.slots

    async def serves(self, version: str) -> None:
        """Wait until a version is proved."""
        await self.until_state(State.SWAPPED, version)
        assert self.serving[MODEL] == version

    async def gets(self, *models: DesiredModel) -> None:
        """The fleet desires something and says so."""
        self.registry.desire(*models)
        self.updates.look_now()

    async def has_looked(self) -> None:
        """Wait until it has looked once more."""
        looks = self.registry.looks()
        self.updates.look_now()
        await until(lambda: self.registry.looks() > looks, 10)

    def files(self, model: str = MODEL) -> set[str]:
        """What lies in a model's folder."""
        return {each.name for each in (self.root / "models" / model).iterdir()}

    def parts(self) -> list[str]:
        """What lies where pulls wait."""
        return [each.name for each in self.store.parts.iterdir()]


@asynccontextmanager
async def running(agent: Agent) -> AsyncIterator[Agent]:
    """Its loop of updates runs."""
    async with asyncio.TaskGroup() as tasks:
        task = tasks.create_task(agent.updates.run())
        yield agent
        assert not task.done(), task
        task.cancel()
