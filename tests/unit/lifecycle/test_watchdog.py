from __future__ import annotations

import asyncio
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from lifecycle.watchdog import ServiceManager
from tests.unit.lifecycle.systemd import Systemd


@pytest.fixture(params=["path", "abstract"])
def systemd(request: pytest.FixtureRequest, short_tmp: Path) -> Iterator[Systemd]:
    path = str(short_tmp / "notify")
    listening = Systemd(path if request.param == "path" else f"@{path}")
    yield listening
    listening.close()


def manager(systemd: Systemd, **more: str) -> ServiceManager:
    return ServiceManager.from_environment({"NOTIFY_SOCKET": systemd.address, **more})


async def test_a_life_is_told_from_ready_to_stopping(systemd: Systemd) -> None:
    service = manager(systemd, WATCHDOG_USEC="20000")
    async with service.watching("model\nloaded"):
        assert systemd.heard() == ["READY=1\nSTATUS=model loaded"]
        service.status("serving")
        assert systemd.heard() == ["STATUS=serving"]
        signs: list[str] = []
        async with asyncio.timeout(5):
            while len(signs) < 3:
                signs += systemd.heard()
                await asyncio.sleep(0.001)
        assert set(signs) == {"WATCHDOG=1"}
        systemd.heard()
    assert systemd.heard() == ["STOPPING=1\nSTATUS=stopping"]


async def test_an_event_loop_that_stalls_gives_no_sign_of_life(
    systemd: Systemd,
) -> None:
    async with manager(systemd, WATCHDOG_USEC="20000").watching("up"):
        await asyncio.sleep(0)
        systemd.heard()
        time.sleep(0.1)  # noqa: ASYNC251 - the stall; five times what is allowed
        assert systemd.heard() == []
        async with asyncio.timeout(5):
            while not systemd.heard():  # noqa: ASYNC110 - a socket's doing
                await asyncio.sleep(0.001)


@pytest.mark.parametrize(
    "more",
    [
        {},
        {"WATCHDOG_USEC": "0"},
        {"WATCHDOG_USEC": "soon"},
        {"WATCHDOG_USEC": "1000", "WATCHDOG_PID": "1"},
    ],
    ids=["not asked for", "zero", "no number", "of another process"],
)
async def test_only_a_watched_process_gives_signs_of_life(
    systemd: Systemd, more: dict[str, str]
) -> None:
    async with manager(systemd, **more).watching("up"):
        await asyncio.sleep(0.02)
    assert [each.splitlines()[0] for each in systemd.heard()] == [
        "READY=1",
        "STOPPING=1",
    ]


@pytest.mark.parametrize("address", ["", "vsock:2:1", "/nowhere/notify"])
async def test_a_process_that_nobody_listens_to_goes_on(address: str) -> None:
    service = ServiceManager.from_environment(
        {"NOTIFY_SOCKET": address, "WATCHDOG_USEC": "1000"}
    )
    async with service.watching("up"):
        await asyncio.sleep(0.005)


async def test_a_listener_that_has_stopped_reading_does_not_stop_the_loop(
    systemd: Systemd,
) -> None:
    service = manager(systemd)
    for _ in range(2000):
        service.status("x" * 200)


async def test_an_error_of_the_program_is_raised_as_it_is(systemd: Systemd) -> None:
    with pytest.raises(LookupError):
        async with manager(systemd).watching("up"):
            raise LookupError
    assert systemd.heard()[-1].startswith("STOPPING=1")
