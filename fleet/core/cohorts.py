"""Who comes first: an order by hash, and how far down the order each wave reaches.

An agent's place depends on its name and the rollout's seed alone, so it is the same
after a restart, differs from rollout to rollout, and no device is always the first to
meet what is bad. Rates are those of AWS IoT Jobs: base agents, times a factor each wave.
"""

from __future__ import annotations

import hashlib
import math
import re
from collections.abc import Iterable
from itertools import pairwise
from typing import Final

from fleet.core.rollouts import Rate, Rollout, Wave

MAX_WAVES: Final = 100
_PART: Final = re.compile(r"(\d+(?:\.\d+)?)\s*(%?)\Z")
_RATE: Final = re.compile(r"(\d+)\s*x\s*(\d+(?:\.\d+)?)\Z")


class BadWaves(ValueError):
    """Waves that cannot be read or do not grow; says what is wrong."""


def in_order(rollout: Rollout, agents: Iterable[str]) -> list[str]:
    """The agents in the order in which the rollout reaches them."""
    seed = rollout.seed or rollout.generation
    return sorted(agents, key=lambda agent: (place(seed, agent), agent))


def place(seed: int, agent: str) -> float:
    """Where an agent stands, 0..1, uniform over agents and seeds."""
    digest = hashlib.sha256(f"{seed}/{agent}".encode()).digest()
    return int.from_bytes(digest[:8], "big") / 2**64


def wave_of(rollout: Rollout, index: int) -> Wave:
    """The wave of this index; after the last that was ordered comes one of all."""
    shadow = rollout.shadows
    if rollout.rate is not None and index >= shadow:
        rate = rollout.rate
        return Wave(soak_s=rate.soak_s, approve=rate.approve)
    if index < len(rollout.waves):
        return rollout.waves[index]
    return Wave(soak_s=rollout.waves[-1].soak_s if rollout.waves else 0.0)


def cut(rollout: Rollout, index: int, population: int) -> int:
    """How many of `population` eligible agents are told by the end of a wave."""
    shadow = rollout.shadows
    if rollout.rate is not None and index >= shadow:
        return min(population, _grown(rollout.rate, index - shadow, population))
    wave = wave_of(rollout, index)
    if wave.count is not None:
        return min(population, wave.count)
    if wave.share is not None:
        return min(population, max(1, math.ceil(wave.share * population - 1e-9)))
    return population


def is_last(rollout: Rollout, index: int, population: int) -> bool:
    """Whether no wave comes after this one."""
    if wave_of(rollout, index).shadow:
        return False
    if rollout.rate is None and index + 1 < len(rollout.waves):
        # A small fleet is all told before its last wave: the others have nothing to do.
        return cut(rollout, index, population) >= population > 0
    if rollout.rate is None and index + 1 == len(rollout.waves):
        return _reaches_all(rollout.waves[index])
    return cut(rollout, index, population) >= population


def read_waves(
    text: str, *, soak_s: float = 0.0
) -> tuple[tuple[Wave, ...], Rate | None]:
    """Waves as people write them: `1%, 10%, 50%`, `10, 100, all`, or `10x2`.

    Numbers are of agents in all, those of earlier waves included; `10x2` is ten
    agents, then twice as many more each time. A last wave of all follows by itself.

    Raises:
        BadWaves: says where and what would do.
    """
    rate = _RATE.match(text.strip())
    if rate:
        base, factor = int(rate[1]), float(rate[2])
        if base < 1 or factor < 1:
            raise BadWaves(f"waves {text!r}: the base is at least 1, the factor too")
        return (), Rate(base, factor, soak_s)
    parts = filter(None, (part.strip() for part in text.split(",")))
    waves = [_read_wave(each, soak_s) for each in parts]
    if not waves:
        raise BadWaves("no wave is named: write 1%,10%,50% or 10,100 or 10x2")
    if len(waves) > MAX_WAVES:
        raise BadWaves(f"{len(waves)} waves are more than {MAX_WAVES}")
    _check_growth(waves, text)
    if not _reaches_all(waves[-1]):
        waves.append(Wave(soak_s=soak_s))
    return tuple(waves), None


def _read_wave(text: str, soak_s: float) -> Wave:
    if text == "all":
        return Wave(soak_s=soak_s)
    found = _PART.match(text)
    if not found:
        raise BadWaves(f"wave {text!r} is neither a number, a percentage nor `all`")
    number = float(found[1])
    if found[2]:
        if not 0 < number <= 100:
            raise BadWaves(f"wave {text!r}: a percentage is above 0 and at most 100")
        return Wave(share=number / 100, soak_s=soak_s)
    if not number.is_integer() or number < 1:
        raise BadWaves(f"wave {text!r}: a count of agents is a whole number from 1 on")
    return Wave(count=int(number), soak_s=soak_s)


def _check_growth(waves: list[Wave], text: str) -> None:
    for before, after in pairwise(waves):
        if _reaches_all(before):
            raise BadWaves(f"waves {text!r}: nothing can follow a wave of all")
        for kind in ("count", "share"):
            one, other = getattr(before, kind), getattr(after, kind)
            if one is not None and other is not None and other <= one:
                raise BadWaves(
                    f"waves {text!r} do not grow: each says how many agents in all"
                )


def _reaches_all(wave: Wave) -> bool:
    if wave.shadow or wave.count is not None:
        return False
    return wave.share is None or wave.share >= 1


def _grown(rate: Rate, index: int, population: int) -> int:
    told, size = 0.0, float(rate.base)
    for _ in range(index + 1):
        told += math.floor(size)
        size *= rate.factor
        if told >= population:
            break
    return int(min(told, population))
