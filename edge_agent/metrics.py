"""The agent's metrics as Prometheus advises: one name a meaning, what differs as a label.

Pure tables of what the parts say; `status.py` asks them.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping
from typing import Any, Final, Literal

from cascade.promise import Standing
from lifecycle.metrics import Family, Labels, counter, gauge

PREFIX: Final = "overspill_agent_"
GAUGES: Final = frozenset({"uplink_window"})
# Counters whose names share a beginning are one metric: its label, and its meaning.
GROUPS: Final[Mapping[str, tuple[str, str]]] = {
    "spilled": ("reason", "Requests sent to the cloud, by why."),
    "refused": ("reason", "Requests refused, by why."),
}


def counter_families(counters: Mapping[str, int]) -> Iterator[Family]:
    """The counters as Prometheus advises: one name, what differs as a label."""
    grouped: dict[str, dict[Labels, float]] = {name: {} for name in GROUPS}
    for name, value in counters.items():
        group = next((each for each in GROUPS if name.startswith(f"{each}_")), None)
        if group is not None:
            grouped[group][name.removeprefix(f"{group}_"),] = value
        elif name not in GAUGES and name not in GROUPS:
            help_ = f"{name.replace('_', ' ').capitalize()}, since the start."
            yield counter(f"{PREFIX}{name}_total", help_, value)
    for group, (label, help_) in GROUPS.items():
        name = f"{PREFIX}{group}_total"
        yield Family(name, help_, "counter", grouped[group], (label,))


def cascade_families(
    watched: Mapping[str, Mapping[str, Any]], budget: Mapping[str, float] | None
) -> Iterator[Family]:
    """Thresholds, promises and drift, by model; what is not known has no sample."""
    for name, kind, help_, read in CASCADE:
        samples: dict[Labels, float] = {
            (model,): float(value)
            for model, shown in watched.items()
            if (value := read(shown)) is not None
        }
        yield Family(f"{PREFIX}{name}", help_, kind, samples, ("model",))
    yield Family(
        f"{PREFIX}promise_standing",
        "1 for how the model's target stands: kept, at_risk or broken.",
        "gauge",
        {
            (model, standing): float(promise["standing"] == standing)
            for model, shown in watched.items()
            if (promise := shown["promise"]) is not None
            for standing in Standing
        },
        ("model", "standing"),
    )
    if budget is not None:
        yield gauge(
            f"{PREFIX}spill_budget_left",
            "Of what may be sent at once, the share that is left.",
            budget["left"],
        )


def _of(part: str, name: str) -> Callable[[Mapping[str, Any]], float | None]:
    """Reads one number of a part that may not be there."""
    return lambda shown: None if shown[part] is None else float(shown[part][name])


CASCADE: Final[
    tuple[
        tuple[
            str,
            Literal["gauge", "counter"],
            str,
            Callable[[Mapping[str, Any]], float | None],
        ],
        ...,
    ]
] = (
    (
        "threshold",
        "gauge",
        "The threshold in force; -Inf while nothing is spilled as hard.",
        lambda shown: -math.inf if shown["threshold"] is None else shown["threshold"],
    ),
    (
        "threshold_calibrated",
        "gauge",
        "The bundle's threshold.",
        lambda shown: shown["calibrated"],
    ),
    (
        "threshold_share",
        "gauge",
        "Of what the bundle's threshold spills, the share that is spilled now.",
        lambda shown: shown["share"],
    ),
    (
        "threshold_changes_total",
        "counter",
        "How often the threshold in force has changed.",
        lambda shown: shown["changes"],
    ),
    (
        "promise_target",
        "gauge",
        "The share of requests that the target allows.",
        _of("promise", "target"),
    ),
    (
        "promise_value",
        "gauge",
        "The share realised, in this period, as far as is known.",
        _of("promise", "value"),
    ),
    (
        "promise_low",
        "gauge",
        "It is at least this, with the target's confidence.",
        _of("promise", "low"),
    ),
    (
        "promise_high",
        "gauge",
        "It is at most this, with the target's confidence.",
        _of("promise", "high"),
    ),
    (
        "promise_uncovered",
        "gauge",
        "Requests of this period of which nothing is known.",
        _of("promise", "uncovered"),
    ),
    (
        "drift_alarm",
        "gauge",
        "1 once scores have left those calibrated on.",
        _of("drift", "alarm"),
    ),
    (
        "drift_evidence",
        "gauge",
        "Against the scores being as calibrated; the alarm is at 1 / false alarm.",
        _of("drift", "evidence"),
    ),
    (
        "audits_answered_total",
        "counter",
        "Audited requests that the cloud has answered.",
        lambda shown: shown["audited"],
    ),
    (
        "audits_disagreed_total",
        "counter",
        "Of these, where the cloud gave another label.",
        lambda shown: shown["disagreed"],
    ),
)
