"""When requests are sent, decided beforehand: the server's pace never changes it.

Pure: randomness is given. All times are seconds from the start of a workload.
"""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Arrival:
    """One request to send: when, of which model, and within which time to answer."""

    at_s: float
    model: str
    deadline_s: float


def poisson(
    draw: random.Random,
    *,
    per_s: float,
    seconds: float,
    models: Sequence[str],
    deadlines_s: Sequence[float],
) -> list[Arrival]:
    """Independent arrivals; model and deadline drawn evenly for each."""
    arrivals = []
    at_s = draw.expovariate(per_s)
    while at_s < seconds:
        arrivals.append(Arrival(at_s, draw.choice(models), draw.choice(deadlines_s)))
        at_s += draw.expovariate(per_s)
    return arrivals


def bursts(  # noqa: PLR0913 - the shape of a burst, by name
    draw: random.Random,
    *,
    count: int,
    size: int,
    every_s: float,
    quiet_per_s: float,
    model: str,
    deadline_s: float,
) -> list[Arrival]:
    """`count` times `size` requests at once, over a quiet stream."""
    quiet = poisson(
        draw,
        per_s=quiet_per_s,
        seconds=count * every_s,
        models=[model],
        deadlines_s=[deadline_s],
    )
    loud = [
        Arrival((number + 0.5) * every_s, model, deadline_s)
        for number in range(count)
        for _ in range(size)
    ]
    return sorted([*quiet, *loud], key=lambda each: each.at_s)
