"""The child that verifies for the agent, so that the agent never imports python-tuf.

It has no network: what it wants to read it asks of its parent, over its own standard
output, and what it believes in the end it says there too. It ends with its input.
"""

from __future__ import annotations

import json
import os
import resource
import signal
import sys
from pathlib import Path
from typing import Any, BinaryIO, Final

from bundle.source import NotThere, Piece, SourceUnavailable
from bundle.trust.client import Read, look
from bundle.trust.looks import Look

MEMORY_BYTES: Final = 1024 * 1024 * 1024
NICE: Final = 10


class Parent:
    """What the parent is asked and told: a line of JSON, then bytes if it says so."""

    def __init__(self, asks: BinaryIO, answers: BinaryIO) -> None:
        self._asks = asks
        self._answers = answers

    def job(self) -> dict[str, Any]:
        """What is to be done."""
        return self._line()

    def reader(self, source: int) -> Read:
        """How to read from one of the parent's sources."""

        def read(path: str, offset: int, length: int) -> Piece:
            self._say({"read": [source, path, offset, length]})
            answer = self._line()
            match answer:
                case {"bytes": int() as count, "total": int() as total}:
                    return Piece(self._answers.read(count), total)
                case {"not_there": str() as reason}:
                    raise NotThere(reason)
                case _:
                    raise SourceUnavailable(str(answer.get("unavailable")))

        return read

    def done(self, result: Look) -> None:
        """Say what came of it."""
        target = result.target or b""
        failures = [
            {
                "source": each.source,
                "reason": each.reason,
                "refusal": None if each.refusal is None else each.refusal.__name__,
            }
            for each in result.failures
        ]
        self._say(
            {"source": result.source, "bytes": len(target), "failures": failures},
            target,
        )

    def _say(self, what: dict[str, Any], data: bytes = b"") -> None:
        self._asks.write(json.dumps(what).encode() + b"\n" + data)
        self._asks.flush()

    def _line(self) -> dict[str, Any]:
        line = self._answers.readline()
        if not line:
            sys.exit(1)  # the parent has lost interest, or is gone
        said: dict[str, Any] = json.loads(line)
        return said


def main() -> int:
    """Do the one look that the parent asks for."""
    # Devices are answered meanwhile.
    os.nice(NICE)
    resource.setrlimit(resource.RLIMIT_AS, (MEMORY_BYTES, MEMORY_BYTES))
    parent = Parent(sys.stdout.buffer, sys.stdin.buffer)
    job = parent.job()
    # Where the parent cannot end a hang, the kernel does.
    signal.setitimer(signal.ITIMER_REAL, float(job["deadline_s"]) + 1.0)
    parent.done(
        look(
            Path(job["root"]).read_bytes(),
            Path(job["folder"]),
            [
                (name, parent.reader(number))
                for number, name in enumerate(job["sources"])
            ],
            clock_s=float(job["clock_s"]),
            elapsed_s=float(job["elapsed_s"]),
            target=job["target"],
        )
    )
    return 0


if __name__ == "__main__":
    sys.exit(main())
