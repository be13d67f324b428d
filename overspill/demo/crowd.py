"""Others who ask the same pool, by `overspill load`: first what it can do, then more."""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from typing import Any, Final

from overspill.demo.overload import Crowd
from overspill.example import Example
from overspill.program import CommandFailed, environment, python, run_command

# Enough for full batches on every worker, and a second or two on two slow cores.
BURST_REQUESTS: Final = 500
BURST_RATE: Final = 2_000.0
BURST_DEADLINE_S: Final = 20.0
# The line grows by nearly a second each second.
TIMES_TOO_MANY: Final = 1.8
FLOOD_S: Final = 8.0
FLOOD_DEADLINE_S: Final = 4.0
MOST_REQUESTS: Final = 40_000
# What the broker itself drops at its deadline is told to nobody.
LOST_AFTER_S: Final = 1.0
TOGETHER: Final = 8
# The generator may be late on a busy machine: only the load matters here.
GOOD_ENOUGH: Final = (0, 3)


@dataclass(frozen=True, slots=True)
class PoolLoad:
    """Sends requests straight into the queue of the example's model.

    Attributes:
        url: RabbitMQ, password included, as one who may write requests.
        example: whose images are sent.
    """

    url: str = field(repr=False)
    example: Example

    async def capacity_per_s(self) -> float:
        """How many requests a second the pool does now, by a burst of them.

        Raises:
            CommandFailed: it did none.
        """
        ran = await self._load(
            *("--rate", f"{BURST_RATE:.0f}/s", "--requests", str(BURST_REQUESTS)),
            *("--deadline", f"{BURST_DEADLINE_S:g}s"),
        )
        return float(ran["throughput_per_s"])

    async def flood(self, capacity_per_s: float) -> Crowd:
        """Ask for more than the pool can do, for a while.

        Raises:
            CommandFailed: nothing was answered.
        """
        rate = TIMES_TOO_MANY * capacity_per_s
        most = min(MOST_REQUESTS, max(1, round(rate * FLOOD_S)))
        ran = await self._load(
            *("--rate", f"{rate:.1f}/s", "--requests", str(most)),
            *("--for", f"{FLOOD_S:g}s", "--deadline", f"{FLOOD_DEADLINE_S:g}s"),
        )
        return Crowd(
            capacity_per_s=round(capacity_per_s, 1),
            rate_per_s=round(rate, 1),
            requests=ran["offered"],
            answered=ran["answered"],
            expired=ran["expired"],
            shed=ran["overloaded"],
        )

    async def _load(self, *words: str) -> dict[str, Any]:
        command = python(
            "overspill",
            *("load", "--via", "queue", "--model", self.example.model),
            *("--payload", f"{self.example.images}#images"),
            *("--arrivals", "constant", "--envelope", str(TOGETHER)),
            *("--lost-after", f"{LOST_AFTER_S:g}s", "--json", "-"),
            *words,
        )
        # Not on the command line, where every user of the machine can read it.
        variables = environment(OVERSPILL_LOAD_URL=self.url)
        code, out, err = await run_command(command, variables)
        if code not in GOOD_ENOUGH:
            raise CommandFailed(f"`overspill load` failed: {err.strip()}")
        (ran,) = json.loads(out)["runs"]
        found: dict[str, Any] = ran
        return found
