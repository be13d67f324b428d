"""What an agent believes, with the costly half of believing shared by a process.

Each agent reads the newest timestamp and the seal by itself, over its own connection,
and checks their digests. Whether the fleet's keys have signed that timestamp and that
seal is found out once for all agents that read the same bytes at the same time of
their clocks.
"""

from __future__ import annotations

import asyncio
import hashlib
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from bundle import layout
from bundle.seal import MAX_SEAL_BYTES, Seal, check_names, read_seal
from bundle.source import Piece, Source
from bundle.trust import client, roles
from bundle.trust.errors import Untrusted

TIMESTAMP: Final = layout.metadata(roles.file_name(roles.TIMESTAMP, 0))
READ_S: Final = 30.0
READ_BYTES: Final = 64 * 1024
# A clock that is wrong by less than this makes no difference to what has expired.
CLOCK_STEP_S: Final = 600.0


@dataclass(frozen=True, slots=True)
class _Asked:
    """What a verdict depends on."""

    timestamp: str
    clock_step: int
    target: str


class Verifier:
    """Finds out what was signed; one for all agents of a process.

    Args:
        root_json: what agents are provisioned with.
        folder: where verified metadata is kept, one folder for each wrong clock.
    """

    def __init__(self, root_json: Path, folder: Path) -> None:
        self._root = root_json.read_bytes()
        self._folder = folder
        self._alone = asyncio.Lock()
        self._sealed: dict[_Asked, str | Exception] = {}

    async def digest_of(
        self, target: str, timestamp: str, source: Source, clock_s: float
    ) -> str:
        """The SHA-256 of a target that was signed, at the time of an agent's clock.

        Args:
            target: what TUF calls it.
            timestamp: the digest of the newest timestamp that the agent read.
            source: the agent's own.
            clock_s: of the agent.

        Raises:
            Untrusted: it was not signed, or what was signed has expired.
            SourceUnavailable: the source cannot be asked now.
        """
        asked = _Asked(timestamp, int(clock_s // CLOCK_STEP_S), target)
        async with self._alone:
            found = self._sealed.get(asked)
            if found is None:
                found = await self._look(asked, source, clock_s)
                self._sealed[asked] = found
        if isinstance(found, Exception):
            raise found
        return found

    async def _look(
        self, asked: _Asked, source: Source, clock_s: float
    ) -> str | Exception:
        loop = asyncio.get_running_loop()

        def read(path: str, offset: int, length: int) -> Piece:
            reading = asyncio.run_coroutine_threadsafe(
                source.read(path, offset, length), loop
            )
            return reading.result(READ_S)

        look = await asyncio.to_thread(
            client.look,
            self._root,
            self._folder / str(asked.clock_step),
            [(source.name, read)],
            clock_s=clock_s,
            target=asked.target,
        )
        try:
            look.check()
        except Untrusted as error:
            return error
        return hashlib.sha256(look.target or b"").hexdigest()


class SharedTrust:
    """What one agent believes; `edge_agent.loops.updates.Trust`."""

    def __init__(
        self, verifier: Verifier, source: Source, clock_s: Callable[[], float]
    ) -> None:
        self._verifier = verifier
        self._source = source
        self._clock_s = clock_s
        self._timestamp = ""

    async def refresh(self) -> None:
        """Learn what is newest.

        Raises:
            SourceUnavailable: the source cannot be asked now.
        """
        limit = roles.MAX_BYTES[roles.TIMESTAMP]
        piece = await self._source.read(TIMESTAMP, 0, limit)
        self._timestamp = hashlib.sha256(piece.data).hexdigest()

    async def seal_for(self, model: str, version: str, epoch: int) -> Seal:
        """The seal of a version in an epoch.

        Raises:
            Untrusted: the keys have not signed it, or it came damaged.
            SourceUnavailable: the source cannot be asked now.
            SealRejected: what was signed is no seal, or seals something else.
        """
        target = layout.seal_target(model, version, epoch)
        digest = await self._verifier.digest_of(
            target, self._timestamp, self._source, self._clock_s()
        )
        path = layout.target_file(target, digest)
        data = await self._read(path)
        if hashlib.sha256(data).hexdigest() != digest:
            raise Untrusted(f"{path} is not what was signed")
        return check_names(read_seal(data), model, version, epoch)

    async def _read(self, path: str) -> bytes:
        data = b""
        while True:
            piece = await self._source.read(path, len(data), READ_BYTES)
            data += piece.data
            if not piece.data or len(data) >= min(piece.total_bytes, MAX_SEAL_BYTES):
                return data
