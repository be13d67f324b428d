"""The JSON of a run as the tables of benchmarks/README.md.

python -m benchmarks.pool --json > run.json
python -m benchmarks.peers.tables run.json
"""

from __future__ import annotations

import json
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Final

from benchmarks.peers.contenders import BY_NAME

MISSING: Final = "—"
LOADS: Final = ("20%", "60%", "90%", "110%")

Contenders = Mapping[str, Mapping[str, Mapping[str, Any]]]


def markdown(figures: Mapping[str, Any]) -> str:
    """All tables, medians with the least and the greatest where there were repeats."""
    contenders: Contenders = figures["contenders"]
    parts = [
        "#### Deep queue: requests a second, µs of CPU each (broker's share), MB",
        _drains(contenders),
        "#### Open loop on the stub: p50 / p99 / p99.9 ms, goodput",
        _loads(contenders),
        "#### Deadlines, bursts, a swap",
        _deadlines(contenders),
        "#### kill -9",
        _kills(contenders),
        "#### Limits",
        _limits(figures["limits"]),
    ]
    if figures["failures"]:
        parts += ["#### What failed", _failures(figures["failures"])]
    return "\n\n".join(parts) + "\n"


def _table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    lines = [head, ["---"] * len(head), *rows]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def _rows(contenders: Contenders) -> list[tuple[str, str, Mapping[str, Any]]]:
    return [
        (name, mode.replace("_", " "), workloads)
        for name in BY_NAME
        for mode, workloads in contenders.get(name, {}).items()
    ]


def _value(workload: Mapping[str, Any] | None, measure: str, digits: int = 0) -> str:
    if workload is None or measure not in workload:
        return MISSING
    told = workload[measure]
    shown = f"{told['median']:.{digits}f}"
    if len(told["values"]) > 1:
        shown += f" ({told['least']:.{digits}f} to {told['greatest']:.{digits}f})"
    return shown


def _drains(contenders: Contenders) -> str:
    rows = []
    for name, mode, of in _rows(contenders):
        row = [name, mode]
        for model in ("noop", "stub", "resnet"):
            drain = of.get(model)
            row.append(_value(drain, "per_s"))
            row.append(f"{_value(drain, 'cpu_us')} ({_value(drain, 'broker_cpu_us')})")
        rows.append([*row, _value(of.get("resnet"), "memory_mb")])
    head = ["", "", "noop /s", "µs", "stub /s", "µs", "resnet /s", "µs", "MB"]
    return _table(head, rows)


def _loads(contenders: Contenders) -> str:
    rows = []
    for name, mode, of in _rows(contenders):
        if not any(f"load_{level}" in of for level in LOADS):
            continue
        row = [name, mode]
        for level in LOADS:
            load = of.get(f"load_{level}")
            times = [_value(load, each, 1) for each in ("p50_ms", "p99_ms", "p999_ms")]
            row.append(f"{' / '.join(times)}; {_value(load, 'goodput', 2)}")
        rows.append(row)
    return _table(["", "", *LOADS], rows)


def _deadlines(contenders: Contenders) -> str:
    rows = []
    for name, mode, of in _rows(contenders):
        mixed, bursts, swap = (of.get(each) for each in ("mixed", "bursts", "swap"))
        if mixed is None and bursts is None and swap is None:
            continue
        rows.append(
            [
                name,
                mode,
                _value(mixed, "goodput", 3),
                _value(bursts, "goodput", 3),
                _value(bursts, "p99_ms"),
                f"{_value(swap, 'p99_before_ms')} → {_value(swap, 'p99_during_ms')}",
                _value(swap, "failed"),
                _value(swap, "swapped"),
            ]
        )
    head = ["", "", "mixed goodput", "bursts goodput", "bursts p99 ms"]
    return _table([*head, "swap: p99 ms before → during", "failed", "swapped"], rows)


def _kills(contenders: Contenders) -> str:
    rows = []
    for name, mode, of in _rows(contenders):
        if (kill := of.get("kill")) is not None:
            measures = ("sent", "lost", "told_lost", "duplicates")
            told = [_value(kill, each) for each in measures]
            rows.append([name, mode, *told, _value(kill, "back_after_s", 1)])
    head = ["", "", "sent", "lost", "of them told", "answered twice", "back after s"]
    return _table(head, rows)


def _limits(limits: Sequence[Mapping[str, Any]]) -> str:
    rows = [
        [
            each["name"],
            f"{each['value']:.3f}",
            f"{'≥' if each['at_least'] else '≤'} {each['limit']}",
            "holds" if each["holds"] else "**does not hold**",
        ]
        for each in limits
    ]
    return _table(["", "measured", "limit", ""], rows)


def _failures(failures: Sequence[Mapping[str, str]]) -> str:
    rows = [
        [
            each["contender"],
            each["mode"],
            each["at"],
            " ".join(each["why"].split())[:160],
        ]
        for each in failures
    ]
    return _table(["", "", "at", "why"], rows)


if __name__ == "__main__":
    print(markdown(json.loads(Path(sys.argv[1]).read_text())))
