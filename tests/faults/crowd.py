"""`python -m tests.faults.crowd NODE FIRST COUNT FILE`: many agents' links, and no more.

They have the product's own link, session and backoff, each its own identity, and
share one process. How many are up is written into FILE, several times a second.
"""

from __future__ import annotations

import asyncio
import json
from pathlib import Path
from typing import Final

import typer

from broker import topics
from broker.mqtt.link import MqttLink
from broker.mqtt.target import MqttTarget
from broker.node_info import NodeError, read_info
from lifecycle.logs import configure_logs
from lifecycle.signals import stop_on_signals

REPORT_EVERY_S: Final = 0.1


def name_of(number: int) -> str:
    """The agent of this number."""
    return f"light-{number:04d}"


class Crowd:
    """Agents' links that only stay connected."""

    def __init__(self, folder: Path, first: int, count: int) -> None:
        info = read_info(folder)
        if info is None:
            raise NodeError(f"there is no broker in {folder}")
        self.up = 0
        self.risen = 0
        names = [name_of(number) for number in range(first, first + count)]
        self._links = [
            MqttLink(
                MqttTarget.from_url(info.mqtt_url(name)),
                client_id=name,
                subscriptions=[topics.downlink(name)],
                on_message=_ignore,
                on_change=self._changed,
            )
            for name in names
        ]

    def _changed(self, up: bool) -> None:
        self.up += 1 if up else -1
        self.risen += up

    async def run(self, file: Path) -> None:
        """Stay connected until SIGTERM."""
        stop = stop_on_signals()
        async with asyncio.TaskGroup() as tasks:
            running = [tasks.create_task(link.run()) for link in self._links]
            running.append(tasks.create_task(self._report(file)))
            await stop.wait()
            for task in running:
                task.cancel()

    async def _report(self, file: Path) -> None:
        new = file.with_suffix(".new")
        while True:
            new.write_text(json.dumps({"up": self.up, "risen": self.risen}))
            new.replace(file)
            await asyncio.sleep(REPORT_EVERY_S)


def _ignore(_topic: str, _payload: bytes) -> None:
    """Nobody sends to these agents."""


def main(node: Path, first: int, count: int, file: Path) -> None:
    """Connect so many agents and keep them connected."""
    configure_logs("error")
    asyncio.run(Crowd(node, first, count).run(file))


if __name__ == "__main__":
    typer.run(main)
