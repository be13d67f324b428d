"""A process that pulls one bundle and writes down each chunk it asks for, to be killed.

python -m tests.integration.edge_agent.pull_program REGISTRY SEAL_JSON FOLDER LOG WINDOW
"""

from __future__ import annotations

import asyncio
import os
import random
import sys
from pathlib import Path

from broker.messages import UpdatePolicy
from bundle.folder_tree import FolderTree
from bundle.seal import Seal
from bundle.source import Piece
from bundle.tree_source import TreeSource
from edge_agent.adapters.day_file import DayFile
from edge_agent.loops.fetching import FetchSettings
from edge_agent.loops.metering import Metering
from edge_agent.loops.pulling import Puller, PullSettings

ROUND_TRIP_S = 0.004


class Noted:
    """A source on a slow line; each question is in the log before it is answered."""

    name = "noted"

    def __init__(self, registry: Path, log: Path) -> None:
        self._source = TreeSource(FolderTree(registry))
        self._log = os.open(log, os.O_WRONLY | os.O_APPEND | os.O_CREAT)

    async def read(self, path: str, offset: int, length: int) -> Piece:
        """As the registry reads."""
        os.write(self._log, f"{offset}\n".encode())
        await asyncio.sleep(ROUND_TRIP_S)
        return await self._source.read(path, offset, length)


async def pulled(registry: str, seal: Seal, folder: str, log: str, window: str) -> Path:
    """Where the bundle lies."""
    puller = Puller(
        [Noted(Path(registry), Path(log))],
        Path(folder),
        metering=Metering(
            DayFile(Path(folder) / "day.json"), local_now_s=lambda: 86_400.0
        ),
        rng=random.Random(),
        settings=PullSettings(FetchSettings(window=int(window))),
    )
    return await puller.pull(
        seal,
        None,
        policy=UpdatePolicy(),
        superseded=lambda: False,
    )


if __name__ == "__main__":
    registry, seal_file, *others = sys.argv[1:]
    seal = Seal.model_validate_json(Path(seal_file).read_bytes())
    sys.stdout.write(str(asyncio.run(pulled(registry, seal, *others))))
