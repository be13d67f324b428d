"""Bring a sealed bundle to this disk: by a delta where one is offered, else in full.

What comes out has the digest of the seal, whatever the sources said. A pull that is
interrupted keeps what it has: the next one goes on from there.
"""

from __future__ import annotations

import asyncio
import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import structlog

from broker.messages import UpdatePolicy
from bundle.seal import Seal, SealRejected, verify_packed
from bundle.source import Source
from edge_agent.adapters.part_file import PartFile
from edge_agent.core.chunks import Chunks
from edge_agent.loops.fetching import (
    Fetch,
    FetchSettings,
    PullInterrupted,
    Sharing,
)
from edge_agent.loops.metering import Metering

log = structlog.get_logger(__name__)

Progress = Callable[[int, int], None]


@dataclass(frozen=True, slots=True)
class PullSettings:
    """How bundles are pulled.

    Attributes:
        jitter_s: a pull begins at a moment within this, drawn by chance, so that a
            fleet that is told at once does not ask at once.
    """

    fetch: FetchSettings = field(default_factory=FetchSettings)
    jitter_s: float = 0.0


class Puller:
    """Pulls bundles into one folder, one at a time.

    Args:
        sources: where to ask, the preferred first.
        folder: where unfinished and finished pulls lie; made when needed.
        metering: holds the day's budget and the rate.
        sharing: where a wave's transfer is heard; None: always alone.
    """

    def __init__(
        self,
        sources: Sequence[Source],
        folder: Path,
        *,
        metering: Metering,
        rng: random.Random,
        settings: PullSettings | None = None,
        sharing: Sharing | None = None,
    ) -> None:
        self._sources = tuple(sources)
        self._folder = folder
        self._metering = metering
        self._rng = rng
        self._settings = settings or PullSettings()
        self._sharing = sharing

    def dest(self, seal: Seal) -> Path:
        """Where the pulled bundle will lie."""
        # No name or version holds a plus sign, so none looks like two of another's.
        return self._folder / f"{seal.name}+{seal.version}+{seal.sha256[:16]}"

    async def pull(
        self,
        seal: Seal,
        base: Path | None,
        *,
        policy: UpdatePolicy,
        superseded: Callable[[], bool],
        progress: Progress = lambda _done, _total: None,
    ) -> Path:
        """The packed bundle that was sealed, on this disk and synced.

        Args:
            seal: verified by the caller; what comes is held to it.
            base: a packed bundle that is already here, for deltas and equal chunks.
            policy: rate, budget and whether chunks may be heard with the wave.
            superseded: asked between chunks; True leaves off.
            progress: told of bytes that are here, and of all.

        Raises:
            PullInterrupted: not now; what came is kept. `Superseded` and `BudgetSpent`
                are two of them.
            OSError: the disk is full, or fails.
        """
        dest, chunks = self.dest(seal), Chunks.of(seal)
        if await asyncio.to_thread(_is_whole, dest, seal):
            return dest
        await asyncio.to_thread(self._folder.mkdir, parents=True, exist_ok=True)
        self._metering.limit(
            bytes_per_s=policy.bytes_per_s, bytes_per_day=policy.bytes_per_day
        )
        part = await asyncio.to_thread(PartFile(dest, chunks).open)
        try:
            if base is not None:
                await asyncio.to_thread(_take_from, part, base)
            if part.missing():
                await asyncio.sleep(self._rng.uniform(0.0, self._settings.jitter_s))
                await self._fetch(chunks, part, policy, superseded, progress)
            await asyncio.to_thread(part.finish)
        finally:
            part.close()
            await asyncio.to_thread(self._metering.save)
        if not await asyncio.to_thread(_is_whole, dest, seal):
            # Every chunk was right when it was written.
            dest.unlink(missing_ok=True)
            raise PullInterrupted(f"the disk does not keep what is written to {dest}")
        return dest

    async def _fetch(
        self,
        chunks: Chunks,
        part: PartFile,
        policy: UpdatePolicy,
        superseded: Callable[[], bool],
        progress: Progress,
    ) -> None:
        # A device that may take only so much a second cannot choose what it hears.
        shares = policy.shared and policy.bytes_per_s is None

        def arrived() -> None:
            progress(part.held_bytes, chunks.size_bytes)

        await Fetch(
            chunks,
            part,
            sources=self._sources,
            settings=self._settings.fetch,
            meter=self._metering,
            superseded=superseded,
            rng=self._rng,
            sharing=self._sharing if shares else None,
            arrived=arrived,
        ).run()


def _is_whole(path: Path, seal: Seal) -> bool:
    try:
        verify_packed(path, seal)
    except (SealRejected, OSError):
        return False
    return True


def _take_from(part: PartFile, base: Path) -> None:
    try:
        taken = part.take_from(base)
    except OSError as error:
        log.warning("base_unreadable", path=str(base), error=str(error))
    else:
        if taken:
            log.info("chunks_here_already", chunks=taken)
