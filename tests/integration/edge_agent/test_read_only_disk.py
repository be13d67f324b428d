"""An agent whose disk turns read-only, as Linux makes one after an error."""

from __future__ import annotations

import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from broker.ports import free_port
from edge_agent.app import Agent
from edge_agent.core.answers import AnswerStatus, Source
from edge_agent.settings import AgentSettings
from tests.faults.rows.disk import NoSmallDisk, small_disk
from tests.integration.edge_agent.edge import SHIRT, tiny, until_status


@pytest.fixture
def disk(short_tmp: Path) -> Iterator[Path]:
    """One of its own, that may be mounted anew; as root only."""
    try:
        with small_disk(short_tmp / "disk") as folder:
            yield folder
    except NoSmallDisk as why:
        pytest.skip(str(why))


def remount(disk: Path, how: str) -> None:
    subprocess.run(["mount", "-o", f"remount,{how}", str(disk)], check=True, timeout=10)


async def test_an_agent_that_starts_on_a_read_only_disk_answers_and_recovers(
    disk: Path, tmp_path: Path
) -> None:
    settings = AgentSettings(
        agent_id="agent-1",
        state_dir=disk,
        bundles=[tiny(tmp_path / "tiny", threshold=0.0)],
        # Nobody is there: what spills would have to wait.
        cloud_url=f"mqtt://127.0.0.1:{free_port()}",
        disk_reserve_bytes=0,
    )
    async with Agent(settings, devices=False) as agent:
        assert (await agent.status())["outbox"]["error"] is None
    remount(disk, "ro")
    async with Agent(settings, devices=False) as agent:
        answer = await agent.infer("fashion", SHIRT)
        assert (answer.status, answer.source) == (AnswerStatus.ANSWERED, Source.EDGE)
        status = await agent.status()
        assert "cannot open the outbox" in status["outbox"]["error"]
        assert status["ledger"] is None
        refused = await agent.infer("unknown", SHIRT)
        assert refused.status is AnswerStatus.REFUSED
        assert "cannot open the outbox" in str(refused.reason)
        assert refused.retry_after_s
        remount(disk, "rw")
        await until_status(agent, lambda now: now["outbox"]["error"] is None)
        assert (await agent.status())["ledger"]["balanced"]
