"""The figures of all contenders, repeat by repeat, and what is concluded. Pure."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Final

from benchmarks.limits import Limit, median
from benchmarks.peers.accounts import spread
from benchmarks.peers.contenders import BY_NAME, OURS, Mode

BACKLOG_LIMIT: Final = 0.9
ONE_EACH_LIMIT: Final = 0.45
RESNET_LIMIT: Final = 3.0
GOODPUT_LIMIT: Final = 1.3
SWAP_LIMIT: Final = 1.2

Key = tuple[str, str, str]


@dataclass(slots=True)
class Results:
    """What was measured: by contender, mode and workload the values of each measure.

    Attributes:
        failures: who failed, at what, and why.
        notes: single figures of the run.
    """

    failures: list[dict[str, Any]] = field(default_factory=list)
    notes: dict[str, Any] = field(default_factory=dict)
    _values: dict[Key, dict[str, list[float | None]]] = field(default_factory=dict)

    def add(
        self,
        contender: str,
        mode: Mode,
        workload: str,
        figures: Mapping[str, float | None],
    ) -> None:
        """One repeat's figures."""
        measures = self._values.setdefault((contender, mode, workload), {})
        for name, value in figures.items():
            measures.setdefault(name, []).append(value)

    def fail(self, contender: str, mode: Mode, what: str, why: str) -> None:
        """A contender that did not start, or ended."""
        row = {"contender": contender, "mode": mode, "at": what, "why": why}
        self.failures.append(row)

    def value(
        self, contender: str, mode: Mode, workload: str, measure: str
    ) -> float | None:
        """The median of a measure; None where nothing was measured."""
        measures = self._values.get((contender, mode, workload), {})
        known = [each for each in measures.get(measure, ()) if each is not None]
        return median(known) if known else None

    def best(
        self, workload: str, measure: str, names: Iterable[str], *, least: bool = False
    ) -> float | None:
        """The greatest (or least) median among contenders, in any of their modes."""
        found = [
            value
            for name in names
            for mode in BY_NAME[name].modes
            if (value := self.value(name, mode, workload, measure)) is not None
        ]
        if not found:
            return None
        return min(found) if least else max(found)

    def tables(self) -> dict[str, Any]:
        """By contender, mode and workload: median, least, greatest, all values."""
        shown: dict[str, Any] = defaultdict(lambda: defaultdict(dict))
        for (contender, mode, workload), measures in self._values.items():
            shown[contender][mode][workload] = {
                name: spread([each for each in values if each is not None])
                for name, values in measures.items()
                if any(each is not None for each in values)
            }
        return {name: dict(modes) for name, modes in shown.items()}


def queue_peers(names: Sequence[str]) -> list[str]:
    """Those with a queue, ours left out."""
    return [each for each in names if each != OURS and BY_NAME[each].queued]


def limits(results: Results, names: Sequence[str]) -> list[Limit]:
    """What must hold, as far as it was measured."""
    found: list[Limit] = []

    def ratio(
        name: str, workload: str, measure: str, floor: float, peers: list[str]
    ) -> None:
        ours = results.value(OURS, "equal_safety", workload, measure)
        best = results.best(workload, measure, peers)
        if ours is not None and best:
            value = round(ours / best, 3)
            found.append(Limit(name, value, floor, at_least=True))

    notes = results.notes.get("in_process", {})
    if notes:
        backlog, single = notes["ratio_32"], notes["ratio_1"]
        found += [
            Limit("backlog_over_in_process", backlog, BACKLOG_LIMIT, at_least=True),
            Limit("one_each_over_in_process", single, ONE_EACH_LIMIT, at_least=True),
        ]
    queued = queue_peers(names)
    others = [each for each in names if each != OURS]
    ratio("resnet_over_best_queue_peer", "resnet", "per_s", RESNET_LIMIT, queued)
    ratio("noop_over_best_queue_peer", "noop", "per_s", 1.0, queued)
    ratio("mixed_goodput_over_best_peer", "mixed", "goodput", GOODPUT_LIMIT, others)
    swapped = results.value(OURS, "equal_safety", "swap", "swapped")
    if swapped is not None:
        during = results.value(OURS, "equal_safety", "swap", "ratio")
        failed = results.value(OURS, "equal_safety", "swap", "failed")
        found += [
            Limit("swap_took_place", swapped, 1.0, at_least=True),
            Limit("p99_while_loading_over_before", during or 0.0, SWAP_LIMIT),
            Limit("failed_in_swap", failed or 0.0, 0.0),
        ]
    lost = results.best("kill", "lost", [OURS]) if OURS in names else None
    if lost is not None:
        found.append(Limit("lost_in_kill", lost, 0.0))
    return found
