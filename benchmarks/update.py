"""Everything that pushing a model costs, part by part, each beside its limit.

`--only PART` runs one; the parts are the modules of `benchmarks/updating`. A part that
fails is told, and the others are measured all the same.
"""

from __future__ import annotations

import argparse
import pkgutil
import sys
from collections.abc import Callable, Sequence
from concurrent.futures import ProcessPoolExecutor
from importlib import import_module
from multiprocessing import get_context
from typing import TypeAlias

from benchmarks import updating
from benchmarks.limits import Limit, progress, report
from lifecycle.logs import configure_logs

Measured: TypeAlias = tuple[dict[str, object], list[Limit]]
# Whoever needs both cores for a minute comes when nothing else is warm.
LAST = "fleet"


def parts() -> list[str]:
    """The names of all parts, in the order in which they run."""
    found = sorted(each.name for each in pkgutil.iter_modules(updating.__path__))
    return sorted(found, key=lambda name: name == LAST)


def main() -> int:
    """Measure, print, and fail when a limit does not hold or a part failed."""
    options = _arguments(parts())
    figures: dict[str, object] = {}
    limits: list[Limit] = []
    for name in options.only or parts():
        progress(f"== {name}")
        of_part, kept = _measure(name)
        figures |= {f"{name}: {what}": value for what, value in of_part.items()}
        limits += [
            Limit(f"{name}: {each.name}", each.value, each.limit, each.at_least)
            for each in kept
        ]
    return report(figures, limits, as_json=options.json)


def _measure(name: str) -> Measured:
    # A process of its own, so that no part is warm, or large, from those before it.
    with ProcessPoolExecutor(1, mp_context=get_context("spawn")) as apart:
        measured = apart.submit(_part, name)
    try:
        return measured.result()
    except Exception as error:  # noqa: BLE001 - one part must not hide the others
        why = f"{type(error).__name__}: {error}"
        progress(f"{name} failed: {why}")
        return {"failed": why}, [Limit("failures", 1, 0)]


def _part(name: str) -> Measured:
    # Standard output is for the figures.
    configure_logs("warning")
    measure: Callable[[], Measured] = import_module(
        f"{updating.__name__}.{name}"
    ).measure
    return measure()


def _arguments(known: Sequence[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--json", action="store_true", help="print figures as JSON")
    parser.add_argument(
        "--only", action="append", choices=known, help="a part; may be repeated"
    )
    return parser.parse_args()


if __name__ == "__main__":
    sys.exit(main())
