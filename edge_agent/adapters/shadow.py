"""A candidate runs in a child process, and says what it would have answered.

A process and not a thread: what it does there, a crash or a hang included, costs the
agent nothing but the process, and the system gives it only the time that nobody else
wants. The agent asks one thing at a time; requests and replies are frames of
MessagePack behind their length.
"""

from __future__ import annotations

import argparse
import asyncio
import os
import signal
import struct
import sys
import time
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any, BinaryIO, Final, Self

import msgpack

from broker.messages import Medium, Tensor
from bundle.manifest import MANIFEST_FILE, parse_manifest
from bundle.recipe import UnreadableImage, decode_image
from edge_agent.adapters.golden import check_names
from edge_agent.adapters.litert import LiteRtModel, RunFailed, load_runtime
from edge_agent.adapters.trial import FAULTS, die_with, limit_memory
from edge_agent.core.answers import Array
from edge_agent.core.arrays import from_wire_tensor
from edge_agent.core.served import Served, rule_of
from edge_agent.core.tensors import BadInput

MAX_FRAME_BYTES: Final = 16 * 1024 * 1024
_LENGTH: Final = struct.Struct("!I")
_NICE: Final = 15
READY: Final = {"ready": True}


class ShadowEnded(Exception):
    """The child is gone, or says nothing any more; says how it ended."""


@dataclass(frozen=True, slots=True)
class Shown:
    """What the candidate made of one request.

    Attributes:
        ms: its run took.
        label: its answer; None when it has no labels, or failed.
        failed: why it has no answer; None when it has one.
    """

    ms: float = 0.0
    label: str | None = None
    failed: str | None = None


class ShadowProcess:
    """One candidate. Use as `async with`.

    Args:
        folder: where its bundle is unpacked, verified.
        threads: for the model's kernels.
        memory_mb: how much memory the child may map.
        timeout_s: for one answer, and for the start.
    """

    def __init__(
        self,
        folder: Path,
        *,
        threads: int = 1,
        memory_mb: int = 1024,
        timeout_s: float = 30.0,
    ) -> None:
        self._folder = folder
        self._threads = threads
        self._memory_mb = memory_mb
        self._timeout_s = timeout_s
        self._child: asyncio.subprocess.Process | None = None

    async def __aenter__(self) -> Self:
        self._child = await asyncio.create_subprocess_exec(
            sys.executable,
            "-P",  # the working folder is nobody's to import from
            "-m",
            "edge_agent.adapters.shadow",
            str(self._folder),
            f"--threads={self._threads}",
            f"--memory-mb={self._memory_mb}",
            f"--parent={os.getpid()}",
            stdin=asyncio.subprocess.PIPE,
            stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.DEVNULL,
            limit=MAX_FRAME_BYTES,
            env={**os.environ, "OPENBLAS_NUM_THREADS": "1"},
        )
        try:
            said = await self._within(self._read())
        except BaseException:
            await self._end()
            raise
        if said != READY:
            await self._end()
            raise ShadowEnded(str(said.get("failed", said)))
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        await self._end()

    @property
    def pid(self) -> int | None:
        """Of the child."""
        return None if self._child is None else self._child.pid

    async def answer(
        self, tensors: dict[str, Tensor] | None, medium: Medium | None
    ) -> Shown:
        """What the candidate says of one request.

        Raises:
            ShadowEnded: it crashed, or was not done in time.
        """
        asked = {
            "medium": None if medium is None else medium.data,
            "tensors": None
            if tensors is None
            else {name: each.model_dump() for name, each in tensors.items()},
        }
        child = self._child
        if child is None or child.stdin is None:
            raise ShadowEnded("it was never started")
        try:
            child.stdin.write(_frame(asked))
            await self._within(child.stdin.drain())
        except ConnectionError:
            raise ShadowEnded(await self._how()) from None
        said = await self._within(self._read())
        try:
            return Shown(**said)
        except TypeError as error:
            raise ShadowEnded(f"it said {str(said)[:80]}") from error

    async def _within(self, what: Any) -> Any:  # noqa: ANN401 - what it awaits
        try:
            async with asyncio.timeout(self._timeout_s):
                return await what
        except TimeoutError:
            raise ShadowEnded(f"it was not done in {self._timeout_s:g} s") from None

    async def _read(self) -> dict[str, Any]:
        child = self._child
        if child is None or child.stdout is None:
            raise ShadowEnded("it was never started")
        try:
            (length,) = _LENGTH.unpack(await child.stdout.readexactly(_LENGTH.size))
            if length > MAX_FRAME_BYTES:
                raise ShadowEnded(f"it said {length} bytes at once")
            said = msgpack.unpackb(await child.stdout.readexactly(length))
        except asyncio.IncompleteReadError:
            raise ShadowEnded(await self._how()) from None
        except ValueError as error:
            raise ShadowEnded(f"it said what is no reply: {error}") from error
        return said if isinstance(said, dict) else {"failed": "no reply"}

    async def _how(self) -> str:
        child = self._child
        if child is None:
            return "it was never started"
        code = await child.wait()
        if code < 0:
            return f"it crashed ({signal.Signals(-code).name})"
        return f"it ended with code {code}"

    async def _end(self) -> None:
        child = self._child
        if child is not None and child.returncode is None:
            child.kill()
            await child.wait()


