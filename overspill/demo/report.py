"""The last words of a demo: a short table and what it means."""

from __future__ import annotations

from rich.console import Console
from rich.table import Table

from overspill.demo.measures import FIRST, SECOND, Measures, Spread
from overspill.demo.run import Performance

STAGES = {FIRST: "edge model alone in service", SECOND: "after the push"}


def show(console: Console, done: Performance) -> None:
    """Print the table and its meaning."""
    measures = done.measures
    console.print(_answers(measures))
    console.print(_accuracy(measures))
    for line in meaning(done):
        console.print(line, highlight=False, soft_wrap=True)


def meaning(done: Performance) -> list[str]:
    """What the figures say, in sentences."""
    measures = done.measures
    push = measures.push
    gained = 100 * (measures.cascade_accuracy - measures.edge_only_accuracy)
    lost = (
        f"Of {measures.requests} requests {measures.lost} were lost and "
        f"{measures.duplicated} answered twice. Asking the cloud about "
        f"{percent(measures.spill_rate)} of them was worth {gained:.1f} points over the "
        "edge alone."
    )
    pushed = (
        f"Version {push.to} reached {push.agents_updated} agents in "
        f"{(push.ended_ms - push.began_ms) / 1000:.1f} s while they served; "
        f"{measures.dropped_during_swap} requests were dropped."
    )
    lines = [lost, pushed, f"Picture: {done.plot}   took {done.seconds:.0f} s"]
    if done.folder is not None:
        lines.append(f"Logs and histories: {done.folder}")
    lines += [f"NOT GOOD: {fault}" for fault in done.faults]
    return lines


def percent(share: float) -> str:
    """A share of 0..1 for people."""
    return f"{100 * share:.1f} %"


def _answers(measures: Measures) -> Table:
    table = Table("answered by", "requests", "p50 ms", "p99 ms", box=None)
    for column in table.columns[1:]:
        column.justify = "right"
    nothing = Spread(None, None)
    rows = [
        ("the edge", measures.answered_edge, measures.edge_ms),
        ("the cloud", measures.answered_cloud, measures.cloud_ms),
        ("the edge, cloud too late", measures.answered_fallback, nothing),
        ("nobody: failed", measures.failed, nothing),
        ("nobody: expired", measures.expired, nothing),
        ("nobody: refused", measures.refused, nothing),
        ("nobody: lost", measures.lost, nothing),
    ]
    for name, count, spread in rows:
        if count or name.startswith("the "):
            table.add_row(name, str(count), _ms(spread.p50), _ms(spread.p99))
    return table


def _accuracy(measures: Measures) -> Table:
    table = Table("edge model", "edge alone", "cascade", "spilled", "", box=None)
    for column in table.columns[1:4]:
        column.justify = "right"
    for phase in measures.phases:
        if phase.stage in STAGES:
            table.add_row(
                "version " + " and ".join(phase.edge_versions),
                percent(phase.edge_only_accuracy),
                percent(phase.cascade_accuracy),
                percent(phase.spill_rate),
                STAGES[phase.stage],
            )
    table.add_row("cloud alone", "", percent(measures.cloud_only_accuracy), "100 %", "")
    return table


def _ms(value: float | None) -> str:
    return "" if value is None else f"{value:.1f}"
