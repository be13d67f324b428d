"""`overspill device`: what agents say of themselves, and what operators say of them."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Final

import typer
from rich.table import Table

from broker.messages import CascadeReport, SlotReport
from fleet.cli import terminal
from fleet.cli.sights import device_document, document, lines
from fleet.cli.terminal import AsJson, Home
from fleet.core.labelling import is_change, read_labelling
from fleet.loops.conducting import write_desired
from fleet.operator.labels import chosen, label
from fleet.operator.retiring import readmit, retire
from fleet.operator.sight import see

# Columns from which on a terminal shows facts as well.
WIDE: Final = 120

app = typer.Typer(
    help="The agents of the fleet: what they report, their labels, retirement.",
    no_args_is_help=True,
)

Agent = Annotated[str, typer.Argument(help="The agent's name.")]
Where = Annotated[
    str | None,
    typer.Option(
        metavar="QUERY",
        help="Only agents that this is true of, as "
        "'site=lyon and free_disk_mb >= 64 and not group=canary'.",
    ),
]


@app.callback()
def device() -> None:
    """The agents of the fleet: what they report, their labels, retirement."""


@app.command("list")
def list_devices(
    home: Home = None,
    *,
    where: Where = None,
    retired: Annotated[
        bool, typer.Option("--retired", help="List those that are retired instead.")
    ] = False,
    json: AsJson = False,
) -> None:
    """List every agent that ever reported: what it serves, and when it was last heard of.

    `overspill fleet run` must run for reports to arrive here.
    """
    with terminal.opened(terminal.read_settings(home)) as fleet:
        now_ms = fleet.clock.wall_ms()
        silent_after_s = fleet.settings.silent_after_s
        with fleet.database.reading() as ledger:
            if retired:
                devices = ledger.devices_named(ledger.retired())
            else:
                devices = chosen(ledger, (), where)
            labels = ledger.labels()
    listed = [devices[agent] for agent in sorted(devices)]
    if json:
        terminal.print_json(
            [
                {**device_document(each, now_ms), "labels": labels.get(each.agent, {})}
                for each in listed
            ]
        )
        return
    if not listed:
        terminal.note(_none(where, retired=retired))
        return
    console = terminal.tables()
    wide = console.width >= WIDE
    table = Table("agent", "models", "last report", "labels")
    for heading in ("first seen", "reports", "facts") if wide else ():
        table.add_column(heading)
    for each in listed:
        silent = each.silent(now_ms, silent_after_s)
        more = (
            f"{terminal.age(now_ms, each.first_seen_ms)} ago",
            str(each.reports),
            _pairs(each.facts),
        )
        table.add_row(
            each.agent,
            "\n".join(map(_slot, each.slots)) or "none",
            terminal.age(now_ms, each.last_seen_ms) + (" (silent)" if silent else ""),
            _pairs(labels.get(each.agent, {})),
            *(more if wide else ()),
        )
    console.print(table)
    if not wide:
        terminal.note("Each agent's facts: overspill device show AGENT")


@app.command()
def show(agent: Agent, home: Home = None, *, json: AsJson = False) -> None:
    """Show all that is known of one agent, retired or not.

    What it says of itself and of its models, its labels, what is desired of it, what
    came of rollouts on it, and what operators did to it.
    """
    with terminal.opened(terminal.read_settings(home)) as fleet:
        sight = see(fleet.database, agent)
        now_ms = fleet.clock.wall_ms()
        silent_after_s = fleet.settings.silent_after_s
    if json:
        terminal.print_json(document(sight, now_ms))
        return
    terminal.note("\n".join(lines(sight, now_ms, silent_after_s=silent_after_s)))


@app.command("label")
def change_labels(
    words: Annotated[
        list[str],
        typer.Argument(
            metavar="[AGENT]… KEY=VALUE|KEY-…",
            help="The agents, then the labels to give (KEY=VALUE) or to take (KEY-).",
        ),
    ],
    home: Home = None,
    *,
    where: Where = None,
    json: AsJson = False,
) -> None:
    """Give labels to agents, or take them; queries and rollouts choose agents by them.

    Name the agents, or choose them with --where. A label hides what an agent says of
    itself under the same name.
    """
    agents = [each for each in words if not is_change(each)]
    if not agents and where is None:
        terminal.fail("no agent is named: name some, or choose them with --where")
    with terminal.opened(terminal.read_settings(home)) as fleet:
        labelled = label(
            fleet.database,
            agents,
            where,
            read_labelling([each for each in words if is_change(each)]),
            who=fleet.who,
            now_ms=fleet.clock.wall_ms(),
        )
    if json:
        terminal.print_json(
            [{"agent": a, "labels": has} for a, has in labelled.items()]
        )
        return
    if not labelled:
        terminal.note("no agent is chosen: nothing was changed")
    for agent, has in labelled.items():
        terminal.note(f"{agent}: {_pairs(has) or 'no labels'}")


@app.command("retire")
def retire_agents(
    agents: Annotated[list[str], typer.Argument(metavar="AGENT…", help="The agents.")],
    home: Home = None,
    *,
    reason: Annotated[
        str, typer.Option(help="Why, for the record.", show_default=False)
    ] = "",
    undo: Annotated[
        bool, typer.Option("--undo", help="Take retired agents back instead.")
    ] = False,
    json: AsJson = False,
) -> None:
    """Take agents out of the fleet: their labels go, and they are in no rollout.

    What an agent serves it goes on serving; nothing more is desired of it, also when it
    reports again, until it is taken back with --undo. This does not lock it out: its
    credentials at the broker are another matter, and what to do is printed.
    """
    with terminal.opened(terminal.read_settings(home)) as fleet:
        now_ms = fleet.clock.wall_ms()
        if undo:
            readmit(fleet.database, agents, who=fleet.who, now_ms=now_ms)
            # What rollouts had told it before is desired of it again.
            write_desired(fleet.database, fleet.registry, agents)
        else:
            retire(
                fleet.database,
                fleet.registry,
                agents,
                who=fleet.who,
                reason=reason,
                now_ms=now_ms,
            )
    if json:
        terminal.print_json({"agents": sorted({*agents}), "retired": not undo})
        return
    if undo:
        terminal.note("taken back; in rollouts again from the next report on")
        return
    terminal.note(f"retired {', '.join(sorted({*agents}))}")
    terminal.note(
        "To lock out what can still log in, on RabbitMQ's machine:\n"
        + "\n".join(f"  rabbitmqctl delete_user {agent}" for agent in sorted({*agents}))
    )


def _none(where: str | None, *, retired: bool) -> str:
    if retired:
        return "no agent is retired"
    if where is not None:
        return "no agent is chosen by this query"
    return "no agent has reported yet: is `overspill fleet run` up?"


def _pairs(said: Mapping[str, str]) -> str:
    return ", ".join(f"{key}={value}" for key, value in sorted(said.items()))


def _slot(slot: SlotReport) -> str:
    text = f"{slot.model} {slot.active or 'none'}"
    if slot.state in {"pulling", "testing", "shadow"}:
        text += f" ({slot.state} {slot.staged or 'another'})"
    if slot.state == "probation":
        text += " (on probation)"
    if slot.state in {"waiting", "refused", "returned"}:
        text += f" ({slot.state}: {slot.reason or 'no reason given'})"
    return text if slot.cascade is None else text + _cascade(slot.cascade)


def _cascade(told: CascadeReport) -> str:
    """What an operator should know of the promise, and nothing while all is well."""
    words = []
    if told.standing is not None and told.value is not None:
        words.append(f"target {told.standing.replace('_', ' ')}: {told.value:.2%}")
    if told.drift:
        words.append("DRIFT")
    if told.share < 1:
        words.append(f"spills {told.share:.0%} of what it should: {told.why}")
    return "".join(f"\n  {each}" for each in words)
