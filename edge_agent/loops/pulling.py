"""Bring a sealed bundle to this disk: by a delta where one is offered, else in full.

What comes out has the digest of the seal, whatever the sources said. A pull that is
interrupted keeps what it has: the next one goes on from there.
"""

from __future__ import annotations

import asyncio
import hashlib
import random
from collections.abc import Callable, Sequence
from contextlib import closing
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

import structlog

from broker.messages import UpdatePolicy
from bundle import layout
from bundle.delta.offer import MAX_OFFER_BYTES, DeltaRejected, Offer, read_offer
from bundle.seal import Seal, SealRejected, verify_packed
from bundle.source import Source
from edge_agent.adapters.part_file import PartFile, make_by_delta
from edge_agent.core.chunks import Chunks
from edge_agent.loops.asking import (
    BudgetSpent,
    NoSource,
    PullInterrupted,
    Superseded,
    read_small,
)
from edge_agent.loops.fetching import Fetch, FetchSettings, Means
from edge_agent.loops.metering import Metering
from edge_agent.loops.wave import Sharing

__all__ = [
    "BudgetSpent",
    "FetchSettings",
    "PullInterrupted",
    "PullSettings",
    "Puller",
    "Superseded",
]

log = structlog.get_logger(__name__)

# Of what is missing; a larger delta is not worth its work.
DELTA_SHARE: Final = 0.7
DELTA_SUFFIX: Final = ".delta"
REFUSED_SUFFIX: Final = ".nodelta"

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
    """Pulls bundles into one folder; different ones may be pulled at once.

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
        """Where the pulled bundle will lie; what belongs to it begins as this does."""
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
        dest = self.dest(seal)
        if await asyncio.to_thread(_is_whole, dest, seal):
            return dest
        await asyncio.to_thread(self._folder.mkdir, parents=True, exist_ok=True)
        # A device that may take only so much a second cannot choose what it hears.
        shares = policy.shared and policy.bytes_per_s is None
        wanted = Chunks.of(seal)
        with closing(PartFile(dest, wanted)) as part:
            await asyncio.to_thread(part.open)
            means = Means(
                self._sources,
                self._settings.fetch,
                self._metering.meter(policy.bytes_per_s, policy.bytes_per_day),
                superseded,
                self._rng,
                self._sharing if shares else None,
            )
            pull = _Pull(dest, part, means, progress)
            try:
                if part.missing():
                    await asyncio.sleep(self._rng.uniform(0, self._settings.jitter_s))
                    await pull.run(wanted, base)
                await asyncio.to_thread(part.finish)
            finally:
                await asyncio.to_thread(self._metering.save)
        if not await asyncio.to_thread(_is_whole, dest, seal):
            # Every chunk was right when it was written.
            dest.unlink(missing_ok=True)
            raise PullInterrupted(f"the disk does not keep what is written to {dest}")
        await asyncio.to_thread(_clear, dest)
        return dest


class _Pull:
    """One bundle on its way."""

    def __init__(
        self,
        dest: Path,
        part: PartFile,
        means: Means,
        progress: Progress,
    ) -> None:
        self._dest = dest
        self._part = part
        self._means = means
        self._progress = progress

    async def run(self, wanted: Chunks, base: Path | None) -> None:
        """Fill the unfinished file."""
        if base is not None:
            await asyncio.to_thread(_take_from, self._part, base)
            if self._part.missing():
                await self._try_delta(wanted, base)
        if self._part.missing():
            await self._fetch(
                wanted,
                self._part,
                lambda: self._progress(self._part.held_bytes, wanted.size_bytes),
            )

    async def _try_delta(self, wanted: Chunks, base: Path) -> None:
        """Fill the file by a delta if there is one; what goes wrong leaves it to be."""
        try:
            await self._by_delta(wanted, base)
        except (Superseded, BudgetSpent):
            raise
        except (DeltaRejected, PullInterrupted, ImportError, OSError) as error:
            # The whole file always does. ImportError: no zstd on this machine.
            # OSError: the base; if it is the disk, the whole file will meet it too.
            # PullInterrupted: a source that offers what it never gives would hold up
            # the pull for ever; what came of the delta is kept.
            log.warning("delta_refused", bundle=self._dest.name, reason=str(error))

    async def _by_delta(self, wanted: Chunks, base: Path) -> None:
        missing = wanted.size_bytes - self._part.held_bytes
        base_sha256 = await asyncio.to_thread(_sha256, base)
        offer = await self._offer(layout.delta_offer(base_sha256, wanted.sha256))
        if offer is None or offer.size_bytes > DELTA_SHARE * missing:
            return
        refused = self._dest.with_name(self._dest.name + REFUSED_SUFFIX)
        if await asyncio.to_thread(_says, refused, offer.sha256):
            return  # It was tried before this program was started again.
        delta = self._dest.with_name(self._dest.name + DELTA_SUFFIX)
        chunks = Chunks.of(offer)
        try:
            if not await asyncio.to_thread(_is, delta, offer.sha256):
                with closing(PartFile(delta, chunks)) as part:
                    await asyncio.to_thread(part.open)
                    # Of what is shown, the delta is but the way.
                    await self._fetch(chunks, part, lambda: None)
                    await asyncio.to_thread(part.finish)
            log.info("delta_pulled", bundle=self._dest.name, size=offer.size_bytes)
            await asyncio.to_thread(
                make_by_delta, self._part, wanted, base, base_sha256, delta
            )
        except (DeltaRejected, NoSource):
            await asyncio.to_thread(refused.write_text, offer.sha256)
            raise
        finally:
            if not self._part.missing() or refused.exists():
                delta.unlink(missing_ok=True)
        self._progress(self._part.held_bytes, wanted.size_bytes)

    async def _offer(self, path: str) -> Offer | None:
        data = await read_small(self._means.asking(), path, MAX_OFFER_BYTES)
        if data is None:
            return None
        self._means.meter.charge(len(data))
        offer = read_offer(data)
        return None if offer.kind == "full" else offer

    async def _fetch(
        self, chunks: Chunks, part: PartFile, arrived: Callable[[], None]
    ) -> None:
        await Fetch(chunks, part, self._means, arrived=arrived).run()


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


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _is(path: Path, sha256: str) -> bool:
    try:
        return _sha256(path) == sha256
    except OSError:
        return False


def _says(path: Path, text: str) -> bool:
    try:
        return path.read_text() == text
    except (OSError, ValueError):
        return False


def _clear(dest: Path) -> None:
    """Remove what helped to pull a bundle that is whole."""
    for suffix in (DELTA_SUFFIX, REFUSED_SUFFIX):
        dest.with_name(dest.name + suffix).unlink(missing_ok=True)
    PartFile.drop(dest.with_name(dest.name + DELTA_SUFFIX))
