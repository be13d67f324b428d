"""A limit and what was measured beside it; how every benchmark reports."""

from __future__ import annotations

import argparse
import itertools
import json
import statistics
import sys
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass
from typing import Any


@dataclass(frozen=True, slots=True)
class Limit:
    """One limit: `value` must be at most (or, with `at_least`, at least) `limit`."""

    name: str
    value: float
    limit: float
    at_least: bool = False

    @property
    def holds(self) -> bool:
        """Whether it is kept."""
        if self.at_least:
            return self.value >= self.limit
        return self.value <= self.limit


def arguments(description: str) -> argparse.Namespace:
    """The command line that every benchmark has."""
    parser = argparse.ArgumentParser(description=description)
    parser.add_argument("--json", action="store_true", help="print figures as JSON")
    return parser.parse_args()


def report(figures: dict[str, Any], limits: Sequence[Limit], *, as_json: bool) -> int:
    """Print figures and limits; gives the exit code."""
    if as_json:
        rows = [{**_shown(each), "holds": each.holds} for each in limits]
        print(json.dumps({**figures, "limits": rows}, indent=2))
    else:
        for name, value in figures.items():
            print(f"{name:38} {value}")
        for each in limits:
            sign = "≥" if each.at_least else "≤"
            word = "holds" if each.holds else "DOES NOT HOLD"
            print(f"{each.name:38} {each.value:.3f} {sign} {each.limit}: {word}")
    return 0 if all(each.holds for each in limits) else 1


def progress(text: str) -> None:
    """Say what is being done, beside the figures."""
    print(text, file=sys.stderr, flush=True)


def quantile(values: Sequence[float], share: float) -> float:
    """The value below which `share` of them lie."""
    ordered = sorted(values)
    return ordered[min(len(ordered) - 1, int(share * len(ordered)))]


def together(rounds: Iterable[Sequence[float]]) -> list[float]:
    """The values of all rounds."""
    return list(itertools.chain.from_iterable(rounds))


def median(values: Sequence[float]) -> float:
    """The middle one."""
    return statistics.median(values)


def _shown(limit: Limit) -> dict[str, Any]:
    shown = asdict(limit)
    shown["at_least"] = limit.at_least
    return shown
