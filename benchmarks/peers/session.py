"""One contender, started and warm, and the ways to put requests to it."""

from __future__ import annotations

import asyncio
import contextlib
import shutil
import time
from collections.abc import AsyncIterator, Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import numpy as np

from benchmarks.peers import processes
from benchmarks.peers.accounts import Accounts, Answer, Sent
from benchmarks.peers.arrivals import Arrival
from benchmarks.peers.contenders import OURS, ROOT, Contender, Mode, Place
from benchmarks.peers.roads import AmqpRoad, HttpRoad, Road
from benchmarks.peers.wires import Ask
from broker.node import Node
from broker.ports import free_port
from lifecycle.clock import SystemClock

IMAGES: Final = ROOT / "examples" / "fashion" / "images" / "test1000.npz"
BODIES: Final = 64
WARM_UP: Final = 40
WARM_S: Final = 90.0
ASK_AGAIN_S: Final = 1.0
LOOK_EVERY_S: Final = 0.02
SETTLE_S: Final = 0.3
NEVER_S: Final = float("inf")
LOG_CHARS: Final = 600


class DidNotStart(Exception):
    """A contender ended, or answered nothing, before anything was measured."""


def bodies() -> dict[str, list[bytes]]:
    """Inputs for each model: 1 KB for two, float32 images for the ResNet."""
    draw = np.random.default_rng(0)
    kilobytes = [draw.bytes(1024) for _ in range(BODIES)]
    stored = np.load(IMAGES)["images"][:BODIES]
    images = [(each / 255).astype(np.float32).tobytes() for each in stored]
    return {"noop": kilobytes, "stub": kilobytes, "resnet": images}


@dataclass(frozen=True, slots=True)
class Stage:
    """What every session stands on.

    Attributes:
        node: the broker.
        models: the repository.
        python: of the peers' environment.
        folder: for logs and copies.
        bodies: inputs for each model.
    """

    node: Node
    models: Path
    python: Path
    folder: Path
    bodies: dict[str, list[bytes]]

    @property
    def broker_pid(self) -> int:
        """The broker's own process."""
        pid = self.node.info.pid
        if pid is None:
            raise RuntimeError("the broker does not run")
        return pid


