"""A private Mosquitto for the devices of one agent, on the loopback address only."""

from __future__ import annotations

import asyncio
import shutil
from pathlib import Path
from typing import Final

from broker.ports import LOOPBACK
from overspill.program import Program, environment

PROGRAM_PATH: Final = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"
START_TIMEOUT_S: Final = 20.0


class MosquittoMissing(Exception):
    """Mosquitto is not installed on this machine."""


def find_mosquitto() -> str:
    """The path of the broker's program, which Debian keeps off a user's PATH.

    Raises:
        MosquittoMissing: there is none.
    """
    found = shutil.which("mosquitto") or shutil.which("mosquitto", path=PROGRAM_PATH)
    if found is None:
        raise MosquittoMissing(
            "Mosquitto is not installed: run "
            "`sudo apt-get install mosquitto mosquitto-clients`"
        )
    return found


def private_mosquitto(folder: Path, port: int, *, log: Path) -> Program:
    """A Mosquitto of our own, not started yet.

    Args:
        folder: where its configuration goes.
        port: of the loopback address.
        log: where it says what it does.

    Raises:
        MosquittoMissing: it is not installed.
    """
    program = find_mosquitto()
    config = folder / "mosquitto.conf"
    config.write_text(
        f"listener {port} {LOOPBACK}\n"
        "allow_anonymous true\n"
        "persistence false\n"
        "set_tcp_nodelay true\n"
        "log_dest stderr\n"
        "connection_messages false\n"
    )
    return Program(
        "mosquitto", [program, "-c", str(config)], log=log, variables=environment()
    )


async def listens(port: int) -> bool:
    """Whether something takes connections on a port of the loopback address."""
    try:
        _, writer = await asyncio.open_connection(LOOPBACK, port)
    except OSError:
        return False
    writer.close()
    return True
