"""A new model runs in a child process first. Whatever it does there, the agent lives.

A corrupt file may crash the interpreter, hang it or eat all memory, and none of that
can be caught in process. The child loads the bundle's model, runs its golden inputs
one at a time, compares the outputs and prints what it saw as one line of JSON.
"""

from __future__ import annotations

import argparse
import asyncio
import ctypes
import json
import os
import resource
import signal
import sys
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Final

from bundle.manifest import MANIFEST_FILE, Manifest, ManifestError, parse_manifest
from edge_agent.adapters.golden import GoldenMismatch, check_names, reproduce
from edge_agent.adapters.litert import (
    LiteRtModel,
    ModelUnsupported,
    RunFailed,
    load_runtime,
)
from edge_agent.adapters.model_runner import ModelRunner
from edge_agent.core.tensors import BadInput

FAULTS: Final = (
    BadInput,
    GoldenMismatch,
    ManifestError,
    ModelUnsupported,
    OSError,
    RunFailed,
)
_MEGABYTE: Final = 1024 * 1024
_PR_SET_PDEATHSIG: Final = 1


class TrialFailed(Exception):
    """The model must not serve; says why, for the operator."""


@dataclass(frozen=True, slots=True)
class TrialReport:
    """What a model did in its trial.

    Attributes:
        examples: golden examples it reproduced; 0 when the bundle has none.
        worst_difference: the greatest absolute difference from a golden output.
        ms: the median time of one run, in the child.
    """

    examples: int
    worst_difference: float
    ms: float


async def try_bundle(
    folder: Path,
    manifest: Manifest,
    *,
    threads: int = 1,
    timeout_s: float = 60.0,
    memory_mb: int = 1024,
) -> TrialReport:
    """Try an unpacked bundle in a child process.

    Args:
        folder: where it is unpacked, manifest included.
        manifest: as verified; the child's must be the same.
        threads: for the model's kernels.
        timeout_s: for the whole trial, the child's start included.
        memory_mb: how much memory the child may map.

    Raises:
        TrialFailed: the model cannot be loaded or run, does not reproduce its golden
            outputs, crashed, or was not done in time.
    """
    name = f"{manifest.name} {manifest.version}"
    child = await asyncio.create_subprocess_exec(
        sys.executable,
        "-P",  # the working folder is nobody's to import from
        "-m",
        "edge_agent.adapters.trial",
        str(folder),
        f"--threads={threads}",
        f"--memory-mb={memory_mb}",
        f"--timeout-s={timeout_s}",
        f"--parent={os.getpid()}",
        stdin=asyncio.subprocess.DEVNULL,
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.PIPE,
        # Threads of a linear algebra that is not used here would only map memory.
        env={**os.environ, "OPENBLAS_NUM_THREADS": "1"},
    )
    try:
        async with asyncio.timeout(timeout_s):
            said, complained = await child.communicate()
    except TimeoutError:
        raise TrialFailed(f"{name} was not done in {timeout_s:g} s") from None
    finally:
        # Also when this task is cancelled: no child outlives the agent's interest.
        if child.returncode is None:
            child.kill()
            await child.wait()
    return _read_report(name, child.returncode or 0, said, complained)


def _read_report(
    name: str, returncode: int, said: bytes, complained: bytes
) -> TrialReport:
    if returncode < 0:
        killed_by = signal.Signals(-returncode).name
        raise TrialFailed(f"{name} crashed its trial ({killed_by})")
    # The last line, because a native library may print what it likes before it.
    last = said.strip().rpartition(b"\n")[2]
    try:
        report = json.loads(last)
        failed = report.get("failed")
        if failed is None:
            return TrialReport(**report)
    except (ValueError, TypeError, AttributeError) as error:
        complaint = complained.decode(errors="replace").strip()[-500:]
        raise TrialFailed(
            f"{name} ended its trial with code {returncode} and no report: {complaint}"
        ) from error
    raise TrialFailed(f"{name}: {failed}")


def _die_with(parent: int) -> None:
    """No trial outlives its agent, not even an agent that was killed."""
    ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, int(signal.SIGKILL))
    if parent and os.getppid() != parent:
        # It died before the line above.
        sys.exit(1)


def _limit_memory(megabytes: int) -> None:
    # What the interpreter and its libraries map already is not the model's.
    mapped = (
        int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
    )
    most = mapped + megabytes * _MEGABYTE
    resource.setrlimit(resource.RLIMIT_AS, (most, most))


def run_trial(folder: Path, *, threads: int) -> TrialReport:
    """Try an unpacked bundle in this very process, as the child does.

    Raises:
        BadInput, GoldenMismatch, ManifestError, ModelUnsupported, OSError, RunFailed:
            the model must not serve; says why.
    """
    manifest = parse_manifest((folder / MANIFEST_FILE).read_bytes())
    model = LiteRtModel.load(folder / manifest.model_file, threads=threads)
    check_names(manifest, model)
    ms = ModelRunner(model).measure()
    if manifest.golden is None:
        return TrialReport(0, 0.0, ms)
    examples, worst = reproduce(model, folder, manifest.golden)
    return TrialReport(examples, worst, ms)


def main() -> int:
    """The child: try the bundle in a folder and print one line of JSON."""
    parser = argparse.ArgumentParser(prog="python -m edge_agent.adapters.trial")
    parser.add_argument("folder", type=Path)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--memory-mb", type=int, default=1024)
    parser.add_argument("--timeout-s", type=float, default=60.0)
    parser.add_argument("--parent", type=int, default=0)
    given = parser.parse_args()
    _die_with(given.parent)
    # Where the parent cannot end a hang, the kernel does; the default action of this
    # signal needs no Python to run.
    signal.setitimer(signal.ITIMER_REAL, given.timeout_s + 1.0)
    try:
        load_runtime()
        _limit_memory(given.memory_mb)
        report: dict[str, Any] = asdict(run_trial(given.folder, threads=given.threads))
    except MemoryError:
        report = {"failed": f"needs more than {given.memory_mb} MB of memory"}
    except FAULTS as error:
        report = {"failed": str(error)}
    sys.stdout.write(json.dumps(report) + "\n")
    return 1 if "failed" in report else 0


if __name__ == "__main__":
    sys.exit(main())
