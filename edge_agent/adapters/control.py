"""The daemon's own socket: one JSON request a connection, one JSON reply.

A Unix socket in the state folder, readable by its owner only, so that no port is
opened and no secret is needed.
"""

from __future__ import annotations

import asyncio
import contextlib
import fcntl
import json
import os
from collections.abc import Awaitable, Callable, Iterator
from pathlib import Path
from typing import Any, Final

import structlog

log = structlog.get_logger(__name__)

MAX_REQUEST_BYTES: Final = 24 * 1024 * 1024
# The kernel's limit for the path of a Unix socket, its final NUL included.
MAX_PATH_BYTES: Final = 107

Handler = Callable[[dict[str, Any]], Awaitable[dict[str, Any]]]


class ControlError(Exception):
    """The daemon cannot be reached, or the socket cannot be made."""


class NoAgent(ControlError):
    """No daemon runs on that folder."""


@contextlib.contextmanager
def only_agent_of(folder: Path) -> Iterator[None]:
    """Hold a state folder, so that no second agent works on its files.

    Raises:
        ControlError: another agent holds it.
    """
    # Not opened to write, which a disk that has become read-only would refuse.
    lock_file = os.open(folder / "lock", os.O_RDONLY | os.O_CREAT, 0o600)
    with os.fdopen(lock_file) as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise ControlError(
                f"another agent already runs on {folder}: stop it, or give this one "
                "a state_dir of its own"
            ) from None
        yield


class ControlServer:
    """Answers requests on a Unix socket while its `async with` block lasts."""

    def __init__(self, path: Path, handler: Handler) -> None:
        self._path = path
        self._handler = handler
        self._server: asyncio.Server | None = None

    async def __aenter__(self) -> ControlServer:
        if len(os.fsencode(self._path)) > MAX_PATH_BYTES:
            raise ControlError(
                f"the path {self._path} is too long for a socket: choose a shorter "
                "state_dir"
            )
        # Left by an agent that was killed: `only_agent_of` says that none runs.
        self._path.unlink(missing_ok=True)
        self._server = await asyncio.start_unix_server(
            self._serve, self._path, limit=MAX_REQUEST_BYTES
        )
        self._path.chmod(0o600)
        return self

    async def __aexit__(self, *_: object) -> None:
        if self._server is not None:
            self._server.close()
        self._path.unlink(missing_ok=True)

    async def _serve(
        self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter
    ) -> None:
        try:
            reply = await self._reply_to(reader)
            writer.write(json.dumps(reply).encode() + b"\n")
            async with asyncio.timeout(10.0):
                await writer.drain()
        except (OSError, TimeoutError) as error:
            log.debug("control_client_gone", error=str(error))
        finally:
            writer.close()

    async def _reply_to(self, reader: asyncio.StreamReader) -> dict[str, Any]:
        try:
            async with asyncio.timeout(10.0):
                line = await reader.readline()
            request = json.loads(line)
            if not isinstance(request, dict):
                return {"error": "a control request is a JSON object"}
        except (ValueError, TimeoutError) as error:
            return {"error": f"not a control request: {error}"}
        return await self._handler(request)


async def ask(
    path: Path, request: dict[str, Any], *, timeout_s: float
) -> dict[str, Any]:
    """Ask a running daemon.

    Raises:
        NoAgent: none runs there.
        ControlError: the one that runs does not answer in time, or refuses.
    """
    asked = json.dumps(request).encode() + b"\n"
    if len(asked) > MAX_REQUEST_BYTES:
        raise ControlError(
            f"a request of {len(asked)} bytes is over the limit of {MAX_REQUEST_BYTES}"
        )
    try:
        async with asyncio.timeout(timeout_s):
            reader, writer = await asyncio.open_unix_connection(
                path, limit=MAX_REQUEST_BYTES
            )
            try:
                writer.write(asked)
                await writer.drain()
                line = await reader.readline()
            finally:
                writer.close()
    except (FileNotFoundError, ConnectionError) as error:
        raise NoAgent(
            f"no agent is running on {path.parent}: start it with "
            "`overspill-agent run`, or name its folder with --state-dir"
        ) from error
    except PermissionError as error:
        raise ControlError(
            f"{path} belongs to another user: run this as the agent's user"
        ) from error
    except TimeoutError as error:
        raise ControlError(
            f"the agent on {path.parent} did not answer within {timeout_s:g} s"
        ) from error
    return _read(path, line)


def _read(path: Path, line: bytes) -> dict[str, Any]:
    if not line:
        raise ControlError(f"the agent on {path.parent} stopped before it answered")
    try:
        reply = json.loads(line)
    except ValueError as error:
        raise ControlError(f"the agent on {path.parent} answered nonsense") from error
    if not isinstance(reply, dict):
        raise ControlError(f"the agent on {path.parent} answered nonsense")
    if "error" in reply:
        raise ControlError(str(reply["error"]))
    return reply
