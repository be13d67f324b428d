"""Direct a demo: start the system, stream, push a model half way, ask the cloud, measure.

Traffic never stops for the push. That the second version got there is taken from what
the operator's own command says, and all else from what the devices wrote down.
"""

from __future__ import annotations

import asyncio
import json
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
from lifecycle.clock import Clock, SystemClock
from overspill.demo.cast import CastDevice, all_until, shares
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
from overspill.demo.picture import Realised, draw
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
ROLLOUT_TIMEOUT_S: Final = 90
LOOK_EVERY_S: Final = 0.25
ASK_EVERY_S: Final = 1.0
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
        faults: what keeps it from being a success, for people.
        images: how many there were.
        seconds: from beginning to end.
        start_seconds: until every process was ready.
        rabbitmq: its version.
        plot: where the picture is.
        folder: where histories and logs are, when they were kept.
    """

    measures: Measures
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
            "ok": not self.faults,
            "faults": self.faults,
            "images": self.images,
            "seconds": round(self.seconds, 1),
            "start_seconds": round(self.start_seconds, 1),
            "rabbitmq": self.rabbitmq,
            "plot": str(self.plot),
        }


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

    async def run(self) -> Performance:
        began_s = self._clock.monotonic()
        parts = self._scene.parts
        system = System(self._place.folder, self._example, changed=parts.__setitem__)
        parts.update(dict.fromkeys(system.parts, "waiting"))
        self._scene.headline = "starting the system"
        async with system:
            start_s = self._clock.monotonic() - began_s
            parts.clear()
            cast, push = await self._play(system)
            self._scene.headline = "stopping the system"
            self._scene.lines = []
        self._scene.headline = "measuring"
        asked = [asked for each in cast for asked in each.history()]
        measures, edges = self._measure(asked, push)
        await asyncio.to_thread(self._draw, measures, edges, asked)
        found = faults(measures, agents=len(system.agents))
        self._place.keep = self._place.keep or bool(found)
        return Performance(
            measures=measures,
            faults=found,
            images=len(self._images),
            seconds=self._clock.monotonic() - began_s,
            start_seconds=start_s,
            rabbitmq=system.rabbitmq_version,
            plot=self._options.plot,
            folder=self._place.folder if self._place.keep else None,
        )

    async def _play(self, system: System) -> tuple[list[CastDevice], Push]:
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
            push = await alongside(
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
        return cast, push

    async def _direct(self, system: System, cast: Sequence[CastDevice]) -> Push:
        """The order of events."""
        await all_until(cast, "up")
        before, after = self._example.manifests()
        dealt = shares(len(self._images), len(cast))

        async def all_perform(name: str, **how: Any) -> None:  # noqa: ANN401 - of Stage
            for each, indices in zip(cast, dealt, strict=True):
                await each.perform(Stage(name, indices, **how))

        self._scene.headline = f"streaming with edge model {before.version}"
        await all_perform(FIRST, rate=DEVICE_RATE)
        await all_until(cast, FIRST)
        self._scene.headline = f"pushing edge model {after.version}, traffic goes on"
        await all_perform(SWAP, rate=DEVICE_RATE, endless=True)
        push = await self._push(system, before.version, after.version)
        self._scene.headline = f"streaming with edge model {after.version}"
        await all_perform(SECOND, rate=DEVICE_RATE)
        await all_until(cast, SECOND)
        self._scene.headline = "asking the cloud alone, for comparison"
        await all_perform(CLOUD, window=CLOUD_WINDOW, force=True)
        for each in cast:
            await each.finish()
        await together(all_until(cast, "over"), self._ask_edges_alone())
        return push

    async def _push(self, system: System, before: str, after: str) -> Push:
        """Publish the second version and roll it out, as an operator does."""
        example = self._example
        self._scene.rollout = f"overspill model publish {example.bundles[1].name}"
        code, _, err = await system.operate("model", "publish", str(example.bundles[1]))
        if code:
            raise CommandFailed(f"`overspill model publish` failed: {err.strip()}")
        self._scene.rollout = f"overspill rollout start {example.model} {after}"
        began_ms = self._clock.monotonic() * 1000.0
        code, out, err = await system.operate(
            *("rollout", "start", example.model, after),
            *("--wait", str(ROLLOUT_TIMEOUT_S), "--json"),
        )
        ended_ms = self._clock.monotonic() * 1000.0
        try:
            said = json.loads(out)
        except ValueError:
            raise CommandFailed(
                f"`overspill rollout start` failed: {err.strip() or out.strip()}"
            ) from None
        updated = [each for each in said["agents"] if each["state"] == "updated"]
        self._scene.rollout = f"{len(updated)} agents updated to {after}"
        return Push(
            before, after, began_ms, ended_ms, len(updated), err.strip() or None
        )

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
        self, asked: Sequence[Asked], push: Push
    ) -> tuple[Measures, list[EdgeAlone]]:
        truth = self._images.labels
        edges = read_edges(self._edges_file)
        measures = measure(
            asked,
            labels=self._labels(),
            edge_right={edge.version: edge.right(truth) for edge in edges},
            push=push,
        )
        return measures, edges

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
            for place, line in zip(system.agents, self._scene.lines, strict=True):
                line.status = await system.status(place) or {}
            await asyncio.sleep(ASK_EVERY_S)

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
