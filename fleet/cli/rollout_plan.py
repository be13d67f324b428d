"""`overspill rollout plan`: who, how many bytes, how long, and who not and why."""

from __future__ import annotations

from typing import Any, Final

from rich.table import Table
from rich.text import Text

from fleet.cli import terminal
from fleet.cli.rollout_terms import with_terms
from fleet.cli.terminal import AsJson, Home
from fleet.core.cohorts import wave_of
from fleet.core.declared import DeclaredRollout
from fleet.core.differences import reach, said
from fleet.core.plan import Plan

SHOWN: Final = 20


@with_terms
def plan(
    declared: DeclaredRollout,
    *,
    home: Home = None,
    json: AsJson = False,
) -> None:
    """Show what `rollout start` with the same options would do; nothing is changed.

    Times are estimates: from how long agents took in earlier rollouts of the model
    when there were any, with the waiting for maintenance windows from now on, and
    without the time that people take.
    """
    with terminal.opened(terminal.read_settings(home)) as fleet:
        planned = fleet.plan(declared)
    if declared.where is not None and not planned.chosen.anybody:
        terminal.warn(f"--where {declared.where} is true of no agent that has reported")
    if json:
        terminal.print_json(document(planned))
        return
    _show(planned)


def document(planned: Plan) -> dict[str, Any]:
    """All of a plan, as JSON has it."""
    rollout = planned.rollout
    return {
        "model": rollout.model,
        "version": rollout.version,
        "eligible": list(planned.chosen.eligible),
        "already": list(planned.already),
        "away": list(planned.away),
        "excluded": dict(planned.chosen.excluded),
        "bytes": planned.bytes,
        "lasts_s": planned.lasts_s,
        "waits_for_windows_s": planned.waits_s,
        "own_time_unknown": list(planned.timeless),
        "way_back": None if rollout.way_back is None else rollout.way_back.version,
        "terms": said(rollout),
        "waves": [
            {
                "wave": each.index + 1,
                "reach": reach(wave_of(rollout, each.index)),
                "agents": each.agents,
                "bytes": each.bytes,
                "lasts_s": each.lasts_s,
                "waits_for_windows_s": each.waits_s,
                "shadow": each.shadow,
                "approve": each.approve,
            }
            for each in planned.waves
        ],
    }


def _show(planned: Plan) -> None:
    rollout, chosen = planned.rollout, planned.chosen
    console = terminal.tables()
    terminal.note(
        f"{rollout.model} {rollout.version} for {len(chosen.eligible)} agents: "
        f"{terminal.size(planned.bytes)} in all, at least "
        f"{terminal.lasts(planned.lasts_s)}"
    )
    for what, some in (
        ("serve it already", planned.already),
        ("are away and follow when they are back", planned.away),
        ("do not say their own time: reckoned as in the window", planned.timeless),
    ):
        if some:
            terminal.note(f"{len(some)} {what}: {_some(some)}")
    if rollout.way_back is not None:
        terminal.note(f"the way back is {rollout.model} {rollout.way_back.version}")
    elif chosen.eligible:
        terminal.note(
            "there is no way back: nothing was served before, or signed for it"
        )
    if planned.waves and chosen.eligible:
        console.print(_waves(planned))
    terms_said = said(rollout)
    terminal.note(f"gates: {terms_said['gates']}")
    if rollout.policy.window is not None:
        terminal.note(
            f"window: {terms_said['window']} in the device's own time; begun now, "
            f"{terminal.lasts(planned.waits_s)} of that is waiting for it"
        )
    if chosen.excluded:
        console.print(_excluded(planned))


def _waves(planned: Plan) -> Table:
    table = Table("wave", "reaches", "agents", "bytes", "at least", "then")
    for each in planned.waves:
        then = "asks you" if each.approve else "asks the gates"
        if not planned.rollout.gates:
            then = "asks you" if each.approve else "goes on"
        table.add_row(
            f"{each.index + 1}" + (" shadow" if each.shadow else ""),
            reach(wave_of(planned.rollout, each.index))
            if planned.rollout.rate is None or each.shadow
            else "",
            f"{each.agents} more",
            terminal.size(each.bytes),
            terminal.lasts(each.lasts_s),
            then,
        )
    return table


def _excluded(planned: Plan) -> Table:
    excluded = sorted(planned.chosen.excluded.items())
    table = Table(f"{len(excluded)} excluded", "why")
    for agent, reason in excluded[:SHOWN]:
        table.add_row(agent, reason)
    if len(excluded) > SHOWN:
        more = len(excluded) - SHOWN
        table.add_row(Text(f"{more} more", "dim"), Text("--json lists all", "dim"))
    return table


def _some(agents: tuple[str, ...]) -> str:
    listed = sorted(agents)
    more = len(listed) - SHOWN
    return ", ".join(listed[:SHOWN]) + (f" and {more} more" if more > 0 else "")
