"""The peers' own environment, `.venv-bench`, made from the locked requirements."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from typing import Final

from benchmarks.limits import progress
from benchmarks.peers.contenders import ROOT

LOCK: Final = ROOT / "requirements" / "bench.lock"
MOST_S: Final = 900.0


class NoEnvironment(Exception):
    """It could not be made; says why."""


def python(folder: Path | None = None) -> Path:
    """Its interpreter; the environment is made when it is missing or out of date.

    Args:
        folder: where it is; by default `.venv-bench`, or what OVERSPILL_BENCH_VENV names.

    Raises:
        NoEnvironment: the packages could not be installed.
    """
    where = folder or Path(os.environ.get("OVERSPILL_BENCH_VENV", ROOT / ".venv-bench"))
    where = where.absolute()
    program, stamp = where / "bin" / "python", where / ".made-from"
    if stamp.exists() and stamp.read_bytes() == LOCK.read_bytes():
        return program
    progress(f"installing the peers into {where}, from {LOCK.name}")
    uv = Path(sys.executable).parent / "uv"
    _run(str(uv), "venv", "--quiet", "--clear", "--python", sys.executable, str(where))
    install = (str(uv), "pip", "install", "--quiet", "--python", str(program))
    _run(*install, "--require-hashes", "-r", str(LOCK))
    stamp.write_bytes(LOCK.read_bytes())
    return program


def versions(program: Path, distributions: tuple[str, ...]) -> dict[str, str]:
    """The installed version of each, or that it is missing."""
    code = (
        "import importlib.metadata as m, sys\n"
        "for name in sys.argv[1:]:\n"
        "    try: print(name, m.version(name))\n"
        "    except m.PackageNotFoundError: print(name, 'missing')"
    )
    said = subprocess.run(
        [str(program), "-c", code, *distributions],
        check=True,
        capture_output=True,
        text=True,
        timeout=60,
    ).stdout
    return dict(line.split(" ", 1) for line in said.splitlines())


def _run(*command: str) -> None:
    try:
        subprocess.run(
            command, check=True, timeout=MOST_S, capture_output=True, text=True
        )
    except subprocess.CalledProcessError as error:
        raise NoEnvironment(f"{command[0]} failed: {error.stderr.strip()}") from error
    except (OSError, subprocess.TimeoutExpired) as error:
        raise NoEnvironment(f"{command[0]}: {error}") from error


if __name__ == "__main__":
    print(python())
