"""`overspill audit`: who did what to the fleet, and whether the record is whole."""

from __future__ import annotations

import json as json_text
from dataclasses import asdict
from datetime import UTC, datetime
from typing import Annotated, Any

import typer
from rich.table import Table

from fleet.cli import terminal
from fleet.cli.terminal import AsJson, Home
from fleet.core.audit import Entry, Head
from fleet.operator.examination import Examination, examine

app = typer.Typer(
    help="The record of who did what, each entry sealed over the one before.",
    no_args_is_help=True,
)


@app.callback()
def audit() -> None:
    """The record of who did what, each entry sealed over the one before."""


@app.command("list")
def list_entries(
    home: Home = None,
    *,
    last: Annotated[
        int, typer.Option(min=1, max=100_000, help="How many of the newest.")
    ] = 50,
    who: Annotated[
        str | None, typer.Option(help="Only what this one did, as alice@host.")
    ] = None,
    what: Annotated[
        str | None, typer.Option(help="Only this, as rollout or rollout.pause.")
    ] = None,
    subject: Annotated[
        str | None, typer.Option(help="Only what was done to this, as an agent.")
    ] = None,
    json: AsJson = False,
) -> None:
    """List what was done, newest last: when, by whom, what, and to what."""
    with (
        terminal.opened(terminal.read_settings(home)) as fleet,
        fleet.database.reading() as ledger,
    ):
        entries = ledger.newest_audit(last, who=who, what=what, subject=subject)
    if json:
        terminal.print_json([_document(each) for each in entries])
        return
    if not entries:
        terminal.note("nothing is recorded" + (" of that" if who or what else ""))
        return
    table = Table("entry", "time (UTC)", "who", "what", "subject", "details")
    for each in entries:
        table.add_row(
            str(each.sequence),
            f"{datetime.fromtimestamp(each.at_ms / 1000, UTC):%Y-%m-%d %H:%M:%S}",
            each.who,
            each.what,
            each.subject,
            _details(each),
        )
    terminal.tables().print(table)


@app.command()
def verify(
    home: Home = None,
    *,
    head: Annotated[
        str | None,
        typer.Option(
            metavar="HASH",
            help="A head that was noted elsewhere: the log must still have it.",
        ),
    ] = None,
    json: AsJson = False,
) -> None:
    """Check that no entry was changed, removed or moved since it was written.

    The log is compared with the head that is kept beside the home, too, and with
    --head HASH. Only a head from another place shows a log that was cut or written
    anew as a whole: note the one that is printed somewhere else. Exit 1 if not whole.
    """
    settings = terminal.read_settings(home)
    with (
        terminal.opened(settings) as fleet,
        terminal.progress_console().status("reading the audit log …"),
    ):
        found = examine(fleet.database, fleet.audit_head, head)
    if json:
        terminal.print_json(_examined(found))
    else:
        for fault in found.faults:
            terminal.complain(fault.reason)
        if not found.faults:
            terminal.note(_whole(found, head, str(settings.audit_head)))
    if found.faults:
        raise typer.Exit(1)


def _whole(found: Examination, head: str | None, file: str) -> str:
    if found.entries == 0:
        return "the audit log is empty"
    lines = [
        f"the audit log is whole: {found.entries} entries",
        f"head     {found.head.digest}",
    ]
    if found.kept is None:
        lines.append(f"kept     nothing in {file} yet to compare it with")
    else:
        lines.append(f"kept     entry {found.kept.sequence}, as {file} has it")
    if head is not None:
        lines.append(
            f"noted    --head is of it; {found.since_named} entries came since"
        )
    return "\n".join(lines)


def _details(entry: Entry) -> str:
    details: dict[str, Any] = json_text.loads(entry.details)
    words = [f"{key}={_word(value)}" for key, value in sorted(details.items())]
    return ", ".join(words)


def _word(value: object) -> str:
    text = value if isinstance(value, str) else json_text.dumps(value)
    return text if len(text) <= 60 else f"{text[:59]}…"


def _document(entry: Entry) -> dict[str, Any]:
    return {**asdict(entry), "details": json_text.loads(entry.details)}


def _examined(found: Examination) -> dict[str, Any]:
    def document(head: Head | None) -> dict[str, Any] | None:
        return None if head is None or head.sequence == 0 else asdict(head)

    return {
        "whole": not found.faults,
        "entries": found.entries,
        "head": document(found.head),
        "kept": document(found.kept),
        "entries_since_head": found.since_named,
        "faults": [asdict(each) for each in found.faults],
    }
