"""A pull in a process that is killed again and again, at random."""

from __future__ import annotations

import asyncio
import random
import sys
from collections import Counter
from functools import partial
from pathlib import Path

import pytest

from tests.registries import Registry, model_bytes, sha256_of
from tests.waiting import until

pytestmark = pytest.mark.integration

WINDOW = 4
KILLS = 5


async def start(*arguments: object) -> asyncio.subprocess.Process:
    """The program that pulls."""
    return await asyncio.create_subprocess_exec(
        sys.executable,
        "-m",
        "tests.integration.edge_agent.pull_program",
        *map(str, arguments),
        stdout=asyncio.subprocess.PIPE,
    )


def _is_longer(path: Path, size: int) -> bool:
    return path.stat().st_size > size


@pytest.mark.timeout(120)
async def test_a_pull_killed_at_random_points_fetches_no_more_than_a_window_twice_each(
    tmp_path: Path,
) -> None:
    registry = Registry(tmp_path)
    _, seal = registry.publish("1", model_bytes(400_000))
    (tmp_path / "seal.json").write_text(seal.model_dump_json())
    log = tmp_path / "asked"
    log.touch()
    rng = random.Random(11)
    wanted = (registry.tree.root, tmp_path / "seal.json", tmp_path / "parts", log)
    for _ in range(KILLS):
        enough = log.stat().st_size + rng.randint(1, 60)
        process = await start(*wanted, WINDOW)
        await until(partial(_is_longer, log, enough))
        process.kill()
        await process.wait()
    process = await start(*wanted, WINDOW)
    said, _ = await process.communicate()
    assert process.returncode == 0
    assert sha256_of(Path(said.decode().strip())) == seal.sha256
    asked = Counter(log.read_text().split())
    assert len(asked) == len(seal.chunks)
    assert asked.total() > len(seal.chunks)  # else no kill was of any use
    assert asked.total() <= len(seal.chunks) + KILLS * WINDOW
