"""Direct a demo: stream, push a model half way, overload the pool, ask the cloud, measure.

Traffic never stops for the push. That the second version got there is taken from what
the operator's own command says, what is known of promises from the agents' own status,
and all else from what the devices wrote down.
"""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import numpy as np
from rich.console import Console

from broker.amqp.delivery import Delivery
from broker.amqp.link import AmqpLink
from broker.amqp.queues import NoSuchQueue
from broker.link import LinkDown
from broker.topology import model_queues
from bundle.manifest import Manifest
from lifecycle.clock import Clock, SystemClock
from overspill.demo import overload, stopped
from overspill.demo.cast import CastDevice, all_until, shares
from overspill.demo.crowd import TIMES_TOO_MANY, PoolLoad
from overspill.demo.device import Stage
from overspill.demo.edge_alone import EdgeAlone
from overspill.demo.edge_alone import read as read_edges
from overspill.demo.history import Asked
from overspill.demo.images import LabelledImages
from overspill.demo.live import DeviceLine, LiveView, Scene
from overspill.demo.measures import (
    CLOUD,
    FIRST,
    SECOND,
    SWAP,
    Measures,
    Push,
    faults,
    measure,
    right_by_image,
)
from overspill.demo.operator import Operator, mislabel
from overspill.demo.overload import OVERLOAD, PROBE, Crowd, Overload, moment
from overspill.demo.picture import Realised, draw
from overspill.demo.promises import Accounts, ByAgent, Change, Promised, Target
from overspill.demo.stopped import BAD, Course, Stopped
from overspill.demo.workplace import Workplace, workplace
from overspill.example import Example
from overspill.program import (
    CommandFailed,
    ProgramEnded,
    environment,
    python,
    run_command,
)
from overspill.system import AgentPlace, System
from overspill.tasks import alongside, to_the_end, together

DEVICE_RATE: Final = 34.0
CLOUD_WINDOW: Final = 64
# Of the devices' requests before and during the overload.
DEADLINE_S: Final = 2.0
# A minute is short: what takes agents a day to know, they are to know at its end, and a
# gate compares what they knew of the version before.
AUDIT_SHARE: Final = 0.3
EMPTY_WITHIN_S: Final = 20.0
LOOK_EVERY_S: Final = 0.25
ASK_EVERY_S: Final = 0.5
DEPTH_EVERY_S: Final = 0.5


@dataclass(frozen=True, slots=True)
class DemoOptions:
    """What a person may choose.

    Attributes:
        images: how many test images, sent once with each version.
        folder: where to work; None for a temporary folder.
        plot: where the picture goes.
        keep: leave the folder.
    """

    images: int
    plot: Path
    folder: Path | None = None
    keep: bool = False


@dataclass(frozen=True, slots=True)
class Performance:
    """A demo that came to its end.

    Attributes:
        measures: what was measured.
        stopped: what came of a version that had to be stopped.
        overload: what came of the devices while the pool had too much to do.
        faults: what keeps it from being a success, for people.
        images: how many there were.
        seconds: from beginning to end.
        start_seconds: until every process was ready.
        rabbitmq: its version.
        plot: where the picture is.
        folder: where histories and logs are, when they were kept.
    """

    measures: Measures
    stopped: Stopped
    overload: Overload
    faults: list[str]
    images: int
    seconds: float
    start_seconds: float
    rabbitmq: str
    plot: Path
    folder: Path | None

    def document(self) -> dict[str, Any]:
        """As `--json` writes it."""
        return {
            **self.measures.document(),
            "stopped": self.stopped.document(),
            "overload": self.overload.document(),
            "ok": not self.faults,
            "faults": self.faults,
            "images": self.images,
            "seconds": round(self.seconds, 1),
            "start_seconds": round(self.start_seconds, 1),
            "rabbitmq": self.rabbitmq,
            "plot": str(self.plot),
        }


@dataclass(frozen=True, slots=True)
class _Flooded:
    """How the pool was overloaded, and what the agents said of it."""

    crowd: Crowd
    queue_empty_after_s: float | None
    changes: list[Change]
    agents: list[ByAgent]


@dataclass(frozen=True, slots=True)
class _Played:
    """What is known when the devices are done, beside what they wrote down."""

    push: Push
    promised: dict[str, Promised]
    bad: Course
    flooded: _Flooded


async def perform(options: DemoOptions, console: Console) -> Performance:
    """Run a demo.

    Args:
        options: what was chosen.
        console: where progress goes.

    Raises:
        ExampleMissing, RabbitMissing, MosquittoMissing, CannotStart, FolderInUse: it
            cannot begin here.
        ProgramEnded, CommandFailed: a part of it failed.
    """
    example = Example.beside_package()
    images = LabelledImages.load(example.images, options.images)
    with workplace(options.folder, keep=options.keep) as place:
        scene = Scene()
        with LiveView(scene, console) as view:
            demo = _Demo(options, example, images, place, scene)
            return await alongside(demo.run(), _look_for_ever(view))


