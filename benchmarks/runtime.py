"""Images a second of the example's ResNet in a model's process, by how it is tuned.

Each combination has a process of its own, warmed before any is measured. They take
turns of two seconds in an order that is drawn anew each round, so that a machine
that drifts slows all. `plain` is what a worker does by default; `in_process` is the
same SavedModel called without any of our code, at its best batch size.
"""

from __future__ import annotations

import asyncio
import contextlib
import random
import sys
import time
from collections.abc import AsyncIterator, Mapping
from pathlib import Path
from typing import Any, Final

import numpy as np

from benchmarks.beside_in_process import IMAGES, MODELS, InProcess
from benchmarks.limits import Limit, arguments, median, progress, report
from cloud_worker.adapters.frames import ModelSource
from cloud_worker.adapters.runners import Runners
from cloud_worker.adapters.runtime import Tuning
from lifecycle.logs import configure_logs

BATCH: Final = 64
TURNS: Final = 5
TURN_S: Final = 2.0
COMBINATIONS: Final[Mapping[str, Tuning]] = {
    "plain": Tuning(),
    "intra 1": Tuning(intra_threads=1, inter_threads=1),
    "intra 2, inter 1": Tuning(intra_threads=2, inter_threads=1),
    "two at once": Tuning(at_once=2),
    "two at once, intra 1": Tuning(intra_threads=1, inter_threads=2, at_once=2),
    "xla": Tuning(xla=True),
    "xla, two at once": Tuning(xla=True, at_once=2),
    "mixed precision": Tuning(mixed_precision=True),
}
SIGNATURE: Final = (("image", "float32", (1, 28, 28, 1)),)


class Subject:
    """One combination, warmed and ready."""

    def __init__(self, name: str, tuning: Tuning, runners: Runners, key: str) -> None:
        self.name = name
        self._held = tuning.at_once + 1
        self._runners = runners
        self._key = key
        self.per_s: list[float] = []
        self.cpu_us: list[float] = []

    async def turn(self, requests: list[tuple[bytes]]) -> None:
        """Keep it full for one turn."""
        before, started = self._cpu_s(), time.perf_counter()
        end, done = started + TURN_S, 0
        held = [self._submit(requests) for _ in range(self._held)]
        while held:
            await held.pop(0)
            done += len(requests)
            if time.perf_counter() < end:
                held.append(self._submit(requests))
        self.per_s.append(done / (time.perf_counter() - started))
        self.cpu_us.append((self._cpu_s() - before) / done * 1e6)

    def _submit(self, requests: list[tuple[bytes]]) -> asyncio.Future[Any]:
        return self._runners.submit(self._key, SIGNATURE, requests)

    def _cpu_s(self) -> float:
        stat = Path(f"/proc/{self._runners.pid(self._key)}/stat").read_text()
        user, system = stat.rsplit(")", 1)[1].split()[11:13]
        return (int(user) + int(system)) / 100


@contextlib.asynccontextmanager
async def subjects() -> AsyncIterator[list[Subject]]:
    """All combinations, each in a process of its own."""
    folder = MODELS / "fashion" / "1"
    source = ModelSource("fashion", "1", "saved_model", folder, BATCH)
    async with contextlib.AsyncExitStack() as stack:
        warmed = []
        for name, tuning in COMBINATIONS.items():
            started = time.perf_counter()
            runners = await stack.enter_async_context(Runners(tuning=tuning))
            await runners.load(source)
            progress(f"{name} warmed in {time.perf_counter() - started:.0f} s")
            warmed.append(Subject(name, tuning, runners, source.key))
        yield warmed


async def measure() -> dict[str, Any]:
    images = np.load(IMAGES)["images"][:BATCH, None, :, :, None] / 255
    requests = [(each.tobytes(),) for each in images.astype(np.float32)]
    draw = random.Random(0)
    async with subjects() as warmed, InProcess.start() as limit:
        alone = []
        for turn in range(TURNS):
            progress(f"round {turn + 1} of {TURNS}")
            for each in draw.sample(warmed, len(warmed)):
                await each.turn(requests)
            alone.append(await limit.per_second())
        best = median(alone)
        return {
            "batch": BATCH,
            "in_process_per_s": round(best),
            "in_process_batch": limit.best,
            **{
                each.name: {
                    "per_s": round(median(each.per_s)),
                    "cpu_us_an_image": round(median(each.cpu_us)),
                    "over_in_process": round(median(each.per_s) / best, 3),
                }
                for each in warmed
            },
        }


def main() -> int:
    chosen = arguments(__doc__ or "")
    configure_logs("error")
    figures = asyncio.run(measure())
    plain = figures["plain"]["over_in_process"]
    limits = [Limit("plain_over_in_process", plain, 0.9, at_least=True)]
    return report(figures, limits, as_json=chosen.json)


if __name__ == "__main__":
    sys.exit(main())
