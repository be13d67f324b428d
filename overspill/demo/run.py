"""Run a demo from beginning to end: a system, its cast, and what came of it.

`director.py` has the order of events, `onlookers.py` what is seen meanwhile,
`findings.py` what it all says afterwards.
"""

from __future__ import annotations

import asyncio
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from rich.console import Console

from lifecycle.clock import Clock, SystemClock
from overspill.demo.cast import CastDevice
from overspill.demo.director import Director, Played
from overspill.demo.edge_alone import read as read_edges
from overspill.demo.findings import Evidence, Findings, draw_curves, find
from overspill.demo.images import LabelledImages
from overspill.demo.live import LiveView, Scene
from overspill.demo.onlookers import LOOK_EVERY_S, Onlookers
from overspill.demo.workplace import Workplace, workplace
from overspill.example import Example
from overspill.system import System
from overspill.tasks import alongside, to_the_end, together

# A minute is short: what takes agents a day to know, they are to know at its end, and a
# gate compares what they knew of the version before.
AUDIT_SHARE: Final = 0.3


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
        findings: what came of it.
        images: how many there were.
        seconds: from beginning to end.
        start_seconds: until every process was ready.
        rabbitmq: its version.
        plot: where the picture is.
        folder: where histories and logs are, when they were kept.
    """

    findings: Findings
    images: int
    seconds: float
    start_seconds: float
    rabbitmq: str
    plot: Path
    folder: Path | None

    def document(self) -> dict[str, Any]:
        """As `--json` writes it."""
        return {
            **self.findings.document(),
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
        evidence = Evidence(
            asked=[asked for each in cast for asked in each.history()],
            edges=read_edges(self._edges_file),
            played=played,
            truth=self._images.labels,
            labels=self._example.manifests()[0].labels,
            agents={each.name: each.place.agent for each in cast},
        )
        findings = find(evidence)
        await asyncio.to_thread(
            draw_curves, evidence, findings.measures, self._options.plot
        )
        self._place.keep = self._place.keep or bool(findings.faults)
        return Performance(
            findings=findings,
            images=len(self._images),
            seconds=self._clock.monotonic() - began_s,
            start_seconds=start_s,
            rabbitmq=system.rabbitmq_version,
            plot=self._options.plot,
            folder=self._place.folder if self._place.keep else None,
        )

    async def _play(self, system: System) -> tuple[list[CastDevice], Played]:
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
        onlookers = Onlookers(system, self._example.model, cast, self._scene)
        director = Director(
            system,
            self._example,
            images=len(self._images),
            folder=self._place.folder,
            edges_file=self._edges_file,
            cast=cast,
            onlookers=onlookers,
            scene=self._scene,
            clock=self._clock,
        )
        try:
            for each in cast:
                await each.program.start()
            played = await alongside(
                director.direct(), onlookers.look(), *(each.listen() for each in cast)
            )
        finally:
            await to_the_end(together(*(each.program.stop() for each in cast)))
        return cast, played

    @property
    def _edges_file(self) -> Path:
        return self._place.folder / "edges.npz"


async def _look_for_ever(view: LiveView) -> None:
    while True:
        view.look()
        await asyncio.sleep(LOOK_EVERY_S)
