"""The devices as the demo's director sees them: told what to do, listened to."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any, Final

from overspill.demo.device import GIVE_UP_AFTER_S, Stage
from overspill.demo.history import Asked, read
from overspill.example import Example
from overspill.program import Program, ProgramEnded, environment, python
from overspill.system import AgentPlace

UP_TIMEOUT_S: Final = 30.0
STAGE_TIMEOUT_S: Final = 300.0
FINISH_TIMEOUT_S: Final = GIVE_UP_AFTER_S + 10.0
LINE_LIMIT: Final = 256 * 1024


class CastDevice:
    """One device's process.

    Attributes:
        name: its id.
        progress: the last thing it said of itself; see `device.Device.progress`.
    """

    def __init__(
        self, place: AgentPlace, example: Example, folder: Path, *, log: Path
    ) -> None:
        self.name = place.device
        self.place = place
        self.progress: dict[str, Any] = {}
        self._history = folder / f"{place.device}.jsonl"
        self._done: dict[str, asyncio.Event] = {}
        self.program = Program(
            place.device,
            python(
                "overspill.demo.device",
                *("--url", place.url),
                *("--device", place.device),
                *("--model", example.model),
                *("--images", str(example.images)),
                *("--history", str(self._history)),
            ),
            log=log,
            variables=environment(),
            talks=True,
            stop_within_s=3.0,
        )

    async def listen(self) -> None:
        """Take what the device says until it has ended.

        Raises:
            ProgramEnded: it ended before it was told to finish.
        """
        out = self.program.process.stdout
        if out is None:
            raise AssertionError(f"{self.name} was started without pipes")
        over = False
        while line := await out.readline():
            said = json.loads(line)
            over = over or said.pop("over", False)
            if said.pop("up", False):
                self._event("up").set()
            if (stage := said.pop("sent", None)) is not None:
                self._event(stage).set()
            if "counts" in said:
                self.progress = said
        # Only the end of the process says that its history is whole.
        if await self.program.process.wait() or not over:
            raise ProgramEnded(self.program.obituary())
        self._event("over").set()

    async def perform(self, stage: Stage) -> None:
        """Tell the device what to send."""
        await self._write({**asdict(stage), "indices": list(stage.indices)})

    async def finish(self) -> None:
        """Tell the device to wait for what is open, and to end."""
        await self._write({"finish": True})

    async def until(self, what: str) -> None:
        """Return once it is `up`, has sent all of a stage, or is `over`.

        Raises:
            ProgramEnded: it takes far too long.
        """
        limits = {"up": UP_TIMEOUT_S, "over": FINISH_TIMEOUT_S}
        limit_s = limits.get(what, STAGE_TIMEOUT_S)
        try:
            async with asyncio.timeout(limit_s):
                await self._event(what).wait()
        except TimeoutError:
            raise ProgramEnded(
                f"{self.name} did not come to {what!r} within {limit_s:g} s; its log "
                f"is {self.program.log}"
            ) from None

    def history(self) -> list[Asked]:
        """All that it asked and heard, as it wrote it down."""
        with self._history.open() as lines:
            return read(self.name, lines)

    def _event(self, what: str) -> asyncio.Event:
        return self._done.setdefault(what, asyncio.Event())

    async def _write(self, command: dict[str, Any]) -> None:
        pipe = self.program.process.stdin
        if pipe is None:
            raise AssertionError(f"{self.name} was started without pipes")
        try:
            pipe.write(json.dumps(command).encode() + b"\n")
            await pipe.drain()
        except (BrokenPipeError, ConnectionResetError):
            raise ProgramEnded(
                f"{self.name} no longer listens; its log is {self.program.log}"
            ) from None


def shares(count: int, parts: int) -> list[tuple[int, ...]]:
    """The indices 0 to `count` dealt out like cards."""
    return [tuple(range(part, count, parts)) for part in range(parts)]


async def all_until(devices: Sequence[CastDevice], what: str) -> None:
    """Return once every device has come so far."""
    for device in devices:
        await device.until(what)
