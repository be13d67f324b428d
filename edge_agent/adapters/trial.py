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
from statistics import median
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
_NICE: Final = 10


class TrialFailed(Exception):
    """The model must not serve; says why, for the operator."""


@dataclass(frozen=True, slots=True)
class TrialReport:
    """What a model did in its trial.

    Attributes:
        examples: golden examples it reproduced; 0 when the bundle has none.
        worst_difference: the greatest absolute difference from a golden output.
        ms: the median time of one run, in the child.
        before_ms: the same of the version that it would replace, measured in turns
            with it; None when there is none, or it cannot be run.
        memory_mb: by how much the child grew at most, to load and run it.
    """

    examples: int
    worst_difference: float
    ms: float
    before_ms: float | None = None
    memory_mb: float = 0.0


@dataclass(frozen=True, slots=True)
class TrialLimits:
    """What a candidate may take.

    Attributes:
        timeout_s: for the whole trial, the child's start included.
        memory_mb: how much memory the child may map for it.
        max_slowdown: its median run, as a multiple of that of the version before.
    """

    timeout_s: float = 60.0
    memory_mb: int = 1024
    max_slowdown: float = 3.0


DEFAULT_LIMITS: Final = TrialLimits()
# A run faster than this is fast enough, whatever the version before did.
ENOUGH_MS: Final = 0.5
_ROUNDS: Final = 5


async def try_bundle(
    folder: Path,
    manifest: Manifest,
    *,
    threads: int = 1,
    limits: TrialLimits = DEFAULT_LIMITS,
    before: Path | None = None,
) -> TrialReport:
    """Try an unpacked bundle in a child process.

    Args:
        folder: where it is unpacked, manifest included.
        manifest: as verified; the child's must be the same.
        threads: for the model's kernels.
        limits: of time and memory.
        before: where the bundle is unpacked that it would replace.

    Raises:
        TrialFailed: the model cannot be loaded or run, does not reproduce its golden
            outputs, crashed, is too slow, or was not done in time.
    """
    timeout_s = limits.timeout_s
    name = f"{manifest.name} {manifest.version}"
    child = await asyncio.create_subprocess_exec(
        sys.executable,
        "-P",  # the working folder is nobody's to import from
        "-m",
        "edge_agent.adapters.trial",
        str(folder),
        f"--threads={threads}",
        f"--memory-mb={limits.memory_mb}",
        *(() if before is None else (f"--before={before}",)),
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
    report = _read_report(name, child.returncode or 0, said, complained)
    check_speed(name, report, limits.max_slowdown)
    return report


def check_speed(name: str, report: TrialReport, max_slowdown: float) -> None:
    """Return if a candidate is not much slower than what it would replace.

    Raises:
        TrialFailed: its median run is over `max_slowdown` times the other's.
    """
    if report.before_ms is None or report.ms <= ENOUGH_MS:
        return
    if report.ms > max_slowdown * report.before_ms:
        raise TrialFailed(
            f"{name} takes {report.ms:.3g} ms for one run, the version before it "
            f"{report.before_ms:.3g} ms: {max_slowdown:g} times that is allowed"
        )


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


def die_with(parent: int) -> None:
    """No trial outlives its agent, not even an agent that was killed."""
    ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, int(signal.SIGKILL))
    if parent and os.getppid() != parent:
        # It died before the line above.
        sys.exit(1)


def limit_memory(megabytes: int) -> None:
    """Let this process map so much more than it does, and no more."""
    # What the interpreter and its libraries map already is not the model's.
    mapped = (
        int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
    )
    most = mapped + megabytes * _MEGABYTE
    # Only the soft limit: what is measured beside the candidate is not the candidate's.
    _, hard = resource.getrlimit(resource.RLIMIT_AS)
    resource.setrlimit(resource.RLIMIT_AS, (most, hard))


def _limit_memory_no_more() -> None:
    _, hard = resource.getrlimit(resource.RLIMIT_AS)
    resource.setrlimit(resource.RLIMIT_AS, (hard, hard))


def _peak_mb() -> float:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024.0


def run_trial(folder: Path, *, threads: int, before: Path | None = None) -> TrialReport:
    """Try an unpacked bundle in this very process, as the child does.

    Args:
        folder: where it is unpacked.
        threads: for the model's kernels.
        before: where the bundle is unpacked that it would replace.

    Raises:
        BadInput, GoldenMismatch, ManifestError, ModelUnsupported, OSError, RunFailed:
            the model must not serve; says why.
    """
    peak_mb = _peak_mb()
    manifest = parse_manifest((folder / MANIFEST_FILE).read_bytes())
    model = LiteRtModel.load(folder / manifest.model_file, threads=threads)
    check_names(manifest, model)
    ms = ModelRunner(model).measure()
    examples, worst = 0, 0.0
    if manifest.golden is not None:
        examples, worst = reproduce(model, folder, manifest.golden)
    grew_mb = _peak_mb() - peak_mb
    before_ms = None
    if before is not None:
        _limit_memory_no_more()
        ms, before_ms = _race(model, before, threads, ms)
    return TrialReport(examples, worst, ms, before_ms, grew_mb)


def _race(
    model: LiteRtModel, before: Path, threads: int, ms: float
) -> tuple[float, float | None]:
    """Median run times of the candidate and of what it would replace, by turns.

    So that a busy machine is as slow for the one as for the other.
    """
    try:
        manifest = parse_manifest((before / MANIFEST_FILE).read_bytes())
        path = before / manifest.model_file
        rivals = [
            ModelRunner(each)
            for each in (model, LiteRtModel.load(path, threads=threads))
        ]
        rounds = [[each.measure() for each in rivals] for _ in range(_ROUNDS)]
    except (ManifestError, ModelUnsupported, OSError):
        return ms, None  # What it would replace says nothing of the candidate.
    new, old = (median(times) for times in zip(*rounds, strict=True))
    return new, old


def main() -> int:
    """The child: try the bundle in a folder and print one line of JSON."""
    parser = argparse.ArgumentParser(prog="python -m edge_agent.adapters.trial")
    parser.add_argument("folder", type=Path)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--memory-mb", type=int, default=1024)
    parser.add_argument("--timeout-s", type=float, default=60.0)
    parser.add_argument("--before", type=Path)
    parser.add_argument("--parent", type=int, default=0)
    given = parser.parse_args()
    die_with(given.parent)
    # Devices are answered meanwhile; what is timed here is timed by turns.
    os.nice(_NICE)
    # Where the parent cannot end a hang, the kernel does; the default action of this
    # signal needs no Python to run.
    signal.setitimer(signal.ITIMER_REAL, given.timeout_s + 1.0)
    try:
        load_runtime()
        limit_memory(given.memory_mb)
        report: dict[str, Any] = asdict(
            run_trial(given.folder, threads=given.threads, before=given.before)
        )
    except MemoryError:
        report = {"failed": f"needs more than {given.memory_mb} MB of memory"}
    except FAULTS as error:
        report = {"failed": str(error)}
    sys.stdout.write(json.dumps(report) + "\n")
    return 1 if "failed" in report else 0


if __name__ == "__main__":
    sys.exit(main())
