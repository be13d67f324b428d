"""`overspill doctor`: is everything here that is needed, and if not, what to do."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Sequence
from typing import Annotated

import typer
from rich.console import Console
from rich.text import Text

from overspill.machine import Finding, Verdict, document, examine, failed

COLOURS = {Verdict.OK: "green", Verdict.WARN: "yellow", Verdict.FAIL: "red"}


def doctor(
    *,
    as_json: Annotated[
        bool, typer.Option("--json", help="Print one JSON document, for scripts.")
    ] = False,
) -> None:
    """Check this machine, and say how to mend what is missing.

    Exit code 1 if something needed is not there.
    """
    with Console(stderr=True).status("looking (TensorFlow takes some seconds)"):
        findings = asyncio.run(examine())
    if as_json:
        typer.echo(json.dumps(document(findings), indent=2))
    else:
        console = Console()
        for line in lines(findings):
            console.print(line, soft_wrap=True)
    raise typer.Exit(1 if failed(findings) else 0)


def lines(findings: Sequence[Finding]) -> list[Text]:
    """One line a finding, its mending in a line below."""
    width = max((len(each.name) for each in findings), default=0)
    shown = []
    for each in findings:
        line = Text()
        line.append(f"{each.verdict.value:<4}", style=COLOURS[each.verdict])
        line.append(f"  {each.name:<{width}}  {each.found}")
        shown.append(line)
        if each.mend is not None:
            shown.append(Text(f"{'':<{width + 8}}{each.mend}", style="bold"))
    return shown