class Session:
    """A contender that runs. See `Session.open`."""

    def __init__(
        self, stage: Stage, contender: Contender, mode: Mode, place: Place
    ) -> None:
        self.stage = stage
        self.contender = contender
        self.place = place
        self.road: Road
        self.worker: asyncio.subprocess.Process
        self.log = stage.folder / f"{contender.name}.{mode}.log"
        self._mode: Mode = mode
        self._accounts = Accounts()
        self._next = 0

    @classmethod
    @contextlib.asynccontextmanager
    async def open(
        cls, stage: Stage, contender: Contender, mode: Mode
    ) -> AsyncIterator[Session]:
        """Start it, and return once each model has answered.

        Raises:
            DidNotStart: it ended, or did not answer in time; with the end of its log.
        """
        name = f"{contender.name}-{time.monotonic_ns()}"
        models = stage.folder / f"models-{name}"
        shutil.copytree(stage.models, models)
        place = Place(
            amqp_url=stage.node.amqp_url("admin"),
            queue=f"bench.{name}",
            results=f"answers.{name}",
            models=models,
            port=free_port(),
            python=stage.python,
        )
        session = cls(stage, contender, mode, place)
        try:
            async with session._open_road() as road:
                session.road = road
                session.worker = await session.start_worker()
                try:
                    await session._warm_up()
                    yield session
                finally:
                    await processes.end(session.worker)
        finally:
            shutil.rmtree(models, ignore_errors=True)

    @contextlib.asynccontextmanager
    async def _open_road(self) -> AsyncIterator[Road]:
        if self.contender.queued:
            wire = self.contender.wires[self._mode]
            url, queue = self.place.amqp_url, self.place.queue
            async with AmqpRoad.open(
                url, wire, queue, self.place.results, self._heard
            ) as road:
                yield road
        else:
            path = self.contender.path
            async with HttpRoad.open(self.place.port, path, self._heard) as road:
                yield road

    async def start_worker(self) -> asyncio.subprocess.Process:
        """Start the contender's program, once more if need be."""
        variables = {"PYTHONPATH": str(ROOT)}
        if self.contender.name != OURS:
            variables = self.place.variables(self._mode)
        return await processes.start(
            self.contender.command(self.place),
            variables,
            folder=self.stage.folder,
            log=self.log,
        )

    async def _warm_up(self) -> None:
        try:
            await self.road.wait_consumed()
            for model in self.stage.bodies:
                accounts = self.begin()
                await self._first_answer(accounts, model)
                await self._send_now(accounts, model, WARM_UP)
                await self.until_heard(accounts, WARM_S)
        except TimeoutError:
            raise DidNotStart(
                f"{self.contender.name} answered nothing; its log ends: {self._tail()}"
            ) from None

    async def _first_answer(self, accounts: Accounts, model: str) -> None:
        """Ask until it answers: a server that listens may not have loaded yet."""
        until_s = time.perf_counter() + WARM_S
        while not accounts.answered:
            if self.worker.returncode is not None or time.perf_counter() > until_s:
                raise TimeoutError
            await self._send_now(accounts, model, 1)
            await self.until(lambda: bool(accounts.answered), ASK_AGAIN_S)

    def _tail(self) -> str:
        return self.log.read_text(errors="replace")[-LOG_CHARS:]

    def begin(self) -> Accounts:
        """Count from now on; answers to earlier requests are passed over."""
        self._accounts = Accounts()
        return self._accounts

    def _heard(self, answer: Answer, at_s: float) -> None:
        self._accounts.hear(answer, at_s)

    def _ask(self, model: str, *, lasts_s: float = NEVER_S) -> Ask:
        self._next += 1
        now_ms = SystemClock().wall_ms()
        expires = None if lasts_s == NEVER_S else now_ms + round(lasts_s * 1000)
        chosen = self.stage.bodies[model]
        body = chosen[self._next % len(chosen)]
        return Ask(self._next, model, body, now_ms, expires)

    async def _send_now(self, accounts: Accounts, model: str, count: int) -> None:
        for _ in range(count):
            ask = self._ask(model)
            accounts.send(ask.number, Sent(time.perf_counter(), model=model))
            await self.road.send(ask)

    async def backlog(
        self, accounts: Accounts, model: str, count: int
    ) -> tuple[float, float, float]:
        """Let `count` requests wait, and return as they begin to be answered.

        Returns:
            The time of that, and what the contender and the broker had used by then:
            afterwards this process may be the last to get a turn.
        """
        with self._held():
            await self._send_now(accounts, model, count)
            await self.road.depth()  # answered after all that was published before
            await asyncio.sleep(SETTLE_S)
            return time.perf_counter(), *self.cpu_s()

    @contextlib.contextmanager
    def _held(self) -> Iterator[None]:
        if self.road.backlog_at_client:
            self.road.hold()
            yield
            self.road.release()
        else:
            with processes.stopped(self.worker.pid):
                yield

    async def play(
        self, accounts: Accounts, arrivals: Sequence[Arrival], *, expire: bool
    ) -> None:
        """Send each at its time, whatever the contender does (open loop).

        Args:
            accounts: where they are counted, from the time each was meant to leave.
            arrivals: what to send.
            expire: tell the contender the deadlines, each in its own way.
        """
        began_s = time.perf_counter()
        for each in arrivals:
            intended_s = began_s + each.at_s
            if (early_s := intended_s - time.perf_counter()) > 0:
                await asyncio.sleep(early_s)
            late_s = time.perf_counter() - intended_s
            lasts_s = max(0.0, each.deadline_s - late_s) if expire else NEVER_S
            ask = self._ask(each.model, lasts_s=lasts_s)
            sent = Sent(intended_s, each.deadline_s, each.model)
            accounts.send(ask.number, sent)
            await self.road.send(ask)

    async def until_heard(self, accounts: Accounts, most_s: float) -> bool:
        """Wait for an answer to everything, for so long at most; gives whether."""
        return await self.until(lambda: accounts.heard >= len(accounts.sent), most_s)

    async def until_quiet(
        self, accounts: Accounts, quiet_s: float, most_s: float
    ) -> None:
        """Wait until all is answered, or nothing was heard for so long."""
        began_s = time.perf_counter()

        def quiet() -> bool:
            last_s = max(accounts.last_s, began_s)
            all_heard = accounts.heard >= len(accounts.sent)
            return all_heard or time.perf_counter() - last_s > quiet_s

        await self.until(quiet, most_s)

    async def until(self, condition: Callable[[], bool], most_s: float) -> bool:
        """Look until `condition()` holds, for so long at most; gives whether."""
        until_s = time.perf_counter() + most_s
        while not condition():
            if time.perf_counter() > until_s:
                return False
            await asyncio.sleep(LOOK_EVERY_S)
        return True

    def cpu_s(self) -> tuple[float, float]:
        """Processor seconds of the contender, and of the broker if it uses one."""
        broker_s = 0.0
        if self.contender.queued:
            broker_s = processes.cpu_s(self.stage.broker_pid)
        return processes.cpu_s(self.worker.pid), broker_s

    def memory_mb(self) -> float:
        """Memory of the contender, without the broker."""
        return processes.memory_mb(self.worker.pid)
