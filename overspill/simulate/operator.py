"""What the fleet knows, asked in this process; what changes it are its commands."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Self, TypeVar

from fleet.app import Fleet
from fleet.core.rollouts import LIVE, AgentState, RolloutState
from fleet.settings import FleetSettings
from overspill.simulate.plan import MODEL

T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class Standing:
    """How far the rollout is, as the fleet says.

    Attributes:
        state: in a word.
        why: what is wrong, when something is.
        told: how many agents were told.
        agents: how it has each agent, in a word.
        excluded: whom it does not reach, and why.
    """

    state: str
    why: str | None
    told: int
    agents: Mapping[str, str]
    excluded: Mapping[str, str]

    @property
    def ended(self) -> bool:
        """Whether it does not go on by itself."""
        state = RolloutState(self.state)
        waits = {RolloutState.PAUSED, RolloutState.AWAITING_APPROVAL}
        return state not in LIVE or state in waits


class Operator:
    """Use as `async with`, while the fleet's daemon runs.

    Args:
        home: the fleet's folder.
    """

    def __init__(self, home: Path) -> None:
        self._home = home
        self._stack = ExitStack()
        # The fleet's calls block, and its database is one thread's.
        self._thread = ThreadPoolExecutor(1, "operator")

    async def __aenter__(self) -> Self:
        def opened() -> Fleet:
            fleet = Fleet(FleetSettings(home=self._home))
            return self._stack.enter_context(fleet)

        self._fleet = await self._do(opened)
        return self

    async def __aexit__(self, *_: object) -> None:
        await self._do(self._stack.close)
        self._thread.shutdown()

    async def serving(self) -> Mapping[str, str | None]:
        """The version that each agent of the inventory serves."""
        devices = await self._do(self._fleet.devices)
        slots = {each.agent: each.slot(MODEL) for each in devices}
        return {
            agent: None if slot is None else slot.active
            for agent, slot in slots.items()
        }

    async def standing(self, generation: int) -> Standing:
        """How far the rollout of a generation is."""
        came = await self._do(lambda: self._fleet.rollouts.progress_of(generation))
        excluded = {
            each.agent: each.reason or "the fleet did not choose it"
            for each in came.agents
            if each.state is AgentState.EXCLUDED
        }
        told = len(came.course.told)
        states = {each.agent: each.state.value for each in came.agents}
        return Standing(came.state.value, came.course.reason, told, states, excluded)

    async def _do(self, work: Callable[[], T]) -> T:
        return await asyncio.get_running_loop().run_in_executor(self._thread, work)
