"""`overspill rollout`: move a version through the fleet and watch it."""

from __future__ import annotations

import time
from typing import Annotated, Any, Final

import typer
from rich.progress import Progress, SpinnerColumn, TextColumn, TimeElapsedColumn
from rich.table import Table

from fleet.app import Fleet
from fleet.cli import terminal
from fleet.cli.terminal import AmqpUrl, AsJson, Home
from fleet.core.progress import RolloutProgress
from fleet.core.rollouts import LIVE, AgentState, RolloutState
from fleet.operator.rollouts import Started

POLL_S: Final = 0.2
COLOURS: Final = {
    AgentState.UPDATED: "green",
    AgentState.REFUSED: "red",
    AgentState.SILENT: "yellow",
    AgentState.SUPERSEDED: "dim",
}

app = typer.Typer(help="Move a model version through the fleet.", no_args_is_help=True)


@app.callback()
def rollout() -> None:
    """Move a model version through the fleet."""


@app.command()
def start(  # noqa: PLR0913 - each is an option of the command
    name: Annotated[str, typer.Argument(help="A published model.")],
    version: Annotated[str, typer.Argument(help="One of its published versions.")],
    agents: Annotated[
        str | None,
        typer.Option(
            help="Only these, as a,b,c. Default: all, and those that come later."
        ),
    ] = None,
    wait: Annotated[
        float | None,
        typer.Option(
            metavar="SECONDS",
            min=0,
            help="Wait so long for it to be done; exit 1 when it fails or is not.",
        ),
    ] = None,
    home: Home = None,
    amqp_url: AmqpUrl = None,
    *,
    json: AsJson = False,
) -> None:
    """Make a version the desired one; agents pull it, test it and swap.

    An agent that refuses a version goes on with the one it has. To go back, start a
    rollout of the earlier version.
    """
    settings = terminal.read_settings(home, amqp_url)
    with terminal.opened(settings) as fleet:
        with _bar() as bar:
            task = bar.add_task("writing what agents should serve", total=None)

            def written(done: int, of: int) -> None:
                bar.update(task, description=f"written for {done} of {of} agents")

            begun = fleet.rollouts.start(name, version, agents, written=written)
            bar.update(task, description="telling agents")
            hint_error = fleet.tell(
                begun.agents,
                lambda told: bar.update(task, description=f"told {told} agents"),
            )
        if hint_error is not None and begun.agents:
            terminal.warn(
                f"agents were not told and learn at their next poll: {hint_error}"
            )
        if not json:
            _say_begun(begun)
        came = fleet.rollouts.progress_of(begun.rollout.generation)
        if wait is not None:
            came = _wait(fleet, begun, wait)
        now_ms = fleet.clock.wall_ms()
    if json:
        terminal.print_json({**_document(came, now_ms), "hint_error": hint_error})
    elif wait is not None:
        terminal.tables().print(_table([came], now_ms))
    if wait is not None and came.state is not RolloutState.DONE:
        terminal.fail(_undone(came, wait))


@app.command()
def status(
    home: Home = None,
    *,
    every: Annotated[
        bool, typer.Option("--all", help="Also those that newer ones superseded.")
    ] = False,
    json: AsJson = False,
) -> None:
    """Show how far each rollout is, agent by agent, newest first.

    States of an agent: pending, pulling, testing, updated, refused, silent (it still
    has to move and was not heard of lately), superseded (a newer rollout has it).
    """
    with terminal.opened(terminal.read_settings(home)) as fleet:
        came = fleet.rollouts.progress(every=every)
        now_ms = fleet.clock.wall_ms()
    if json:
        terminal.print_json({"rollouts": [_document(each, now_ms) for each in came]})
        return
    if not came:
        terminal.note("no rollout: use overspill rollout start NAME VERSION")
        return
    terminal.tables().print(_table(came, now_ms))


def _wait(fleet: Fleet, begun: Started, wait_s: float) -> RolloutProgress:
    until_s = fleet.clock.monotonic() + wait_s
    with _bar() as bar:
        task = bar.add_task("waiting for agents", total=None)
        while True:
            came = fleet.rollouts.progress_of(begun.rollout.generation)
            if came.state not in LIVE:
                return came
            if fleet.clock.monotonic() >= until_s:
                return came
            bar.update(
                task,
                description=f"{came.count(AgentState.UPDATED)} of {len(came.agents)} "
                "agents updated",
            )
            time.sleep(POLL_S)


def _undone(came: RolloutProgress, wait_s: float) -> str:
    what = f"{came.rollout.model} {came.rollout.version}"
    match came.state:
        case RolloutState.FAILED:
            refusals = "; ".join(
                f"{each.agent}: {each.reason or 'no reason given'}"
                for each in came.agents
                if each.state is AgentState.REFUSED
            )
            return f"rollout of {what} failed: {refusals}"
        case RolloutState.SUPERSEDED:
            return f"rollout of {what} was superseded by a newer one"
        case _:
            return (
                f"rollout of {what} is not done after {wait_s:g} s: "
                f"{came.count(AgentState.UPDATED)} of {len(came.agents)} agents updated "
                "(is `overspill fleet run` up?)"
            )


def _say_begun(begun: Started) -> None:
    new = begun.rollout
    whom = f"{len(begun.agents)} agent" + ("" if len(begun.agents) == 1 else "s")
    if new.targets is None:
        whom += " and those that come later"
    terminal.note(
        f"rollout {new.generation}: {new.model} {new.version} for {whom}\n"
        "Next: overspill rollout status"
    )


def _table(came: list[RolloutProgress], now_ms: int) -> Table:
    table = Table(
        "rollout", "model", "agent", "state", "serves", "last report", "reason"
    )
    for each in came:
        new = each.rollout
        table.add_section()
        table.add_row(
            str(new.generation),
            f"{new.model} {new.version}",
            f"{each.count(AgentState.UPDATED)} of {len(each.agents)} updated",
            each.state.value,
            "",
            f"started {terminal.age(now_ms, new.started_at_ms)} ago",
            "" if each.agents else "no agent has reported yet",
            style="bold",
        )
        for agent in each.agents:
            table.add_row(
                "",
                "",
                agent.agent,
                agent.state.value,
                agent.version or "none",
                terminal.age(now_ms, agent.last_seen_ms),
                agent.reason or "",
                style=COLOURS.get(agent.state),
            )
    return table


def _document(came: RolloutProgress, now_ms: int) -> dict[str, Any]:
    new = came.rollout
    return {
        "generation": new.generation,
        "model": new.model,
        "version": new.version,
        "state": came.state.value,
        "started_at_ms": new.started_at_ms,
        "targets": None if new.targets is None else sorted(new.targets),
        "agents": [
            {
                "agent": each.agent,
                "state": each.state.value,
                "version": each.version,
                "reason": each.reason,
                "last_report_age_s": None
                if each.last_seen_ms is None
                else max(0, now_ms - each.last_seen_ms) / 1000,
            }
            for each in came.agents
        ],
    }


def _bar() -> Progress:
    return Progress(
        SpinnerColumn(),
        TextColumn("{task.description}"),
        TimeElapsedColumn(),
        console=terminal.progress_console(),
        transient=True,
        disable=not terminal.progress_console().is_terminal,
    )
