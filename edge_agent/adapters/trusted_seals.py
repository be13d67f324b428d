"""Seals that the fleet's keys have signed, from sources that nobody trusts.

The verifying is done in a child process that lives for one look: python-tuf would
cost the agent 27 MB for the rest of its life, and a look is rare. The child reads
through its parent, which has the connections.
"""

from __future__ import annotations

import asyncio
import json
import os
import sys
from collections.abc import Awaitable, Callable, Sequence
from pathlib import Path
from typing import Any, Final

import structlog

from bundle import layout
from bundle.seal import MAX_SEAL_BYTES, Seal, SealRejected, check_names, read_seal
from bundle.source import NotThere, Piece, Source, SourceUnavailable
from bundle.trust.errors import NotSigned, Stale, Untrusted
from bundle.trust.looks import Failure, Look
from lifecycle.clock import Clock, SystemClock

log = structlog.get_logger(__name__)

DEADLINE_S: Final = 60.0
FRESH_S: Final = 30.0
MAX_READ_BYTES: Final = 64 * 1024
MAX_LINE_BYTES: Final = 64 * 1024
READABLE: Final = (f"{layout.METADATA}/", f"{layout.TARGETS}/")
REFUSALS: Final = {each.__name__: each for each in (Untrusted, Stale, NotSigned)}
# What holds still while one look follows another: which roots and timestamp there are.
MOVING: Final = (f"{layout.METADATA}/timestamp.json", ".root.json")


class TrustedSeals:
    """What the fleet's keys say of models, as far as this agent has seen.

    Args:
        root_json: the root that was baked in at provisioning.
        folder: where verified metadata and the floor of time are kept.
        sources: whom to ask, the preferred first.
        clock: its wall time judges expiry, together with the floor.
        deadline_s: for one look as a whole, whatever the sources do.
        fresh_s: so long after a refresh `seal_for` does not ask again what is newest.
    """

    def __init__(
        self,
        root_json: Path,
        folder: Path,
        sources: Sequence[Source],
        *,
        clock: Clock | None = None,
        deadline_s: float = DEADLINE_S,
        fresh_s: float = FRESH_S,
    ) -> None:
        self._root = root_json
        self._folder = folder
        self._sources = tuple(sources)
        self._clock = clock or SystemClock()
        self._deadline_s = deadline_s
        self._fresh_s = fresh_s
        self._alone = asyncio.Lock()
        self._looked_s = self._clock.boottime()
        self._fresh: _Answers | None = None

    async def refresh(self) -> None:
        """Learn what is signed now.

        Raises:
            Untrusted: some source answered, and none told what the keys have signed:
                `Stale` when it had merely expired.
            SourceUnavailable: no source could be asked, or not in time.
            OSError: the folder cannot be written.
        """
        async with self._alone:
            self._fresh = None
            answers = _Answers(self._sources)
            await self._look(answers, None)
            answers.settled_s = self._clock.boottime()
            self._fresh = answers

    async def seal_for(self, model: str, version: str, epoch: int) -> Seal:
        """The seal of one version in one epoch, signed by the threshold of keys.

        Refreshes by itself when the last refresh is old.

        Raises:
            NotSigned: the keys name no such version in this epoch.
            Untrusted, SourceUnavailable, OSError: as `refresh`.
            SealRejected: what was signed is no seal, or seals something else.
        """
        target = layout.seal_target(model, version, epoch)
        async with self._alone:
            answers = self._fresh
            if answers is None or not answers.fresh(
                self._clock.boottime(), self._fresh_s
            ):
                answers = _Answers(self._sources)
            data = await self._look(answers, target)
        if data is None:
            raise SealRejected(f"no seal came for {model} {version}")
        return check_names(read_seal(data), model, version, epoch)

    async def _look(self, answers: _Answers, target: str | None) -> bytes | None:
        """Have a child look, and read for it."""
        now_s = self._clock.boottime()
        job = {
            "root": str(self._root),
            "folder": str(self._folder),
            "sources": [each.name for each in self._sources],
            "clock_s": self._clock.wall_ms() / 1000.0,
            "elapsed_s": now_s - self._looked_s,
            "deadline_s": self._deadline_s,
            "target": target,
        }
        child = await asyncio.create_subprocess_exec(
            sys.executable,
            "-P",  # the working folder is nobody's to import from
            "-m",
            "edge_agent.adapters.trust_child",
            stdin=asyncio.subprocess.PIPE,
            stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.PIPE,
            limit=MAX_LINE_BYTES,
            env={**os.environ, "OPENBLAS_NUM_THREADS": "1"},
        )
        try:
            turns = _Turns(answers.read, len(self._sources), self._deadline_s)
            async with asyncio.timeout(self._deadline_s):
                result, data = await _converse(child, job, turns.read)
        except TimeoutError:
            raise SourceUnavailable(
                f"trust was not refreshed in {self._deadline_s:g} s"
            ) from None
        finally:
            # Also when this task is cancelled: no child outlives the agent's interest.
            if child.returncode is None:
                child.kill()
                await child.wait()
        # The child has written the floor of time up to here.
        self._looked_s = now_s
        _read_look(result).check(answers.retry_after_s)
        return data if target is not None else None


