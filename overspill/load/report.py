"""What a run measured: as a document for programs and as tables for people."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Final

from rich.console import Console
from rich.table import Table

from overspill.load.account import Account, End
from overspill.load.mix import Plan

FORMAT: Final = "overspill.load/1"
GROUPS: Final = ("model", "class", "deadline")
_LATENCIES: Final = ("p50", "p90", "p99", "p99.9", "max")
_ENDS: Final = tuple(end.value for end in End)


def document(
    plan: Plan, account: Account, *, max_lateness_s: float, complete: bool
) -> dict[str, Any]:
    """The figures of one run. Times are milliseconds, from the intended send time.

    Args:
        plan: what was to be sent.
        account: what came of it.
        max_lateness_s: the generator is late when its p99 is above this.
        complete: False when it was interrupted.
    """
    total = account.total
    warmup_s = plan.bounds.warmup_s
    span_s = max(account.last_offer_s, account.last_answer_s) - warmup_s
    batches = account.batches
    runs = batches.total()
    late = lateness_fault(account, max_lateness_s)
    return {
        "rate_per_s": round(plan.arrivals.rate_per_s, 3),
        "measured_s": round(max(span_s, 0.0), 3),
        "throughput_per_s": (
            round(total.ends[End.ANSWERED] / span_s, 3) if span_s > 0 else None
        ),
        **total.document(buckets=True),
        **{
            f"by_{group}": {
                name: tally.document() for name, tally in account.groups(group).items()
            }
            for group in GROUPS
        },
        "reasons": {
            end.value: dict(reasons.counts.most_common())
            for end, reasons in account.reasons.items()
        },
        "sources": dict(account.sources),
        "batch_size_mean": (
            round(sum(size * count for size, count in batches.items()) / runs, 2)
            if runs
            else None
        ),
        "duplicates": account.duplicates,
        "answered_after_lost": account.after_lost,
        "publish_failures": dict(account.publish_failures.counts),
        "link_losses": account.link_losses,
        "lateness_ms": account.lateness.document(),
        "warmup": account.warmup.document(),
        "complete": complete,
        "valid": late is None,
        "invalid_because": late,
    }


def lateness_fault(account: Account, max_lateness_s: float) -> str | None:
    """Why the figures are the generator's and not the system's; None if they are not."""
    p99_s = account.lateness.quantile(0.99)
    if p99_s is None or p99_s <= max_lateness_s:
        return None
    return (
        f"the generator itself was late: 1 % of its sends by over {p99_s * 1e3:.1f} ms "
        f"({max_lateness_s * 1e3:g} ms are allowed); ask for less, use --envelope, or "
        "give it a processor of its own"
    )


def show(console: Console, runs: Sequence[Mapping[str, Any]]) -> None:
    """Print one run with its groups, or one line a run of several."""
    if len(runs) == 1:
        console.print(_groups(runs[0]))
    else:
        console.print(_sweep(runs))
    for run in runs:
        for line in remarks(run):
            console.print(line, highlight=False, markup=False)


def remarks(run: Mapping[str, Any]) -> list[str]:
    """What is to be said of a run beside its table."""
    at = f"{run['rate_per_s']:g}/s: "
    said = [
        f"{at}{count} {end}: {reason}"
        for end, reasons in run["reasons"].items()
        for reason, count in reasons.items()
    ]
    said += [
        f"{at}{count} publishes not confirmed: {reason}"
        for reason, count in run["publish_failures"].items()
    ]
    said += [
        f"{at}{run[name]} {what}"
        for name, what in (
            ("duplicates", "results came twice"),
            ("answered_after_lost", "results came after they were given up as lost"),
            ("link_losses", "connections were lost"),
            ("open", "requests had no answer yet when it was interrupted"),
        )
        if run[name]
    ]
    if not run["valid"]:
        said.append(f"{at}NOT VALID: {run['invalid_because']}")
    return said


def _groups(run: Mapping[str, Any]) -> Table:
    late = run["lateness_ms"]["p99"]
    table = Table(
        title=f"{run['rate_per_s']:g} requests/s offered for {run['measured_s']:g} s",
        caption=(
            f"{_number(run['throughput_per_s'])} answers/s; latency in ms from the "
            f"intended send time; the generator's p99 lateness {_number(late)} ms"
        ),
        title_justify="left",
        caption_justify="left",
    )
    table.add_column("")
    ends = _columns(table, [run])
    table.add_row("all", *_figures(run, ends))
    for group in GROUPS:
        of_group = run[f"by_{group}"]
        if len(of_group) > 1:
            for name, tally in of_group.items():
                table.add_row(f"{group} {name}", *_figures(tally, ends))
    return table


def _sweep(runs: Sequence[Mapping[str, Any]]) -> Table:
    table = Table(caption="latency in ms from the intended send time")
    table.add_column("rate/s", justify="right")
    table.add_column("answers/s", justify="right")
    ends = _columns(table, runs)
    for run in runs:
        rates = (_number(run[name]) for name in ("rate_per_s", "throughput_per_s"))
        table.add_row(*rates, *_figures(run, ends))
    return table


def _columns(table: Table, runs: Sequence[Mapping[str, Any]]) -> list[str]:
    """Add the columns of figures; which ends of requests, those that there are."""
    ends = [end for end in _ENDS[1:] if any(run[end] for run in runs)]
    for name in ("offered", "goodput", *_LATENCIES, *ends):
        table.add_column(name, justify="right")
    return ends


def _figures(tally: Mapping[str, Any], ends: Sequence[str]) -> list[str]:
    goodput = tally["goodput"]
    return [
        f"{tally['offered']:,}",
        "-" if goodput is None else f"{100 * goodput:.2f} %",
        *(_number(tally["latency_ms"][name]) for name in _LATENCIES),
        *(f"{tally[end]:,}" if tally[end] else "" for end in ends),
    ]


def _number(value: float | None) -> str:
    if value is None:
        return "-"
    return f"{value:,.2f}" if value < 100 else f"{value:,.0f}"
