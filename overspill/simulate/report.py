"""What came of a simulation, as a table and as a document."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Final

from rich.console import Console
from rich.table import Table

from overspill.simulate.guests import Guests
from overspill.simulate.operator import Standing
from overspill.simulate.plan import Persona
from overspill.simulate.run import Outcome
from overspill.simulate.tally import Became, Row, Tally
from overspill.simulate.visit import Visit

FORMAT: Final = 1
SHOWN: Final = (
    Became.CONVERGED,
    Became.RETURNED,
    Became.BACK,
    Became.REFUSED,
    Became.EXCLUDED,
    Became.WAITING,
    Became.UNDER_WAY,
    Became.UNREACHED,
    Became.BROKEN,
)


def document(outcome: Outcome) -> dict[str, Any]:
    """As `--json` prints it."""
    return {
        "format": FORMAT,
        "seed": outcome.plan.seed,
        **_of_agents(outcome.tally),
        "start_s": round(outcome.start_s, 1),
        "connect_s": round(outcome.connect_s, 1),
        "told_s": round(outcome.told_s, 2),
        "rollout_s": round(outcome.rollout_s, 2),
        "heard_bytes": outcome.heard_bytes,
        "back_s": None if outcome.back_s is None else round(outcome.back_s, 1),
        "broker_rest_mb": round(outcome.broker_rest_mb, 1),
        "broker_connected_mb": round(outcome.broker_connected_mb, 1),
        "broker_peak_mb": round(outcome.broker_peak_mb, 1),
        "processor_s": {
            name: round(spent, 2) for name, spent in outcome.processor_s.items()
        },
        "agents_mb": round(outcome.agents_mb, 1),
        "rollout": None if outcome.standing is None else _standing(outcome.standing),
        "disagreements": list(outcome.disagreements),
        "failures": outcome.failures,
    }


def visit_document(visit: Visit, guests: Guests) -> dict[str, Any]:
    """As `--broker --json` prints it."""
    tally = visit.scene.tally
    return {
        "format": FORMAT,
        "broker": guests.broker,
        "model": guests.model,
        **_of_agents(tally),
        "connected": sum(tally.connected.values()),
        "heard_bytes": sum(tally.heard_bytes.values()),
        "failures": visit.failures,
    }


def _of_agents(tally: Tally) -> dict[str, Any]:
    return {
        "agents": len(tally.personas),
        "settled": tally.settled,
        "counts": _counted(tally.counts()),
        "rows": [_row(row) for row in tally.rows()],
        "each": [_agent(tally, persona) for persona in tally.personas],
    }


def _row(row: Row) -> dict[str, Any]:
    return {
        "fault": row.fault.value if row.fault else None,
        "agents": row.agents,
        "became": _counted(row.became),
        "reasons": [{"reason": why, "agents": n} for why, n in row.reasons],
        "waits": [{"reason": why, "agents": n} for why, n in row.waits],
        "last_s": None if row.last_s is None else round(row.last_s, 2),
    }


def _agent(tally: Tally, persona: Persona) -> dict[str, Any]:
    fate = tally.of(persona)
    return {
        "agent": persona.agent,
        "fault": persona.fault.value if persona.fault else None,
        "became": fate.became.value,
        "at_s": None if fate.at_s is None else round(fate.at_s, 2),
        "reason": fate.reason,
        "waited": tally.waited.get(persona.agent, []),
    }


def show(console: Console, outcome: Outcome) -> None:
    """Print it for a person."""
    _show_agents(console, outcome.tally)
    console.print(_sentence(outcome), highlight=False)
    _show_failures(console, outcome.failures)


def show_visit(console: Console, visit: Visit, guests: Guests) -> None:
    """Print what became of visitors for a person."""
    tally = visit.scene.tally
    _show_agents(console, tally)
    console.print(
        f"{sum(tally.heard_bytes.values()) / 1e6:.1f} MB came to {len(tally.personas)} "
        f"agents from {guests.broker}. The fleet still lists them: `overspill device "
        f"retire` them if they do not come again.",
        highlight=False,
    )
    _show_failures(console, visit.failures)


def _show_failures(console: Console, failures: Sequence[str]) -> None:
    for failure in failures:
        console.print(f"FAILED: {failure}", highlight=False, markup=False, style="red")


def _show_agents(console: Console, tally: Tally) -> None:
    rows = tally.rows()
    shown = [each for each in SHOWN if any(row.became.get(each) for row in rows)]
    table = Table(box=None, pad_edge=False, padding=(0, 2, 0, 0))
    for name in ("fault", "agents", *shown, "last"):
        left = name == "fault"
        table.add_column(name, justify="left" if left else "right")
    for row in rows:
        table.add_row(
            _name(row),
            str(row.agents),
            *(str(row.became.get(each, 0) or "") for each in shown),
            "" if row.last_s is None else f"{row.last_s:.1f} s",
        )
    console.print(table)
    for row in rows:
        told = [*row.reasons, *((f"waited: {why}", n) for why, n in row.waits)]
        for reason, agents in told:
            console.print(
                f"  {_name(row)}, {agents}: {reason}", highlight=False, markup=False
            )


def _sentence(outcome: Outcome) -> str:
    converged = outcome.tally.counts()[Became.CONVERGED]
    away = (
        ""
        if outcome.back_s is None
        else f"all were back {outcome.back_s:.1f} s after the outage; "
    )
    return (
        f"{converged} of {outcome.plan.agents} agents converged in "
        f"{outcome.rollout_s:.1f} s; {outcome.heard_bytes / 1e6:.1f} MB came to them; {away}"
        f"RabbitMQ {outcome.broker_rest_mb:.0f} MB at rest, "
        f"{outcome.broker_connected_mb:.0f} MB with all connected, "
        f"{outcome.broker_peak_mb:.0f} MB at most; agents "
        f"{outcome.agents_mb:.0f} MB in all. {_rollout(outcome)}"
    )


def _standing(standing: Standing) -> dict[str, Any]:
    return {"state": standing.state, "why": standing.why, "told": standing.told}


def _rollout(outcome: Outcome) -> str:
    standing = outcome.standing
    if standing is None:
        return "The fleet did not say how far the rollout is."
    why = "" if standing.why is None else f": {standing.why}"
    return f"The rollout is {standing.state.replace('_', ' ')}{why}."


def _name(row: Row) -> str:
    return row.fault.value.replace("_", " ") if row.fault else "none"


def _counted(counts: Any) -> dict[str, int]:  # noqa: ANN401 - a mapping by Became
    return {each.value: counts[each] for each in Became if counts.get(each)}


def output() -> Console:
    """Where results go; as wide as they need when nobody looks."""
    console = Console()
    return console if console.is_terminal else Console(width=120)
