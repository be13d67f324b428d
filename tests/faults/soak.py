"""`python -m tests.faults.soak`: many requests through random faults, for hours if wanted.

Requests come in stretches. After each the system heals and drains, and what the
processes wrote down is judged and deleted, so that a million need no more memory and
no more disk than a stretch. OVERSPILL_RABBITMQ_SERVER and OVERSPILL_RABBITMQ_CHROOT
choose the RabbitMQ, as for the matrix.
"""

from __future__ import annotations

import asyncio
import json
import resource
import shutil
import signal
import sys
from collections import Counter
from collections.abc import Awaitable, Callable
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console
from rich.progress import Progress, TextColumn, TimeElapsedColumn

from broker.node_files import MEMORY_LIMIT
from lifecycle.clock import Clock, SystemClock
from lifecycle.logs import configure_logs
from overspill.interruption import Interrupted, run_until_interrupted
from tests.faults.checker import Verdict, check
from tests.faults.device import SPILLED, Device, Kind
from tests.faults.history import Reader
from tests.faults.rabbitmqctl import rabbitmqctl
from tests.faults.runner import own_folder, running_node
from tests.faults.stage import Gateway, Stage

STRETCH = 5000
DEVICES = 3
WINDOW = 1000
AGENTS = ("agent-1", "agent-2")
WORKERS = ("w1", "w2")
# What devices ask for, and how often; some have less time than a fault takes.
KINDS = {
    SPILLED: 80,
    Kind("copy", priority="hi"): 5,
    Kind("copy", priority="bulk"): 10,
    Kind("copy", deadline_s=2.0): 5,
}
TWICE = 0.03
HEAL_S = 300.0
SETTLE_S = 0.5


@dataclass
class Chaos:
    """One fault after another, chosen by the stage's own randomness.

    Attributes:
        stage: where.
        most_pause_s: between two faults.
        made: how often each was made.
    """

    stage: Stage
    most_pause_s: float = 3.0
    made: Counter[str] = field(default_factory=Counter)

    async def run(self, enough: asyncio.Event) -> None:
        """Make faults until there are enough; each is mended before the next."""
        faults: dict[str, tuple[int, Callable[[], Awaitable[None]]]] = {
            "agent killed": (5, self._kill_agent),
            "worker killed": (4, self._kill_worker),
            "worker stopped": (2, self._stop_worker),
            "local broker killed": (2, self._kill_mosquitto),
            "broker killed": (1, self._kill_broker),
            "memory alarm": (1, self._alarm),
        }
        names, weights = list(faults), [weight for weight, _ in faults.values()]
        while not enough.is_set():
            await asyncio.sleep(self.stage.random.uniform(0.2, self.most_pause_s))
            (name,) = self.stage.random.choices(names, weights)
            async with self.stage.fault(name):
                await faults[name][1]()
            self.made[name] += 1

    def _some_gateway(self) -> Gateway:
        return self.stage.random.choice(self.stage.gateways)

    async def _kill_agent(self) -> None:
        gateway = self._some_gateway()
        gateway.agent.signal(signal.SIGKILL)
        await self.stage.restarted(gateway)

    async def _kill_worker(self) -> None:
        worker = self.stage.workers[self.stage.random.choice(WORKERS)]
        before = worker.pid
        worker.signal(signal.SIGKILL)
        await self.stage.until(lambda: worker.pid != before)
        await worker.ready()

    async def _stop_worker(self) -> None:
        worker = self.stage.workers[self.stage.random.choice(WORKERS)]
        worker.signal(signal.SIGSTOP)
        await asyncio.sleep(self.stage.random.uniform(0.5, 5.0))
        worker.signal(signal.SIGCONT)

    async def _kill_mosquitto(self) -> None:
        """It keeps nothing: devices ask again once they are back."""
        gateway = self._some_gateway()
        await gateway.mosquitto.kill()
        await asyncio.sleep(self.stage.random.uniform(0.0, 1.0))
        await gateway.mosquitto.start()
        await self.stage.until_status(gateway, lambda now: now["local"]["up"])

    async def _kill_broker(self) -> None:
        await self.stage.node.kill()
        await asyncio.sleep(self.stage.random.uniform(0.0, 3.0))
        await self.stage.node.start()

    async def _alarm(self) -> None:
        """RabbitMQ takes nothing for a while."""
        limit = ("set_vm_memory_high_watermark", "absolute")
        await rabbitmqctl(self.stage.node, *limit, "1MB")
        await asyncio.sleep(self.stage.random.uniform(0.5, 5.0))
        await rabbitmqctl(self.stage.node, *limit, MEMORY_LIMIT)


