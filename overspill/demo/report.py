"""The last words of a demo: a short table and what it means."""

from __future__ import annotations

from collections.abc import Sequence

from rich.console import Console
from rich.table import Table

from overspill.demo.measures import FIRST, SECOND, Measures, PhaseMeasures, Spread
from overspill.demo.overload import Overload
from overspill.demo.promises import ByDevices, Kept, Kind
from overspill.demo.run import Performance
from overspill.demo.stopped import Stopped

STANDINGS = {"kept": "kept", "at_risk": "at risk", "broken": "broken"}
PROMISES = ("edge model", "target", "realised", "as the agents know it")
COLUMNS = (
    *("requests", "p50 ms", "p99 ms", "spilled", "spared", "too late"),
    *("right", "edge alone"),
)
STAGES = {FIRST: "before the push", SECOND: "after the push"}


def show(console: Console, done: Performance) -> None:
    """Print the table and its meaning."""
    measures = done.findings.measures
    console.print(_answers(measures))
    console.print(_accuracy(measures))
    if any(phase.target for phase in measures.phases):
        console.print(_promises(measures.phases))
    console.print(_overload(done.findings.overload))
    for line in meaning(done):
        console.print(line, highlight=False, soft_wrap=True)


def meaning(done: Performance) -> list[str]:
    """What the figures say, in sentences."""
    measures = done.findings.measures
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
    lines = [
        lost,
        pushed,
        *_stopped(done.findings.stopped),
        *_overloaded(done.findings.overload),
        f"Picture: {done.plot}   took {done.seconds:.0f} s",
    ]
    if done.folder is not None:
        lines.append(f"Logs and histories: {done.folder}")
    faults = [f"NOT GOOD: {fault}" for fault in done.findings.faults]
    return lines + (faults or ["All good: nothing that the demo checks has failed."])


def _stopped(found: Stopped) -> list[str]:
    """What came of the bad version, in sentences."""
    course = found.course
    if course.turned_ms is None:
        return []
    after_s = (course.turned_ms - course.began_ms) / 1000
    took_s = (course.ended_ms - course.began_ms) / 1000
    said = (
        f"Then version {course.version} was rolled out, whose labels are shuffled: it "
        f"reached {len(course.told)} of {found.agents} agents, was stopped after "
        f"{after_s:.1f} s, and version {course.version.partition('-')[0]} was back after "
        f"{took_s:.1f} s (the reason given: {course.reason}). Of {found.requests} requests meanwhile "
        f"{found.lost + found.unanswered} had no answer; "
        f"{percent(found.exposed_accuracy)} of the answers there were right"
    )
    if found.spared_accuracy is None:
        return [f"{said}."]
    return [f"{said}, {percent(found.spared_accuracy)} of the others'."]


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
        ("the edge, cloud late or spared", measures.answered_fallback, nothing),
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


def _promises(phases: Sequence[PhaseMeasures]) -> Table:
    """What was promised, and what came of it by the devices and by the agents."""
    table = Table(*PROMISES, box=None)
    for phase in phases:
        target, kept = phase.target, phase.realised
        if target is not None and kept is not None:
            table.add_row(
                "version " + " and ".join(phase.edge_versions),
                target.text,
                amount(kept.devices, target.kind),
                _said(kept, target.kind),
            )
    return table


def _said(kept: Kept, kind: Kind) -> str:
    if not kept.agents:
        return "nothing yet"
    return f"{STANDINGS[kept.standing]}: {amount(kept.together, kind)}"


def amount(found: ByDevices | None, kind: Kind) -> str:
    """A share that a target limits, and where the long run lies, for people."""
    if found is None:
        return "nothing known"
    # Nothing is spilled or wrong less than never; against the cloud one may gain.
    low = found.low if kind == "excess" else max(found.low, 0.0)
    unit = "points" if kind == "excess" else "%"
    return (
        f"{100 * found.value:.1f} {unit} "
        f"({100 * low:.1f} to {100 * min(found.high, 1.0):.1f})"
    )


def _overload(overload: Overload) -> Table:
    table = Table("the pool", *COLUMNS, box=None)
    for column in table.columns[1:]:
        column.justify = "right"
    for name, moment in (("has room", overload.before), ("has not", overload.during)):
        table.add_row(
            name,
            str(moment.requests),
            _ms(moment.p50_ms),
            _ms(moment.p99_ms),
            percent(moment.spill_rate),
            str(moment.held_back),
            str(moment.too_late),
            percent(moment.accuracy),
            percent(moment.edge_only_accuracy),
        )
    return table


def _overloaded(overload: Overload) -> list[str]:
    """What the overload came to, in sentences."""
    crowd, before, during = overload.crowd, overload.before, overload.during
    told = (
        f"Then others asked for {crowd.rate_per_s:.0f} requests a second of a pool that "
        f"did {crowd.capacity_per_s:.0f}. To the devices, with a deadline of "
        f"{overload.deadline_s:g} s, the cloud was worth {100 * before.gain:.1f} points "
        f"before and {100 * during.gain:.1f} during that; {during.lost} of "
        f"{during.requests} requests were lost. {during.held_back} that the edge was not "
        "sure of it answered all the same, to spare the pool."
    )
    lines = [told]
    if way := overload.way_down:
        steps = "; ".join(
            f"{_threshold(each.old)} → {_threshold(each.new)} ({each.why})"
            for each in way
        )
        lines.append(f"{way[0].agent} spared it most: threshold in force {steps}.")
    return lines


def _threshold(value: float | None) -> str:
    return "none at all" if value is None else f"{value:.2f}"


def _ms(value: float | None) -> str:
    return "" if value is None else f"{value:.1f}"
