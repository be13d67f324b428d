"""Free ports of the loopback address."""

from __future__ import annotations

import contextlib
import socket
from collections.abc import Collection
from pathlib import Path
from random import SystemRandom
from typing import Final

LOOPBACK: Final = "127.0.0.1"
_FIRST: Final = 10240
_FIRST_OF_CLIENTS: Final = 32768


class NoFreePort(OSError):
    """Every port that was tried is in use."""


def free_port(avoid: Collection[int] = ()) -> int:
    """A port of 127.0.0.1 that nothing listens on now, and none of `avoid`.

    It lies below the range that the kernel gives to clients: a client that retries a
    port of that range while nothing listens there can connect to itself.

    Raises:
        NoFreePort: none was found in many tries.
    """
    last = _FIRST_OF_CLIENTS
    with contextlib.suppress(OSError, ValueError):
        text = Path("/proc/sys/net/ipv4/ip_local_port_range").read_text()
        last = max(int(text.split()[0]), _FIRST + 1024)
    draw = SystemRandom()
    for _ in range(1000):
        port = draw.randrange(_FIRST, last)
        if port not in avoid and is_free(port):
            return port
    raise NoFreePort(f"no free port on {LOOPBACK} between {_FIRST} and {last}")


def is_free(port: int) -> bool:
    """Whether a server could listen on this port of 127.0.0.1 now."""
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((LOOPBACK, port))
        except OSError:
            return False
    return True