def _frame(what: object) -> bytes:
    data: bytes = msgpack.packb(what)
    return _LENGTH.pack(len(data)) + data


# --- the child ------------------------------------------------------------------------


def serve(folder: Path, threads: int, asks: BinaryIO, says: BinaryIO) -> None:
    """Answer frames until there are no more."""
    manifest = parse_manifest((folder / MANIFEST_FILE).read_bytes())
    model = LiteRtModel.load(folder / manifest.model_file, threads=threads)
    check_names(manifest, model)
    candidate = Served(manifest, _NoRunner(), {}, rule_of(manifest))

    def say(what: dict[str, Any]) -> None:
        says.write(_frame(what))
        says.flush()

    say(READY)
    while head := asks.read(_LENGTH.size):
        (length,) = _LENGTH.unpack(head)
        say(_shown(candidate, model, msgpack.unpackb(asks.read(length))))


def _shown(
    candidate: Served, model: LiteRtModel, asked: dict[str, Any]
) -> dict[str, Any]:
    try:
        inputs = _inputs(candidate, asked)
        began_s = time.perf_counter()
        outputs = model.run(inputs)
        ms = (time.perf_counter() - began_s) * 1000.0
    except (BadInput, RunFailed, UnreadableImage, ValueError) as error:
        return {"failed": str(error)[:300]}
    judgement = candidate.judge(outputs)
    if judgement is not None and judgement.unusable:
        return {"failed": (judgement.why or "its output is unusable")[:300], "ms": ms}
    return {"ms": ms, "label": candidate.label(judgement)}


def _inputs(candidate: Served, asked: dict[str, Any]) -> dict[str, Array]:
    """The candidate's own inputs, by its own recipe.

    Raises:
        BadInput, UnreadableImage, ValueError: it does not take what was asked.
    """
    manifest = candidate.manifest
    if asked["medium"] is None:
        return {
            name: from_wire_tensor(Tensor.model_validate(each))
            for name, each in asked["tensors"].items()
        }
    if manifest.preprocess is None:
        raise BadInput("the candidate takes tensors, not images")
    most = manifest.limits.max_pixels
    image = decode_image(asked["medium"], manifest.preprocess, max_pixels=most)
    return {manifest.preprocess.input: image}


class _NoRunner:
    """The child runs the model itself."""

    predicted_ms = 0.0

    async def infer(self, inputs: object) -> dict[str, Array]:
        """Never asked."""
        raise NotImplementedError(str(inputs)[:40])

    async def close(self) -> None:
        """There is nothing to close."""


def main() -> int:
    """The child: load the bundle in a folder and answer what comes on standard input."""
    parser = argparse.ArgumentParser(prog="python -m edge_agent.adapters.shadow")
    parser.add_argument("folder", type=Path)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--memory-mb", type=int, default=1024)
    parser.add_argument("--parent", type=int, default=0)
    given = parser.parse_args()
    die_with(given.parent)
    os.nice(_NICE)
    # A native library may print what it likes to where the frames go.
    says = os.fdopen(os.dup(1), "wb")
    os.dup2(2, 1)
    try:
        load_runtime()
        limit_memory(given.memory_mb)
        serve(given.folder, given.threads, sys.stdin.buffer, says)
    except MemoryError:
        failed = f"needs more than {given.memory_mb} MB of memory"
    except FAULTS as error:
        failed = str(error)
    else:
        return 0
    says.write(_frame({"failed": failed}))
    says.flush()
    return 1


if __name__ == "__main__":
    sys.exit(main())
