"""A device: sends images to its agent over MQTT and writes down all that it hears.

A process of its own, `python -m overspill.demo.device`. It takes one JSON command a
line on standard input and ends with it, tells its progress on standard output, and
never decides what is right: that is read from its history later.

It keeps the device's part of the bargain: a request that nothing was heard of is sent
again under the same id, and what was accepted is waited for.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import itertools
import json
import sys
from collections import Counter
from collections.abc import Awaitable, Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import IO, Any, Final, Protocol

import msgpack

from broker.link import LinkDown
from broker.mqtt.link import MqttLink
from broker.mqtt.target import MqttTarget
from lifecycle.clock import Clock, SystemClock
from lifecycle.logs import configure_logs
from overspill.demo.history import Reply, Sent, as_line
from overspill.demo.images import LabelledImages

RESEND_AFTER_S: Final = 5.0
DEADLINE_S: Final = 30.0
# Beyond the deadline nothing more is owed; this is slack for the way back.
GIVE_UP_AFTER_S: Final = DEADLINE_S + 10.0
LINGER_S: Final = 0.5
TELL_EVERY_S: Final = 0.2
RETRY_LINK_S: Final = 0.2
COMMANDS_AHEAD: Final = 4
PUBLISH_WINDOW: Final = 64


@dataclass(frozen=True, slots=True)
class Stage:
    """What to send: a command as it is read.

    Attributes:
        name: written into the history.
        indices: which images, in order.
        rate: requests a second; None for as fast as the window allows.
        window: requests without a final answer at most.
        force: ask for the cloud, and as bulk.
        endless: begin again with the first image until the next command.
        deadline_s: how long each request may take.
    """

    name: str
    indices: tuple[int, ...]
    rate: float | None = None
    window: int = 16
    force: bool = False
    endless: bool = False
    deadline_s: float = DEADLINE_S

    def order(self) -> Iterator[int]:
        """The images to send."""
        return itertools.cycle(self.indices) if self.endless else iter(self.indices)


class Publishes(Protocol):
    """The half of a link that a device sends through."""

    def publish(self, topic: str, payload: bytes) -> Awaitable[None]:
        """Publish at QoS 1 and return when acknowledged; raises LinkDown."""
        ...


@dataclass(frozen=True, slots=True)
class Patience:
    """How long a device waits.

    Attributes:
        resend_after_s: without a word, until the same id is sent again.
        give_up_after_s: without an end, until a request counts as lost.
        linger_s: after the last end, for what is late and should not come at all.
    """

    resend_after_s: float = RESEND_AFTER_S
    give_up_after_s: float = GIVE_UP_AFTER_S
    linger_s: float = LINGER_S


@dataclass(slots=True)
class _Open:
    """A request without a final answer."""

    payload: bytes
    began_ms: float
    heard: bool = False
    ended: asyncio.Event = field(default_factory=asyncio.Event)


class Device:
    """Sends what it is told to and remembers what is open.

    Args:
        name: its id, the second level of its topics.
        model: which model it asks.
        images: what it can send.
        history: where each event goes as one line.
        clock: for the times in the history.
        patience: how long it waits for what.
    """

    def __init__(
        self,
        name: str,
        model: str,
        images: LabelledImages,
        *,
        history: IO[str],
        clock: Clock,
        patience: Patience | None = None,
    ) -> None:
        self._name = name
        self._topic = f"infer/{name}/{model}"
        self._images = images
        self._history = history
        self._clock = clock
        self._patience = patience or Patience()
        self._open: dict[str, _Open] = {}
        self._room = asyncio.Event()
        self._number = 0
        self._counts: Counter[str] = Counter()
        self._version: str | None = None
        self._took_ms: dict[str, float] = {}
        self._stage = ""

    async def run(self, link: Publishes, commands: asyncio.Queue[Stage | None]) -> None:
        """Carry out commands until None comes, then wait for what is open."""
        async with asyncio.TaskGroup() as requests:
            while (stage := await commands.get()) is not None:
                self._stage = stage.name
                _tell({"began": stage.name})
                await self._send_all(link, stage, commands, requests)
                _tell({"sent": stage.name, **self.progress()})
        await asyncio.sleep(self._patience.linger_s)

    def progress(self) -> dict[str, Any]:
        """What a spectator wants to know now."""
        return {
            "stage": self._stage,
            "asked": self._number,
            "open": len(self._open),
            "counts": dict(self._counts),
            "version": self._version,
            "ms": {source: round(ms, 2) for source, ms in self._took_ms.items()},
        }

    async def _send_all(
        self,
        link: Publishes,
        stage: Stage,
        commands: asyncio.Queue[Stage | None],
        requests: asyncio.TaskGroup,
    ) -> None:
        due_s = self._clock.monotonic()
        for index in stage.order():
            if stage.endless and not commands.empty():
                return
            while len(self._open) >= stage.window:
                self._room.clear()
                await self._room.wait()
            if stage.rate is not None:
                await asyncio.sleep(max(0.0, due_s - self._clock.monotonic()))
                # What the window held up is not made up for by a burst.
                due_s = max(due_s, self._clock.monotonic() - 1.0) + 1.0 / stage.rate
            self._ask(link, stage, index, requests)

    def _ask(
        self, link: Publishes, stage: Stage, index: int, requests: asyncio.TaskGroup
    ) -> None:
        self._number += 1
        id_ = f"{self._name}-{self._number:06d}"
        fields: dict[str, Any] = {
            "id": id_,
            "image": self._images.png(index),
            "deadline_ms": stage.deadline_s * 1000.0,
        }
        if stage.force:
            fields |= {"spill": True, "class": "bulk"}
        request = self._open[id_] = _Open(msgpack.packb(fields), self._now_ms())
        truth = int(self._images.labels[index])
        sent = Sent(id_, index, truth, stage.name, self._now_ms())
        requests.create_task(self._carry(link, sent, request))

    async def _carry(self, link: Publishes, sent: Sent, request: _Open) -> None:
        """Send until something is heard, and wait for the end."""
        attempt = 0
        try:
            async with asyncio.timeout(self._patience.give_up_after_s):
                while not request.ended.is_set():
                    if not request.heard:
                        attempt += 1
                        self._write(
                            replace(sent, at_ms=self._now_ms(), attempt=attempt)
                        )
                        await self._publish(link, request.payload)
                    with contextlib.suppress(TimeoutError):
                        async with asyncio.timeout(self._patience.resend_after_s):
                            await request.ended.wait()
        except TimeoutError:
            self._counts["lost"] += 1
        finally:
            del self._open[sent.id]
            self._room.set()

    async def _publish(self, link: Publishes, payload: bytes) -> None:
        while True:
            try:
                await link.publish(self._topic, payload)
            except LinkDown:
                await asyncio.sleep(RETRY_LINK_S)
            else:
                return

    def on_message(self, _topic: str, payload: bytes) -> None:
        """Write down a reply."""
        at_ms = self._now_ms()
        fields = msgpack.unpackb(payload)
        reply = Reply(
            id=str(fields.get("id")),
            at_ms=at_ms,
            status=fields["status"],
            final=fields["final"],
            source=fields.get("source"),
            label=fields.get("label"),
            version=fields.get("version"),
            reason=fields.get("reason"),
        )
        self._write(reply)
        request = self._open.get(reply.id)
        if request is None:
            return
        request.heard = True
        if reply.final and not request.ended.is_set():
            self._count(reply, reply.at_ms - request.began_ms)
            request.ended.set()

    def _count(self, reply: Reply, took_ms: float) -> None:
        how = reply.source or reply.status
        self._counts[how] += 1
        # For the eye only; the report takes its figures from the history.
        self._took_ms[how] = 0.9 * self._took_ms.get(how, took_ms) + 0.1 * took_ms
        if reply.source == "edge":
            self._version = reply.version

    def _write(self, event: Sent | Reply) -> None:
        self._history.write(as_line(event) + "\n")

    def _now_ms(self) -> float:
        return round(self._clock.monotonic() * 1000.0, 3)


async def run(device: Device, url: str, name: str) -> None:
    """Be a device until standard input says `finish` or ends."""
    link = MqttLink(
        MqttTarget.from_url(url),
        client_id=name,
        subscriptions=[f"answer/{name}"],
        on_message=device.on_message,
        persistent=False,
        window=PUBLISH_WINDOW,
    )
    commands: asyncio.Queue[Stage | None] = asyncio.Queue(COMMANDS_AHEAD)
    async with asyncio.TaskGroup() as group:
        background = [
            group.create_task(link.run()),
            group.create_task(_read_commands(commands)),
            group.create_task(_tell_now_and_then(device)),
        ]
        await link.wait_up()
        _tell({"up": True})
        await device.run(link, commands)
        for task in background:
            task.cancel()
    _tell({"over": True, **device.progress()})


async def _read_commands(commands: asyncio.Queue[Stage | None]) -> None:
    """Read commands; the end of input means that whoever gave them is gone."""
    reader = asyncio.StreamReader(limit=1024 * 1024)
    await asyncio.get_running_loop().connect_read_pipe(
        lambda: asyncio.StreamReaderProtocol(reader), sys.stdin
    )
    while line := await reader.readline():
        fields = json.loads(line)
        if fields.get("finish"):
            await commands.put(None)
            return
        fields["indices"] = tuple(fields["indices"])
        await commands.put(Stage(**fields))
    raise SystemExit(1)


async def _tell_now_and_then(device: Device) -> None:
    while True:
        await asyncio.sleep(TELL_EVERY_S)
        _tell(device.progress())


def _tell(progress: dict[str, Any]) -> None:
    # A broken pipe: nobody looks any more, and input ends too.
    with contextlib.suppress(BrokenPipeError):
        sys.stdout.write(json.dumps(progress, separators=(",", ":")) + "\n")
        sys.stdout.flush()


def main() -> None:
    """Read the command line and be a device."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--url", required=True, help="the agent's local broker")
    parser.add_argument("--device", required=True, help="its id")
    parser.add_argument("--model", required=True, help="which model it asks")
    parser.add_argument("--images", type=Path, required=True, help="an .npz file")
    parser.add_argument("--history", type=Path, required=True, help="written")
    options = parser.parse_args()
    configure_logs("warning")
    images = LabelledImages.load(options.images)
    with options.history.open("w") as history:
        device = Device(
            options.device,
            options.model,
            images,
            history=history,
            clock=SystemClock(),
        )
        asyncio.run(run(device, options.url, options.device))


if __name__ == "__main__":
    main()
