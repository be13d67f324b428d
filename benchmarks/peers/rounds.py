"""All contenders through all workloads, in random order, as often as time allows.

First the drains, because the rates of the open loops follow from them.
"""

from __future__ import annotations

import asyncio
import random
import time
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass
from typing import Final

from benchmarks.limits import progress
from benchmarks.peers import workloads
from benchmarks.peers.contenders import BY_NAME, OURS, Contender, Mode
from benchmarks.peers.results import Results
from benchmarks.peers.session import DidNotStart, Session, Stage
from benchmarks.peers.workloads import Figures

DRAINS: Final = ("noop", "stub", "resnet")
LOADS: Final = ("load", "bursts", "mixed")
OTHERS: Final = ("kill", "swap")
SHARES: Final = (0.2, 0.6, 0.9, 1.1)
MIXED_SHARE: Final = 1.1
SESSION_MOST_S: Final = 240.0
MOST_FAILURES: Final = 2
WORD_CHARS: Final = 400


@dataclass(frozen=True, slots=True)
class Plan:
    """How much of it.

    Attributes:
        names: who takes part.
        workloads: which.
        repeats: of each, when time allows.
        seed: of the order and of the arrivals.
        drain_s, load_s: about how long one drain and one open loop last.
        bursts: in one workload.
        kill_requests: in the backlog of the kill.
        swap_s: of load around a swap.
        until_s: of `time.monotonic`; no round begins that would not end by then, and
            no session at all after it.
        every_mode: drains as they come as well as at equal safety.
    """

    names: Sequence[str]
    workloads: Sequence[str]
    repeats: int
    seed: int
    drain_s: float
    load_s: float
    bursts: int
    kill_requests: int
    swap_s: float
    until_s: float
    every_mode: bool = True

    def chosen(self, among: Sequence[str]) -> list[str]:
        """Those of some workloads that were asked for."""
        return [each for each in among if each in self.workloads]


Measured = Callable[[Session, Mode, random.Random], Awaitable[None]]
Entry = tuple[Contender, Mode]


