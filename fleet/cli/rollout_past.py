"""`overspill rollout status | history`: every agent now, and all that happened."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import UTC, datetime
from typing import Annotated, Any, Final

import typer
from rich.table import Table

from fleet.cli import terminal
from fleet.cli.rollout_choice import Which, chosen
from fleet.cli.terminal import AsJson, Home
from fleet.core.differences import waves_text
from fleet.core.outlook import Outlook, document, outlook
from fleet.core.rollouts import FAILED_AGENT, AgentState
from fleet.operator.rollouts import History

COLOURS: Final = {
    AgentState.UPDATED: "green",
    AgentState.SUPERSEDED: "dim",
    AgentState.EXCLUDED: "dim",
    AgentState.SILENT: "yellow",
    **dict.fromkeys(FAILED_AGENT - {AgentState.SILENT}, "red"),
}


def status(
    which: Which = None,
    home: Home = None,
    *,
    every: Annotated[
        bool, typer.Option("--all", help="Also those that newer ones superseded.")
    ] = False,
    json: AsJson = False,
) -> None:
    """Show how far each rollout is, agent by agent, newest first.

    States of an agent: queued (its wave has not come), excluded (it could not take the
    version), pending (told), waiting (put off by its window or its budget), pulling,
    testing, shadow (runs the version beside), probation, updated; refused, returned,
    stuck, silent (it failed); late; going back, back; superseded (a newer rollout has
    it).
    """
    with terminal.opened(terminal.read_settings(home)) as fleet:
        if which is None:
            came = fleet.rollouts.progress(every=every)
        else:
            came = [fleet.rollouts.progress_of(chosen(fleet, which))]
        now_ms = fleet.clock.wall_ms()
    seen = [outlook(each, now_ms) for each in came]
    if json:
        terminal.print_json({"rollouts": [document(each) for each in seen]})
        return
    if not seen:
        terminal.note("no rollout: use overspill rollout start NAME VERSION")
        return
    terminal.tables().print(table(seen))


def history(which: Which = None, home: Home = None, *, json: AsJson = False) -> None:
    """Show every rollout there was, newest first; of one, all that happened in it.

    `overspill audit list` has what people did, in a record that cannot be changed
    unseen.
    """
    with terminal.opened(terminal.read_settings(home)) as fleet:
        number = None if which is None else chosen(fleet, which, live=False)
        found = fleet.rollouts.history(number)
    if json:
        terminal.print_json([_history(each) for each in found])
    elif not found:
        terminal.note("no rollout yet: use overspill rollout start NAME VERSION")
    elif number is None:
        terminal.tables().print(_rollouts(found))
    else:
        _show_events(found[0])


def table(seen: Sequence[Outlook]) -> Table:
    """Every agent of some rollouts."""
    shown = Table(
        "rollout", "model", "agent", "state", "serves", "last report", "reason"
    )
    for each in seen:
        new = each.rollout
        shown.add_section()
        shown.add_row(
            str(new.generation),
            f"{new.model} {new.version}",
            f"{each.count(AgentState.UPDATED)} of {each.population} updated",
            each.state.value.replace("_", " "),
            "",
            f"started {terminal.age(each.now_ms, new.started_at_ms)} ago",
            (each.course.reason or "")
            if each.progress.agents
            else "no agent has reported yet",
            style="bold",
        )
        for agent in each.progress.agents:
            shown.add_row(
                "",
                "",
                agent.agent,
                agent.state.value.replace("_", " "),
                agent.version or "none",
                terminal.age(each.now_ms, agent.last_seen_ms),
                agent.reason or "",
                style=COLOURS.get(agent.state),
            )
    return shown


def _rollouts(found: Sequence[History]) -> Table:
    shown = Table("rollout", "started", "by", "model", "waves", "state", "because")
    shown.columns[5].no_wrap = True
    for each in found:
        new, last = each.rollout, each.events[-1:] or ()
        shown.add_row(
            str(new.generation),
            _time(new.started_at_ms),
            new.by,
            f"{new.model} {new.version}",
            waves_text(new),
            each.state.value.replace("_", " "),
            str(last[0].details.get("reason", "")) if last else "",
        )
    return shown


def _show_events(found: History) -> None:
    new = found.rollout
    terminal.note(
        f"rollout {new.generation} of {new.model} {new.version}: "
        f"{found.state.value.replace('_', ' ')}\nwaves: {waves_text(new)}"
    )
    shown = Table("time", "what", "wave", "agents", "by", "reason")
    for each in found.events:
        said = each.details
        shown.add_row(
            _time(each.at_ms),
            each.kind.replace("_", " "),
            str(said["wave"] + 1) if "wave" in said else "",
            str(said.get("agents", "")),
            str(said.get("by", new.by)),
            str(said.get("reason", "")),
        )
    terminal.tables().print(shown)


def _history(found: History) -> dict[str, Any]:
    new = found.rollout
    return {
        "generation": new.generation,
        "model": new.model,
        "version": new.version,
        "state": found.state.value,
        "started_at_ms": new.started_at_ms,
        "by": new.by,
        "waves": waves_text(new),
        "events": [
            {"at_ms": each.at_ms, "what": each.kind, **each.details}
            for each in found.events
        ],
    }


def _time(at_ms: int) -> str:
    at = datetime.fromtimestamp(at_ms / 1000, tz=UTC).astimezone()
    return f"{at:%Y-%m-%d %H:%M:%S}"
