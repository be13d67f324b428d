"""The daemon as systemd sees it: ready, alive, ending."""

from __future__ import annotations

import asyncio
import signal
from collections.abc import Iterator
from pathlib import Path

import pytest

from broker.ports import free_port
from tests.acceptance.processes import AgentProcess, agent, environment, module
from tests.integration.edge_agent.edge import pool_models, tiny
from tests.unit.lifecycle.systemd import Systemd
from tests.waiting import until

pytestmark = [pytest.mark.acceptance, pytest.mark.timeout(120)]  # real processes

WATCHDOG_S = 0.4


@pytest.fixture
def systemd(short_tmp: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Systemd]:
    """Listens to what is started from here."""
    listening = Systemd(str(short_tmp / "notify"))
    monkeypatch.setenv("NOTIFY_SOCKET", listening.address)
    monkeypatch.setenv("WATCHDOG_USEC", str(round(WATCHDOG_S * 1e6)))
    yield listening
    listening.close()


async def test_systemd_hears_that_the_agent_is_ready_alive_and_ending(
    systemd: Systemd, short_tmp: Path
) -> None:
    ears = Ears(systemd)
    bundle = tiny(short_tmp / "sure", threshold=0.0)
    async with agent(short_tmp, embedded_port=free_port(), bundles=bundle) as daemon:
        await until(lambda: "STATUS=serving" in ears.listen())
        assert ears.said[0] == "READY=1\nSTATUS=waiting for the devices' broker"
        await until(lambda: ears.listen().count("WATCHDOG=1") > 2)

        # Its event loop stands still: systemd would kill it now.
        daemon.process.send_signal(signal.SIGSTOP)
        await until(lambda: stopped(daemon.process.pid))
        ears.listen()
        signs = ears.said.count("WATCHDOG=1")
        with pytest.raises(TimeoutError):
            await until(
                lambda: ears.listen().count("WATCHDOG=1") > signs,
                within_s=3 * WATCHDOG_S,
            )
        daemon.process.send_signal(signal.SIGCONT)
        await until(lambda: ears.listen().count("WATCHDOG=1") > signs)

        assert await daemon.end() == 0
    assert ears.listen()[-1] == "STOPPING=1\nSTATUS=stopping"


async def test_an_agent_whose_devices_broker_is_away_is_ready_and_alive(
    systemd: Systemd, short_tmp: Path
) -> None:
    away = f"mqtt://127.0.0.1:{free_port()}"
    made = AgentProcess(short_tmp, local_url=away)
    ears = Ears(systemd)
    await made.spawn()
    try:
        await until(lambda: "WATCHDOG=1" in ears.listen())
        assert ears.said[0].startswith("READY=1")
        assert "STATUS=serving" not in ears.said
    finally:
        assert await made.end() == 0


async def test_a_worker_whose_rabbitmq_is_away_is_ready_alive_and_ending(
    systemd: Systemd, short_tmp: Path
) -> None:
    ears = Ears(systemd)
    command = module(
        "cloud_worker",
        "run",
        *("--amqp-url", f"amqp://127.0.0.1:{free_port()}/"),
        *("--models", pool_models(short_tmp / "models")),
    )
    process = await asyncio.create_subprocess_exec(
        *command, env=environment(), stderr=asyncio.subprocess.DEVNULL
    )
    try:
        await until(lambda: ears.listen().count("WATCHDOG=1") > 2, within_s=40)
        assert ears.said[0] == "READY=1\nSTATUS=waiting for RabbitMQ"
    finally:
        process.terminate()
        async with asyncio.timeout(45):
            assert await process.wait() == 0
    assert "STOPPING=1\nSTATUS=stopping" in ears.listen()


class Ears:
    """Remembers all that systemd has heard."""

    def __init__(self, systemd: Systemd) -> None:
        self._systemd = systemd
        self.said: list[str] = []

    def listen(self) -> list[str]:
        self.said += self._systemd.heard()
        return self.said


def stopped(pid: int) -> bool:
    """Whether a process stands still."""
    return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] == "T"
