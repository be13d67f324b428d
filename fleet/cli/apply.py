"""`overspill apply` and `overspill diff`: the fleet as a file says it should be."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any, Final

import typer
from rich.text import Text

from fleet.adapters.fleet_file import BadFile, FleetFile
from fleet.app import Fleet
from fleet.cli import terminal
from fleet.cli.rollout_start import say_begun
from fleet.cli.rollout_wait import bar
from fleet.cli.terminal import AmqpUrl, AsJson, Home
from fleet.core.declared import DeclaredFleet
from fleet.core.differences import Change, Differences, LabelChange, RolloutChange
from fleet.operator.declaring import Applied, read_declared

DIFFERS: Final = 2
LABELS_SHOWN: Final = 50
SIGNS: Final = {Change.NONE: "=", Change.START: "+", Change.BLOCKED: "!"}
COLOURS: Final = {Change.NONE: "dim", Change.START: "green", Change.BLOCKED: "red"}

File = Annotated[
    Path | None,
    typer.Argument(
        metavar="FILE",
        help="A fleet.yaml; - is standard input.",
        show_default=False,
    ),
]


def apply(
    file: File = None,
    home: Home = None,
    amqp_url: AmqpUrl = None,
    *,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Only say what would be done.")
    ] = False,
    schema: Annotated[
        bool,
        typer.Option("--schema", help="Print the file's JSON schema, for editors."),
    ] = False,
    json: AsJson = False,
) -> None:
    """Make the fleet as a file declares it: labels, and versions with their rollouts.

    A second time it changes nothing. A version that was rolled back or aborted is not
    begun again by itself: that is said, and the exit code is 1.
    """
    if schema:
        terminal.print_json(DeclaredFleet.model_json_schema())
        return
    declared = _read(file)
    settings = terminal.read_settings(home, amqp_url)
    with terminal.opened(settings) as fleet:
        if dry_run:
            found = fleet.declaring.compare(declared)
            _show(found, as_json=json, done=None)
        else:
            applied, hint_error = _apply(fleet, declared)
            found = applied.differences
            if hint_error is not None and applied.told:
                terminal.warn(
                    f"agents were not told and learn at their next poll: {hint_error}"
                )
            _show(found, as_json=json, done=applied)
    if found.blocked and not dry_run:
        raise typer.Exit(1)


def diff(file: File = None, home: Home = None, *, json: AsJson = False) -> None:
    """Show what `overspill apply` would change; nothing is changed.

    Exit code 0 when the fleet is as declared, 2 when it differs, 1 when that cannot be
    told.
    """
    declared = _read(file)
    with terminal.opened(terminal.read_settings(home)) as fleet:
        found = fleet.declaring.compare(declared)
    _show(found, as_json=json, done=None)
    if found.any:
        raise typer.Exit(DIFFERS)


def _read(file: Path | None) -> DeclaredFleet:
    if file is None:
        raise typer.BadParameter("name a fleet.yaml, or - for standard input")
    with terminal.telling_failures():
        try:
            return read_declared(FleetFile.read(file))
        except BadFile as error:
            # Each mistake on its own line, so that all can be mended at once.
            terminal.fail_with(str(error).splitlines())


def _apply(fleet: Fleet, declared: DeclaredFleet) -> tuple[Applied, str | None]:
    with bar() as shown:
        task = shown.add_task("comparing", total=None)

        def written(done: int, of: int) -> None:
            shown.update(task, description=f"written for {done} of {of} agents")

        applied = fleet.declaring.apply(declared, written)
        shown.update(task, description="telling agents")
        return applied, fleet.tell(applied.told)


def _show(found: Differences, *, as_json: bool, done: Applied | None) -> None:
    if as_json:
        terminal.print_json(document(found, done))
        return
    console = terminal.tables()
    lines = [*map(_label, found.labels[:LABELS_SHOWN]), *map(_rollout, found.rollouts)]
    if len(found.labels) > LABELS_SHOWN:
        lines.append(Text(f"and {len(found.labels) - LABELS_SHOWN} more labels"))
    for line in lines:
        console.print(line, highlight=False, soft_wrap=True)
    if found.unheard:
        names = ", ".join(found.unheard[:LABELS_SHOWN])
        terminal.warn(f"labelled, but never heard of: {names}")
    if not found.any:
        terminal.note("the fleet is as declared")
    if done is not None and found.any:
        _say_done(done)


def _say_done(done: Applied) -> None:
    labels = len(done.differences.labels)
    terminal.note(f"{labels} labels changed, {len(done.started)} rollouts begun")
    for begun in done.started:
        say_begun(begun)


def document(found: Differences, done: Applied | None) -> dict[str, Any]:
    """All differences, as JSON has them; with the rollouts that began, if any did."""
    return {
        "differs": found.any,
        "labels": [
            {
                "agent": each.agent,
                "key": each.key,
                "before": each.before,
                "after": each.after,
            }
            for each in found.labels
        ],
        "rollouts": [
            {
                "model": each.declared.model,
                "version": each.declared.version,
                "where": each.declared.where,
                "agents": None
                if each.declared.agents is None
                else sorted(each.declared.agents),
                "change": each.change.value,
                "reason": each.reason,
                "generation": each.generation,
                "terms": {
                    one.term: {"before": one.before, "after": one.after}
                    for one in each.terms
                },
            }
            for each in found.rollouts
        ],
        "never_heard_of": list(found.unheard),
        "started": []
        if done is None
        else [each.rollout.generation for each in done.started],
    }


def _label(change: LabelChange) -> Text:
    name = f"label {change.agent} {change.key}"
    if change.after is None:
        return Text(f"- {name}={change.before}", "red")
    if change.before is None:
        return Text(f"+ {name}={change.after}", "green")
    return Text(f"~ {name}={change.after} (was {change.before})", "yellow")


def _rollout(change: RolloutChange) -> Text:
    declared = change.declared
    whom = "all agents" if declared.where is None else f"where {declared.where}"
    if declared.agents is not None:
        whom = f"{len(declared.agents)} named agents" + (
            "" if declared.where is None else f" {whom}"
        )
    text = Text(
        f"{SIGNS[change.change]} rollout {declared.model} {declared.version} for {whom}: "
        f"{change.reason}",
        COLOURS[change.change],
    )
    for each in change.terms:
        text.append(f"\n    {each.term}: {each.before} -> {each.after}")
    return text