@dataclass
class Soak:
    """A long run, and what came of it so far."""

    stage: Stage
    chaos: Chaos
    reader: Reader
    clock: Clock
    began_s: float
    verdict: Verdict = field(default_factory=Verdict)
    stretches: int = 0
    bad: list[str] = field(default_factory=list)

    async def set_up(self) -> None:
        """Start everything that the run needs."""
        for name in WORKERS:
            await self.stage.worker(name, keep=True)
        for agent in AGENTS:
            # What is told is forgotten soon, or the outbox would hold it all.
            gateway = await self.stage.gateway(agent, keep_outcomes_s=300.0)
            for number in range(DEVICES):
                await self.stage.device(gateway, f"{agent}-cam{number}", window=WINDOW)
            await self.stage.local_stream(gateway)

    async def stretch(self, requests: int, done: Callable[[int], None]) -> Verdict:
        """One stretch of requests through faults, healed, drained and judged."""
        if self.stretches:
            self.stage.stream_again()
        self.stretches += 1
        enough = asyncio.Event()
        each = -(-requests // len(self.stage.devices))
        async with asyncio.TaskGroup() as beside:
            chaos = beside.create_task(self.chaos.run(enough))
            async with asyncio.TaskGroup() as load:
                for device in self.stage.devices:
                    load.create_task(self._offer(device, each, done))
            enough.set()
            await chaos
        await self.stage.until_ended(HEAL_S)
        await asyncio.sleep(SETTLE_S)  # for the last lines that nobody waits for
        lines = self.reader.new()
        verdict = check(lines)
        self.stage.forget_ended()
        self.verdict += verdict
        if not verdict.good or verdict.pending or verdict.untold:
            self.bad.append(f"stretch {self.stretches}: {verdict}")
            # The reader has deleted what the dead had written.
            with (self.stage.folder / "bad.jsonl").open("wb") as file:
                file.writelines(line.pack() for line in lines)
        return verdict

    @property
    def good(self) -> bool:
        """Whether the promise was kept all along."""
        return not self.bad

    def found(self, requests: int) -> dict[str, Any]:
        """The verdict on so many requests as JSON holds it."""
        return {
            "good": self.good,
            "bad": self.bad,
            "requests": requests,
            "seed": self.stage.seed,
            "broker": self.stage.node.info.version,
            "faults": dict(self.chaos.made),
            "stretches": self.stretches,
            "seconds": round(self.clock.monotonic() - self.began_s, 1),
            "peak_rss_mb": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // 1024,
            **asdict(self.verdict),
            "lost": self.verdict.lost,
            "duplicated": self.verdict.duplicated,
        }

    async def _offer(
        self, device: Device, count: int, done: Callable[[int], None]
    ) -> None:
        chance = self.stage.random
        for _ in range(count):
            (kind,) = chance.choices(list(KINDS), list(KINDS.values()))
            id_ = await device.offer(kind)
            if chance.random() < TWICE:
                await device.send(id_)
            done(1)


async def soak(
    requests: int,
    seed: int,
    *,
    stretch: int = STRETCH,
    keep: Path | None = None,
    console: Console | None = None,
    tell: Callable[[dict[str, Any]], None] = lambda _: None,
) -> dict[str, Any]:
    """Send so many requests through random faults; gives the verdict as JSON holds it.

    Args:
        requests: in all; the last stretch may be shorter.
        seed: of the faults and their times.
        stretch: requests between two verdicts.
        keep: where histories of a bad stretch and all logs are left.
        console: for progress; None for none.
        tell: given the verdict so far after each stretch.
    """
    clock = SystemClock()
    shown = Progress(
        *Progress.get_default_columns(),
        TimeElapsedColumn(),
        TextColumn("{task.fields[said]}"),
        console=console,
        disable=console is None,
    )
    async with running_node() as node, own_folder() as folder:
        stage = Stage(folder, node, name="soak", seed=seed)
        async with stage:
            reader = Reader(stage.histories, tidy=True)
            run = Soak(stage, Chaos(stage), reader, clock, clock.monotonic())
            await run.set_up()
            with shown:
                bar = shown.add_task("requests", total=requests, said="")
                left = requests
                while left > 0 and run.good:
                    now = min(stretch, left)
                    await run.stretch(now, lambda n: shown.advance(bar, n))
                    left -= now
                    faults = run.chaos.made.total()
                    shown.update(bar, said=f"{faults} faults, {len(run.bad)} bad")
                    tell(run.found(requests - left))
        if keep is not None and not run.good:
            shutil.copytree(folder, keep, dirs_exist_ok=True, ignore=_sockets)
    return run.found(requests - max(0, left))


def _sockets(folder: str, names: list[str]) -> set[str]:
    return {name for name in names if (Path(folder) / name).is_socket()}


def main(
    requests: Annotated[int, typer.Option(help="In all.")] = 5000,
    seed: Annotated[int, typer.Option(help="Of the faults and their times.")] = 1,
    stretch: Annotated[int, typer.Option(help="Between two verdicts.")] = STRETCH,
    as_json: Annotated[
        Path | None,
        typer.Option("--json", help="Write the verdict here, after each stretch."),
    ] = None,
    keep: Annotated[
        Path | None, typer.Option(help="Leave histories and logs of a bad end here.")
    ] = None,
) -> None:
    """Send many requests through random faults; exit 1 when the promise was broken."""
    configure_logs("error")
    console = Console(width=None if sys.stdout.isatty() else 150)

    def tell(found: dict[str, Any]) -> None:
        if as_json is not None:
            as_json.write_text(json.dumps(found, indent=2))

    try:
        found = run_until_interrupted(
            lambda: soak(
                requests, seed, stretch=stretch, keep=keep, console=console, tell=tell
            )
        )
    except Interrupted as interrupted:
        raise typer.Exit(interrupted.exit_code) from None
    tell(found)
    console.print(json.dumps(found, indent=2), markup=False, highlight=False)
    raise typer.Exit(0 if found["good"] else 1)


if __name__ == "__main__":
    typer.run(main)
