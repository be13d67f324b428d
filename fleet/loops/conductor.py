"""Rollouts go on: a look after reports came, and one now and then because time passes.

All state is in the database, so a restart goes on where it was. However many reports
come between two looks, they are one look; and the next one waits for some times as
long as the last one took, so that reports are not kept waiting for the database.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Collection, Sequence
from contextlib import suppress
from functools import partial
from typing import Final, TypeVar

import structlog

from broker.backoff import Backoff
from fleet.adapters.registry import Registry
from fleet.adapters.state.database import DatabaseUnavailable, FleetDatabase
from fleet.core.fleetwide import Advanced
from fleet.core.following import Now
from fleet.core.listening import Listening
from fleet.core.machine import Changed, Event
from fleet.core.rollouts import FAILED_AGENT
from fleet.loops.conducting import (
    Looked,
    described,
    kind_of,
    look,
    rebase,
    write_desired,
)
from lifecycle.clock import Clock

log = structlog.get_logger(__name__)

T = TypeVar("T")

MIN_BREATH_S: Final = 0.02
MAX_BREATH_S: Final = 2.0
# A look costs 50 ms a thousand agents: at most a third of a core while rollouts are on
# their way, and less when only newcomers are waited for.
BREATHS: Final = {True: 2.0, False: 10.0}
IDLE_S: Final = 30.0
LOUD: Final = frozenset({Event.PAUSE, Event.ROLL_BACK, Event.FAIL, Event.ASK})


class Conductor:
    """Advances rollouts, writes desired documents, and tells agents of them.

    Args:
        database: open.
        registry: where desired documents lie.
        clock: gives the time of a look.
        hint: tells agents that their desired state changed. It does not raise when
            they cannot be told: they ask by themselves later.
        silent_after_s: an agent not heard of for so long is silent.
        tick_s: how often to look while a rollout is on its way and nobody reports.
        backoff: how long to wait when the database or the registry cannot be written.
    """

    def __init__(  # noqa: PLR0913 - what it stands on; all but two by name
        self,
        database: FleetDatabase,
        registry: Registry,
        *,
        clock: Clock,
        hint: Callable[[Sequence[str]], Awaitable[None]],
        silent_after_s: float = 90.0,
        tick_s: float = 1.0,
        backoff: Backoff | None = None,
    ) -> None:
        self._database = database
        self._registry = registry
        self._clock = clock
        self._hint = hint
        self._silent_after_s = silent_after_s
        self._tick_s = tick_s
        self._backoff = backoff or Backoff()
        self._heard: set[str] = set()
        self._news = asyncio.Event()
        self._listening = Listening.begun(clock.wall_ms(), clock.boottime())
        # Also while the daemon was away the clock may have been set back.
        self._clock_was_set = True

    def heard(self, agents: Collection[str]) -> None:
        """Reports of these agents were written."""
        at_s = self._clock.boottime()
        self._listening = self._listening.heard(at_s, self._silent_after_s)
        self._heard.update(agents)
        self._news.set()

    def heal(self) -> None:
        """Look once and write every document anew. Blocks; before `run`.

        A command that died half way left documents behind its rollout, and a registry
        that was restored has old ones.

        Raises:
            DatabaseUnavailable: the state cannot be read or written.
            OSError: the registry cannot be written.
        """
        for each in self._look(self._now()).advanced:
            _say(each)
        with self._database.reading() as ledger:
            agents = ledger.devices().keys()
        write_desired(self._database, self._registry, agents, anew=True)

    async def run(self) -> None:
        """Look, for ever."""
        live = True
        while True:
            with suppress(TimeoutError):
                async with asyncio.timeout(self._tick_s if live else IDLE_S):
                    await self._news.wait()
            began_s = self._clock.monotonic()
            live = await self.look()
            spent_s = self._clock.monotonic() - began_s
            breath_s = max(MIN_BREATH_S, BREATHS[live] * spent_s)
            await asyncio.sleep(min(breath_s, MAX_BREATH_S))

    async def look(self) -> bool:
        """Look once, write what changed and tell the agents.

        Returns:
            Whether a rollout is on its way.
        """
        self._news.clear()
        heard, self._heard = self._heard, set()
        looked = await self._retried(lambda: partial(self._look, self._now()))
        for each in looked.advanced:
            _say(each)
        # Who reports and does not know may have no document: a command that died.
        agents = looked.agents | (looked.unheard & heard)
        changed = (
            await self._retried(lambda: partial(self._write, agents)) if agents else ()
        )
        if changed:
            await self._hint(changed)
        return looked.live

    def _now(self) -> Now:
        """The time of a look; in the thread that also hears."""
        clock = self._clock
        self._listening, set_s = self._listening.looking(
            clock.wall_ms(), clock.boottime()
        )
        if set_s:
            log.warning("the clock was set: leases begin anew", by_s=round(set_s, 1))
            self._clock_was_set = True
        return self._listening.now(self._silent_after_s)

    def _look(self, now: Now) -> Looked:
        if self._clock_was_set:
            rebase(self._database, now.now_ms)
            self._clock_was_set = False
        return look(self._database, now)

    def _write(self, agents: Collection[str]) -> tuple[str, ...]:
        return write_desired(self._database, self._registry, agents)

    async def _retried(self, work: Callable[[], Callable[[], T]]) -> T:
        """Do what `work` says, which is asked anew before each try."""
        while True:
            try:
                done = await asyncio.to_thread(work())
            except (DatabaseUnavailable, OSError) as error:
                wait_s = self._backoff.next_s()
                log.error(
                    "rollouts wait: the fleet's state cannot be written",
                    reason=str(error),
                    retry_in_s=round(wait_s, 2),
                )
                await asyncio.sleep(wait_s)
            else:
                self._backoff.reset()
                return done


def _say(advanced: Advanced) -> None:
    """Tell the log what a look has decided and which agents did not take a version."""
    rollout, step = advanced.rollout, advanced.step
    what = {
        "generation": rollout.generation,
        "model": rollout.model,
        "version": rollout.version,
    }
    for told in step.changed:
        before = advanced.before.told.get(told.agent)
        failed = told.state in FAILED_AGENT
        if failed and (before is None or before.state is not told.state):
            log.warning(
                "agent did not take a version",
                agent=told.agent,
                state=told.state.value,
                reason=told.reason,
                **what,
            )
    for each in step.decisions:
        loud = isinstance(each, Changed) and each.event in LOUD
        (log.warning if loud else log.info)(
            f"rollout: {kind_of(each)}", **what, **described(each)
        )