class Rounds:
    """Runs a plan."""

    def __init__(self, stage: Stage, plan: Plan, results: Results) -> None:
        self._stage = stage
        self._plan = plan
        self._results = results
        self._order = random.Random(plan.seed)
        self._failures: dict[tuple[str, Mode], int] = {}
        self._longest_s: dict[str, float] = {}
        self._rates: dict[str, float] = {}

    async def run(self) -> None:
        """All of it; a contender that fails is a row, never the end of the run."""
        plan = self._plan
        safest: list[Entry] = [
            (BY_NAME[name], BY_NAME[name].modes[-1]) for name in plan.names
        ]
        every: list[Entry] = [
            (BY_NAME[name], mode) for name in plan.names for mode in BY_NAME[name].modes
        ]
        drains = plan.chosen(DRAINS)
        # Without the stub's drain there is no rate to load with.
        needs_rates = plan.chosen([*LOADS, "swap"])
        if needs_rates and not {"stub", "resnet"} <= set(drains):
            drains = sorted({*drains, "stub", "resnet"})
        wide = every if plan.every_mode else safest
        queued = [each for each in safest if each[0].queued]
        phases: list[tuple[str, list[Entry], Measured]] = []
        if drains:
            phases.append(("drains", wide, self._drains(drains)))
        if plan.chosen(LOADS):
            phases.append(("loads", safest, self._loads))
        if "kill" in plan.workloads:
            phases.append(("kill", wide, self._kill))
        if "swap" in plan.workloads:
            phases.append(("swap", queued, self._swap))
        for number in range(plan.repeats):
            for phase in phases:
                await self._round(number, *phase)

    async def _round(
        self, number: int, what: str, entries: list[Entry], measured: Measured
    ) -> None:
        """Everybody once through one phase, unless there is no time for it."""
        began_s = time.monotonic()
        if number and began_s + self._longest_s.get(what, 0.0) > self._plan.until_s:
            progress(f"{what}: no time for round {number + 1}")
            return
        order = list(entries)
        self._order.shuffle(order)
        for contender, mode in order:
            shown = f"{what} {number + 1}/{self._plan.repeats}"
            progress(f"{shown}: {contender.name}, {mode}")
            await self._one(what, contender, mode, (number, measured))
        self._results.notes[f"{what}_repeats"] = number + 1
        taken_s = time.monotonic() - began_s
        self._longest_s[what] = max(self._longest_s.get(what, 0.0), taken_s)

    async def _one(
        self, what: str, contender: Contender, mode: Mode, turn: tuple[int, Measured]
    ) -> None:
        number, measured = turn
        if self._failures.get((contender.name, mode), 0) >= MOST_FAILURES:
            return
        if time.monotonic() > self._plan.until_s:
            self._results.fail(contender.name, mode, what, "no time was left for it")
            return
        # The same arrivals for each contender of a round.
        draw = random.Random(f"{self._plan.seed} {what} {number}")
        try:
            async with (
                asyncio.timeout(SESSION_MOST_S),
                Session.open(self._stage, contender, mode) as session,
            ):
                await measured(session, mode, draw)
        except* (DidNotStart, OSError, TimeoutError, RuntimeError, ValueError) as group:
            self._note_failure(contender.name, mode, what, group)

    def _note_failure(
        self, name: str, mode: Mode, what: str, group: BaseExceptionGroup[Exception]
    ) -> None:
        cause: BaseException = group
        while isinstance(cause, BaseExceptionGroup):
            cause = cause.exceptions[0]
        why = f"{type(cause).__name__}: {cause}"[:WORD_CHARS]
        progress(f"  {name} failed: {why}")
        self._failures[name, mode] = self._failures.get((name, mode), 0) + 1
        self._results.fail(name, mode, what, why)

    def _add(
        self, session: Session, mode: Mode, workload: str, figures: Figures
    ) -> None:
        self._results.add(session.contender.name, mode, workload, figures)
        shown = ", ".join(
            f"{name} {value:.4g}"
            for name, value in figures.items()
            if value is not None
        )
        progress(f"  {workload}: {shown}")

    def _drains(self, models: Sequence[str]) -> Measured:
        async def measured(session: Session, mode: Mode, _: random.Random) -> None:
            for model in models:
                figures = await workloads.drain(session, model, self._plan.drain_s)
                self._add(session, mode, model, figures)

        return measured

    async def _loads(self, session: Session, mode: Mode, draw: random.Random) -> None:
        plan, slowest = self._plan, self._slowest()
        chosen = plan.chosen(LOADS)
        if "load" in chosen:
            for share in SHARES:
                per_s = slowest * share
                figures = await workloads.load(session, draw, per_s, plan.load_s)
                self._add(session, mode, f"load_{share:.0%}", figures)
        if "bursts" in chosen:
            figures = await workloads.burst(session, draw, slowest * 0.2, plan.bursts)
            self._add(session, mode, "bursts", figures)
        if "mixed" in chosen:
            per_s = self._most_mixed() * MIXED_SHARE
            figures = await workloads.mixed(session, draw, per_s, plan.load_s)
            self._add(session, mode, "mixed", figures)

    async def _kill(self, session: Session, mode: Mode, _: random.Random) -> None:
        figures = await workloads.kill(session, self._plan.kill_requests)
        self._add(session, mode, "kill", figures)

    async def _swap(self, session: Session, mode: Mode, draw: random.Random) -> None:
        per_s = self._slowest() * workloads.SWAP_SHARE
        figures = await workloads.swap(session, draw, per_s, self._plan.swap_s)
        self._add(session, mode, "swap", figures)

    def _slowest(self) -> float:
        """The stub's drain by the slowest peer: the rate that the levels are parts of.

        Raises:
            RuntimeError: nobody drained it.
        """
        peers = [each for each in self._plan.names if each != OURS]
        names = peers or list(self._plan.names)
        rates = self._results.best("stub", "per_s", names, least=True)
        return self._rate("slowest_stub_per_s", rates)

    def _most_mixed(self) -> float:
        """The most that anybody could do of both models in equal parts.

        Raises:
            RuntimeError: nobody drained both.
        """
        rates = [
            2 / (1 / stub + 1 / resnet)
            for name in self._plan.names
            for mode in BY_NAME[name].modes
            if (stub := self._results.value(name, mode, "stub", "per_s"))
            and (resnet := self._results.value(name, mode, "resnet", "per_s"))
        ]
        return self._rate("most_mixed_per_s", max(rates, default=None))

    def _rate(self, name: str, found: float | None) -> float:
        """A rate of the first round, kept for all rounds that follow."""
        if found is None:
            raise RuntimeError("no drain was measured: there is no rate to load with")
        rate = self._rates.setdefault(name, found)
        self._results.notes[name] = round(rate, 1)
        return rate