class _Answers:
    """What sources answer, and what they said of the newest while that is fresh."""

    def __init__(self, sources: Sequence[Source]) -> None:
        self._sources = sources
        self._said: dict[tuple[int, str, int], Piece | NotThere] = {}
        self.settled_s: float | None = None
        self.retry_after_s: float | None = None

    def fresh(self, now_s: float, for_s: float) -> bool:
        """Whether what was said is still worth repeating."""
        return self.settled_s is not None and now_s - self.settled_s < for_s

    async def read(self, source: int, path: str, offset: int, length: int) -> Piece:
        """Ask one source, or repeat what it said.

        Raises:
            NotThere, SourceUnavailable: as it says.
        """
        asked = (source, path, offset)
        said = self._said.get(asked)
        if said is None:
            said = await self._ask(source, path, offset, length)
            if path.endswith(MOVING):
                self._said[asked] = said
        if isinstance(said, NotThere):
            raise said
        return said

    async def _ask(
        self, source: int, path: str, offset: int, length: int
    ) -> Piece | NotThere:
        try:
            return await self._sources[source].read(path, offset, length)
        except NotThere as error:
            return error
        except SourceUnavailable as error:
            self.retry_after_s = error.retry_after_s
            raise


class _Turns:
    """Shares a look's time out, so that no slow source leaves none for the next.

    Args:
        read: asks one of the sources.
        sources: how many there are; what is left is the last one's.
        deadline_s: of the look.
    """

    def __init__(
        self,
        read: Callable[[int, str, int, int], Awaitable[Piece]],
        sources: int,
        deadline_s: float,
    ) -> None:
        self._read = read
        self._share_s = deadline_s / max(1, sources)
        self._left_s = [self._share_s] * (sources - 1)

    async def read(self, source: int, path: str, offset: int, length: int) -> Piece:
        """Ask one source within what it has left.

        Raises:
            NotThere, SourceUnavailable: as it says, or it has used up its time.
        """
        if source >= len(self._left_s):
            return await self._read(source, path, offset, length)
        loop = asyncio.get_running_loop()
        began_s = loop.time()
        try:
            async with asyncio.timeout(max(0.0, self._left_s[source])):
                return await self._read(source, path, offset, length)
        except TimeoutError:
            raise SourceUnavailable(
                f"its answers took over {self._share_s:g} s"
            ) from None
        finally:
            self._left_s[source] -= loop.time() - began_s


async def _converse(
    child: asyncio.subprocess.Process,
    job: dict[str, Any],
    read: Callable[[int, str, int, int], Awaitable[Piece]],
) -> tuple[dict[str, Any], bytes]:
    """Give the child its job, read for it, and hear what came of it.

    Raises:
        SourceUnavailable: the child failed; nothing was learned.
    """
    asks, answers = child.stdout, child.stdin
    if asks is None or answers is None:
        raise SourceUnavailable("the child that verifies has no pipes")
    try:
        answers.write(json.dumps(job).encode() + b"\n")
        while True:
            await answers.drain()
            said = json.loads(await asks.readline() or b"null")
            match said:
                case {
                    "read": [int() as source, str() as path, int() as at, int() as n]
                }:
                    answers.write(await _answer(read, source, path, at, n))
                case {"bytes": int() as count} if count <= MAX_SEAL_BYTES:
                    return said, await asks.readexactly(count)
                case _:
                    break
    except (ValueError, ConnectionError, asyncio.IncompleteReadError) as error:
        log.warning("trust_child_broke_off", error=repr(error))
    raise SourceUnavailable(
        f"the child that verifies failed: {await _complaint(child)}"
    )


async def _answer(
    read: Callable[[int, str, int, int], Awaitable[Piece]],
    source: int,
    path: str,
    offset: int,
    length: int,
) -> bytes:
    if not path.startswith(READABLE):
        return _line({"not_there": f"{path[:80]} is no trust metadata"})
    try:
        piece = await read(source, path, offset, min(length, MAX_READ_BYTES))
    except NotThere as error:
        return _line({"not_there": str(error)})
    except SourceUnavailable as error:
        return _line({"unavailable": str(error)})
    data = piece.data[:length]
    return _line({"bytes": len(data), "total": piece.total_bytes}) + data


def _line(what: dict[str, Any]) -> bytes:
    return json.dumps(what).encode() + b"\n"


async def _complaint(child: asyncio.subprocess.Process) -> str:
    """The last line of what it complained of."""
    if child.stdin is not None:
        child.stdin.close()
    data = b"" if child.stderr is None else await child.stderr.read(MAX_LINE_BYTES)
    last = data.decode(errors="replace").strip().rpartition("\n")[2]
    return last[-300:] or "it said nothing"


def _read_look(said: dict[str, Any]) -> Look:
    failures = [
        Failure(each["source"], each["reason"], REFUSALS.get(each["refusal"]))
        for each in said["failures"]
    ]
    for each in failures:
        log.warning("source_passed_over", source=each.source, reason=each.reason)
    return Look(said["source"], None, failures)