class _Demo:
    """One demo on its way."""

    def __init__(
        self,
        options: DemoOptions,
        example: Example,
        images: LabelledImages,
        place: Workplace,
        scene: Scene,
    ) -> None:
        self._options = options
        self._example = example
        self._images = images
        self._place = place
        self._scene = scene
        self._clock: Clock = SystemClock()
        self._accounts = Accounts()

    async def run(self) -> Performance:
        began_s = self._clock.monotonic()
        parts = self._scene.parts
        system = System(
            self._place.folder,
            self._example,
            audit_share=AUDIT_SHARE,
            changed=parts.__setitem__,
        )
        parts.update(dict.fromkeys(system.parts, "waiting"))
        self._scene.headline = "starting the system"
        async with system:
            start_s = self._clock.monotonic() - began_s
            parts.clear()
            cast, played = await self._play(system)
            self._scene.headline = "stopping the system"
            self._scene.lines = []
        self._scene.headline = "measuring"
        asked = [asked for each in cast for asked in each.history()]
        edges = read_edges(self._edges_file)
        measures = self._measure(asked, edges, played)
        by_agent = {each.name: each.place.agent for each in cast}
        halted = stopped.stopped(asked, self._labels(), played.bad, by_agent)
        overloaded = self._measure_overload(asked, edges, played)
        await asyncio.to_thread(self._draw, measures, edges, asked)
        found = faults(measures, agents=len(system.agents))
        found += stopped.faults(halted)
        found += overload.faults(overloaded)
        self._place.keep = self._place.keep or bool(found)
        return Performance(
            measures=measures,
            stopped=halted,
            overload=overloaded,
            faults=found,
            images=len(self._images),
            seconds=self._clock.monotonic() - began_s,
            start_seconds=start_s,
            rabbitmq=system.rabbitmq_version,
            plot=self._options.plot,
            folder=self._place.folder if self._place.keep else None,
        )

    async def _play(self, system: System) -> tuple[list[CastDevice], _Played]:
        """Let the devices stream while the operator works."""
        cast = [
            CastDevice(
                place,
                self._example,
                self._place.folder,
                log=system.logs / f"{place.device}.log",
            )
            for place in system.agents
        ]
        self._scene.lines = [
            DeviceLine(each.name, each.place.agent, _local(each.place)) for each in cast
        ]
        try:
            for each in cast:
                await each.program.start()
            played = await alongside(
                self._direct(system, cast),
                self._ask_agents(system),
                self._ask_queues(system),
                _until_crippled(system),
                *(
                    self._follow(each, line)
                    for each, line in zip(cast, self._scene.lines, strict=True)
                ),
                *(each.listen() for each in cast),
            )
        finally:
            await to_the_end(together(*(each.program.stop() for each in cast)))
        return cast, played

    async def _direct(self, system: System, cast: Sequence[CastDevice]) -> _Played:
        """The order of events."""
        await all_until(cast, "up")
        before, after = self._example.manifests()
        promised: dict[str, Promised] = {}

        async def keep_account(manifest: Manifest) -> None:
            """The agents' word as it is now, before anything else is asked of them."""
            await self._look_at_agents(system)
            if (target := Target.of(manifest)) is not None:
                said = self._accounts.of(manifest.version)
                promised[manifest.version] = Promised(target, said)

        self._scene.headline = f"streaming with edge model {before.version}"
        await self._all_perform(cast, FIRST, rate=DEVICE_RATE)
        await all_until(cast, FIRST)
        await keep_account(before)
        self._scene.headline = f"pushing edge model {after.version}, traffic goes on"
        await self._all_perform(cast, SWAP, rate=DEVICE_RATE, endless=True)
        operator = Operator(system, self._clock, self._tell)
        push = await self._push(operator, before.version, after.version)
        self._scene.headline = f"streaming with edge model {after.version}"
        await self._all_perform(cast, SECOND, rate=DEVICE_RATE, deadline_s=DEADLINE_S)
        await all_until(cast, SECOND)
        await keep_account(after)
        bad = await self._push_bad(operator, cast)
        flooded = await self._overload(system, cast, after.version)
        self._scene.headline = "asking the cloud alone, for comparison"
        await self._all_perform(cast, CLOUD, window=CLOUD_WINDOW, force=True)
        for each in cast:
            await each.finish()
        await together(all_until(cast, "over"), self._ask_edges_alone())
        return _Played(push, promised, bad, flooded)

    async def _all_perform(
        self,
        cast: Sequence[CastDevice],
        name: str,
        **how: Any,  # noqa: ANN401 - of Stage
    ) -> None:
        """Let each device send its share of the images."""
        dealt = shares(len(self._images), len(cast))
        for each, indices in zip(cast, dealt, strict=True):
            await each.perform(Stage(name, indices, **how))

    async def _overload(
        self, system: System, cast: Sequence[CastDevice], version: str
    ) -> _Flooded:
        """Let others ask for more than the pool can do, while the devices go on."""
        how = {"rate": DEVICE_RATE, "endless": True, "deadline_s": DEADLINE_S}
        pool = PoolLoad(system.amqp_url("worker"), self._example)
        self._scene.headline = "finding out what the pool can do"
        await self._all_perform(cast, PROBE, **how)
        capacity_per_s = await pool.capacity_per_s()
        self._scene.headline = f"a crowd asks for {TIMES_TOO_MANY:g} times as much"
        seen = len(self._accounts.changes)
        await self._all_perform(cast, OVERLOAD, **how)
        crowd = await pool.flood(capacity_per_s)
        empty_after_s = await self._until_empty()
        await self._look_at_agents(system)
        return _Flooded(
            crowd,
            empty_after_s,
            self._accounts.changes[seen:],
            self._accounts.of(version),
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

    async def _push_bad(self, operator: Operator, cast: Sequence[CastDevice]) -> Course:
        """Roll out a version that must be stopped, while the devices go on."""
        bad = mislabel(self._example.bundles[1], self._place.folder)
        self._scene.headline = "pushing a version whose labels are shuffled"
        await self._all_perform(
            cast, BAD, rate=DEVICE_RATE, endless=True, deadline_s=DEADLINE_S
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
            *("--count", str(len(self._images))),
            *("--out", str(self._edges_file)),
            *map(str, example.bundles),
        )
        code, _, err = await run_command(command, environment())
        if code:
            raise CommandFailed(f"the edge models did not answer alone: {err.strip()}")

    @property
    def _edges_file(self) -> Path:
        return self._place.folder / "edges.npz"

    def _measure(
        self, asked: Sequence[Asked], edges: Sequence[EdgeAlone], played: _Played
    ) -> Measures:
        truth = self._images.labels
        return measure(
            asked,
            labels=self._labels(),
            edge_right={edge.version: edge.right(truth) for edge in edges},
            push=played.push,
            promised=played.promised,
        )

    def _measure_overload(
        self, asked: Sequence[Asked], edges: Sequence[EdgeAlone], played: _Played
    ) -> Overload:
        (right,) = (
            edge.right(self._images.labels)
            for edge in edges
            if edge.version == played.push.to
        )
        before, probe, during = (
            moment(
                [each for each in asked if each.stage == stage], self._labels(), right
            )
            for stage in (SECOND, PROBE, OVERLOAD)
        )
        flooded = played.flooded
        return Overload(
            deadline_s=DEADLINE_S,
            crowd=flooded.crowd,
            before=before,
            probe=probe,
            during=during,
            changes=flooded.changes,
            queue_empty_after_s=flooded.queue_empty_after_s,
            agents=flooded.agents,
        )

    def _labels(self) -> list[str]:
        return self._example.manifests()[0].labels

    def _draw(
        self, measures: Measures, edges: Sequence[EdgeAlone], asked: Sequence[Asked]
    ) -> None:
        forced = [each for each in asked if each.stage == CLOUD]
        right = right_by_image(forced, self._labels())
        known = sorted(right)
        if not known:
            return
        draw(
            self._options.plot,
            [edge.of(known) for edge in edges],
            self._images.labels[known],
            np.array([right[index] for index in known]),
            [
                Realised(
                    phase.edge_versions[0], phase.spill_rate, phase.cascade_accuracy
                )
                for phase in measures.phases
                if len(phase.edge_versions) == 1 and phase.stage != SWAP
            ],
        )

    async def _follow(self, device: CastDevice, line: DeviceLine) -> None:
        while True:
            line.progress = device.progress
            await asyncio.sleep(LOOK_EVERY_S)

    async def _ask_agents(self, system: System) -> None:
        while True:
            await self._look_at_agents(system)
            await asyncio.sleep(ASK_EVERY_S)

    async def _look_at_agents(self, system: System) -> None:
        for place, line in zip(system.agents, self._scene.lines, strict=True):
            line.status = await system.status(place) or {}
            self._accounts.take(place.agent, line.status, self._example.model)

    async def _ask_queues(self, system: System) -> None:
        names = [queue.name for queue in model_queues(self._example.model)]
        link = AmqpLink(
            system.amqp_url("admin"),
            name="demo",
            queues=(),
            consume={},
            on_delivery=_ignore,
        )

        async def ask() -> None:
            while True:
                try:
                    depths = [await link.depth(name) for name in names]
                    self._scene.queues = {"depth": sum(depths)}
                except (LinkDown, NoSuchQueue):
                    self._scene.queues = {"depth": None}
                await asyncio.sleep(DEPTH_EVERY_S)

        await alongside(ask(), link.run())


async def _until_crippled(system: System) -> None:
    while True:
        if (program := system.crippled_by()) is not None:
            raise ProgramEnded(program.obituary())
        await asyncio.sleep(LOOK_EVERY_S)


async def _ignore(_delivery: Delivery) -> None:
    """Nothing is consumed here."""


async def _look_for_ever(view: LiveView) -> None:
    while True:
        view.look()
        await asyncio.sleep(LOOK_EVERY_S)


def _local(place: AgentPlace) -> str:
    return "embedded" if place.embedded else "mosquitto"
