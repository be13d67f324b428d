"""The order of events: stream, push, push a bad version, overload, ask the cloud alone.

Traffic never stops for a push. That a version got there is taken from what the
operator's own command says.
"""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from bundle.manifest import Manifest
from lifecycle.clock import Clock
from overspill.demo.cast import CastDevice, all_until, shares
from overspill.demo.crowd import TIMES_TOO_MANY, PoolLoad
from overspill.demo.device import Stage
from overspill.demo.live import Scene
from overspill.demo.measures import CLOUD, FIRST, SECOND, SWAP, Push
from overspill.demo.onlookers import LOOK_EVERY_S, Onlookers
from overspill.demo.operator import Operator, mislabel
from overspill.demo.overload import OVERLOAD, PROBE, Crowd
from overspill.demo.promises import ByAgent, Change, Promised, Target
from overspill.demo.stopped import BAD, Course
from overspill.example import Example
from overspill.program import CommandFailed, environment, python, run_command
from overspill.system import System
from overspill.tasks import together

DEVICE_RATE: Final = 34.0
CLOUD_WINDOW: Final = 64
# Of the devices' requests before and during the overload.
DEADLINE_S: Final = 2.0
EMPTY_WITHIN_S: Final = 20.0


@dataclass(frozen=True, slots=True)
class Flooded:
    """How the pool was overloaded, and what the agents said of it."""

    crowd: Crowd
    queue_empty_after_s: float | None
    changes: list[Change]
    agents: list[ByAgent]


@dataclass(frozen=True, slots=True)
class Played:
    """What is known when the devices are done, beside what they wrote down."""

    push: Push
    promised: dict[str, Promised]
    bad: Course
    flooded: Flooded


class Director:
    """Says who does what, and when.

    Args:
        system: ready.
        example: what it serves.
        images: how many each stage sends.
        folder: where what is made for the demo goes.
        edges_file: where what the edge models say alone goes.
        cast: the devices, started.
        onlookers: who look on meanwhile.
        scene: told what goes on.
        clock: of the demo.
    """

    def __init__(  # noqa: PLR0913 - whom and what it directs
        self,
        system: System,
        example: Example,
        *,
        images: int,
        folder: Path,
        edges_file: Path,
        cast: Sequence[CastDevice],
        onlookers: Onlookers,
        scene: Scene,
        clock: Clock,
    ) -> None:
        self._system = system
        self._example = example
        self._images = images
        self._folder = folder
        self._edges_file = edges_file
        self._cast = cast
        self._onlookers = onlookers
        self._scene = scene
        self._clock = clock

    async def direct(self) -> Played:
        """The order of events."""
        await all_until(self._cast, "up")
        before, after = self._example.manifests()
        promised: dict[str, Promised] = {}

        async def keep_account(manifest: Manifest) -> None:
            """The agents' word as it is now, before anything else is asked of them."""
            await self._onlookers.look_at_agents()
            if (target := Target.of(manifest)) is not None:
                said = self._onlookers.accounts.of(manifest.version)
                promised[manifest.version] = Promised(target, said)

        self._scene.headline = f"streaming with edge model {before.version}"
        await self._all_perform(FIRST, rate=DEVICE_RATE)
        await all_until(self._cast, FIRST)
        await keep_account(before)
        self._scene.headline = f"pushing edge model {after.version}, traffic goes on"
        await self._all_perform(SWAP, rate=DEVICE_RATE, endless=True)
        operator = Operator(self._system, self._clock, self._tell)
        push = await self._push(operator, before.version, after.version)
        self._tell("")
        self._scene.headline = f"streaming with edge model {after.version}"
        await self._all_perform(SECOND, rate=DEVICE_RATE, deadline_s=DEADLINE_S)
        await all_until(self._cast, SECOND)
        await keep_account(after)
        bad = await self._push_bad(operator)
        self._tell("")
        flooded = await self._overload(after.version)
        self._scene.headline = "asking the cloud alone, for comparison"
        await self._all_perform(CLOUD, window=CLOUD_WINDOW, force=True)
        for each in self._cast:
            await each.finish()
        await together(all_until(self._cast, "over"), self._ask_edges_alone())
        return Played(push, promised, bad, flooded)

    async def _all_perform(
        self,
        name: str,
        **how: Any,  # noqa: ANN401 - of Stage
    ) -> None:
        """Let each device send its share of the images."""
        dealt = shares(self._images, len(self._cast))
        for each, indices in zip(self._cast, dealt, strict=True):
            await each.perform(Stage(name, indices, **how))

    async def _overload(self, version: str) -> Flooded:
        """Let others ask for more than the pool can do, while the devices go on."""
        how = {"rate": DEVICE_RATE, "endless": True, "deadline_s": DEADLINE_S}
        pool = PoolLoad(self._system.amqp_url("worker"), self._example)
        self._scene.headline = "finding out what the pool can do"
        await self._all_perform(PROBE, **how)
        capacity_per_s = await pool.capacity_per_s()
        self._scene.headline = f"a crowd asks for {TIMES_TOO_MANY:g} times as much"
        seen = len(self._onlookers.accounts.changes)
        await self._all_perform(OVERLOAD, **how)
        crowd = await pool.flood(capacity_per_s)
        empty_after_s = await self._until_empty()
        await self._onlookers.look_at_agents()
        return Flooded(
            crowd,
            empty_after_s,
            self._onlookers.accounts.changes[seen:],
            self._onlookers.accounts.of(version),
        )

    async def _until_empty(self) -> float | None:
        """Seconds until nothing waits for the pool; None: not within the time."""
        self._scene.queues = {"depth": None}
        began_s = self._clock.monotonic()
        while (took_s := self._clock.monotonic() - began_s) < EMPTY_WITHIN_S:
            if self._scene.queues["depth"] == 0:
                return round(took_s, 1)
            await asyncio.sleep(LOOK_EVERY_S)
        return None

    async def _push(self, operator: Operator, before: str, after: str) -> Push:
        """Publish the second version and roll it out in waves, as an operator does."""
        await operator.publish(self._example.bundles[1])
        course = await operator.roll_out(self._example.model, after)
        return Push(
            before,
            after,
            course.began_ms,
            course.ended_ms,
            len(course.updated),
            course.reason or None,
        )

    async def _push_bad(self, operator: Operator) -> Course:
        """Roll out a version that must be stopped, while the devices go on."""
        bad = mislabel(self._example.bundles[1], self._folder)
        self._scene.headline = "pushing a version whose labels are shuffled"
        await self._all_perform(
            BAD, rate=DEVICE_RATE, endless=True, deadline_s=DEADLINE_S
        )
        await operator.publish(bad)
        version = f"{self._example.manifests()[1].version}-mislabelled"
        return await operator.roll_out(self._example.model, version)

    def _tell(self, news: str) -> None:
        self._scene.rollout = news

    async def _ask_edges_alone(self) -> None:
        """What each edge model says without the cloud, on the same images."""
        example = self._example
        command = python(
            "overspill.demo.edge_alone",
            *("--images", str(example.images)),
            *("--count", str(self._images)),
            *("--out", str(self._edges_file)),
            *map(str, example.bundles),
        )
        code, _, err = await run_command(command, environment())
        if code:
            raise CommandFailed(f"the edge models did not answer alone: {err.strip()}")
