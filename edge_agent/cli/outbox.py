"""`overspill-agent outbox`: see what waits, and end what should not.

`list`, `show` and `export` read the file and need no daemon. `cancel` asks the one that
runs; without one it writes the outcome itself, and the device is told at the next start.
"""

from __future__ import annotations

import asyncio
import base64
import json
import os
import sys
import time
from collections.abc import Iterator
from dataclasses import asdict
from enum import StrEnum
from pathlib import Path
from typing import Annotated, Any, Final, TextIO

import typer
from rich.console import Console
from rich.table import Table

from broker.codec import WireError, unpack
from edge_agent.adapters.control import NoAgent, ask, only_agent_of
from edge_agent.adapters.spill_file import open_table
from edge_agent.adapters.spill_rows import Ended
from edge_agent.adapters.spill_table import SpillTable
from edge_agent.adapters.spill_view import Carried, Seen, SpillView
from edge_agent.cli.terminal import AsJson, StateDir, UserError, read_settings
from edge_agent.core.delivery import (
    Key,
    Spill,
    Stage,
    after_step,
    cancel,
    settling_step,
)
from edge_agent.core.payload import Encoding, render
from edge_agent.core.records import read_rendered, unpack_answer
from lifecycle.clock import SystemClock

PROGRESS_AFTER_S: Final = 2.0
PROGRESS_EVERY: Final = 500

app = typer.Typer(
    help="See what waits in the agent's outbox, and end what should not.",
    no_args_is_help=True,
)


class StageName(StrEnum):
    """The stages as they are typed."""

    OPEN = "open"
    SETTLED = "settled"
    TOLD = "told"
    UNDELIVERED = "undelivered"


DeviceOption = Annotated[
    str | None,
    typer.Option("--device", help="Whose request, where several use the same id."),
]


@app.command("list")
def list_rows(
    state_dir: StateDir = None,
    stage: Annotated[
        StageName | None, typer.Option(help="Only rows of this stage.")
    ] = None,
    limit: Annotated[int, typer.Option(min=1, help="At most so many.")] = 100,
    as_json: AsJson = False,
) -> None:
    """List requests, the oldest first."""
    chosen = None if stage is None else Stage[stage.name]
    with SpillView.open(_path(state_dir)) as view:
        rows = list(view.rows(chosen, limit=limit))
        total = view.count(chosen)
    if as_json:
        typer.echo(json.dumps([asdict(each) for each in rows], indent=2))
        return
    _show_table(rows)
    if total > len(rows):
        typer.echo(f"{len(rows)} of {total}; --limit shows more", err=True)


def _show_table(rows: list[Seen]) -> None:
    if not rows:
        typer.echo("nothing", err=True)
        return
    table = Table(box=None, pad_edge=False)
    for name in ("device", "id", "model", "class", "reason", "stage", "sends"):
        table.add_column(name.upper(), overflow="fold")
    for name in ("bytes", "age s", "left s"):
        table.add_column(name.upper(), justify="right")
    now_ms = SystemClock().wall_ms()
    for each in rows:
        left_s = (each.deadline_ms - now_ms) / 1000.0
        table.add_row(
            each.device,
            each.id,
            each.model,
            each.priority,
            each.reason,
            each.stage if each.outcome is None else f"{each.stage}: {each.outcome}",
            str(each.attempt),
            str(each.request_bytes or each.answer_bytes),
            f"{(now_ms - each.accepted_ms) / 1000.0:.0f}",
            f"{left_s:.0f}" if each.outcome is None else "",
        )
    console = Console() if sys.stdout.isatty() else Console(width=200)
    console.print(table)


@app.command()
def show(
    id_: Annotated[str, typer.Argument(metavar="ID", help="The request's id.")],
    device: DeviceOption = None,
    state_dir: StateDir = None,
    as_json: AsJson = False,
) -> None:
    """Show one request: where it stands, what it asks, what its device is told."""
    with SpillView.open(_path(state_dir)) as view:
        seen = _the_one(view.find(id_, device), id_, device)
        document = {**asdict(seen), **_legible(seen, view.carried(seen.key))}
    if as_json:
        typer.echo(json.dumps(document, indent=2))
        return
    for name, value in document.items():
        if value is not None:
            shown = value if isinstance(value, str | int | float) else json.dumps(value)
            typer.echo(f"{name:14} {shown}")


def _the_one(found: list[Seen], id_: str, device: str | None) -> Seen:
    if not found:
        of = "" if device is None else f" of device {device}"
        raise UserError(
            f"the outbox knows no request {id_}{of}: it was answered at the edge, "
            "refused, or told long ago and forgotten"
        )
    if len(found) > 1:
        names = ", ".join(each.device for each in found)
        raise UserError(
            f"{len(found)} devices have used the id {id_}: choose one of {names} "
            "with --device"
        )
    return found[0]


def _legible(seen: Seen, carried: Carried) -> dict[str, Any]:
    """What a row carries, for a person: answers whole, inputs by shape."""
    return {
        "inputs": None if carried.request is None else _inputs(carried.request),
        "edge": None if carried.edge is None else _edge(carried.edge),
        "answer": None
        if carried.answer is None
        else _answer(carried.answer, seen.encoding),
    }


def _inputs(request: bytes) -> dict[str, Any] | str:
    try:
        fields = unpack(request)
        if fields.get("medium") is not None:
            medium = fields["medium"]
            return {str(medium["media_type"]): f"{len(medium['data'])} bytes"}
        return {
            name: f"{tensor['dtype']} {tensor['shape']}"
            for name, tensor in fields["tensors"].items()
        }
    except (WireError, KeyError, TypeError, AttributeError) as error:
        return f"not legible: {error!r}"


def _edge(packed: bytes) -> Any:  # noqa: ANN401 - what JSON holds
    return json.loads(render(unpack_answer(packed), Encoding.JSON))


def _answer(rendered: bytes, encoding: str) -> Any:  # noqa: ANN401 - what JSON holds
    try:
        return json.loads(
            render(read_rendered(rendered, Encoding(encoding)), Encoding.JSON)
        )
    except (ValueError, KeyError) as error:
        return f"not legible: {error!r}"


@app.command("cancel")
def cancel_one(
    id_: Annotated[str, typer.Argument(metavar="ID", help="The request's id.")],
    device: DeviceOption = None,
    state_dir: StateDir = None,
) -> None:
    """End an open request as `failed`; its device is told why."""
    settings = read_settings(state_dir=state_dir)
    path = _path(state_dir)
    with SpillView.open(path) as view:
        seen = _the_one(view.find(id_, device), id_, device)
    if seen.outcome is not None:
        raise UserError(f"request {id_} has ended already: {seen.outcome}")
    request = {"do": "cancel", "device": seen.device, "id": seen.id}
    try:
        reply = asyncio.run(ask(settings.control_socket, request, timeout_s=30.0))
        cancelled, when = bool(reply["cancelled"]), ""
    except NoAgent:
        cancelled = _cancel_in_file(settings.state_dir, path, seen.key)
        when = "; its device is told when the agent starts"
    if not cancelled:
        raise UserError(f"request {id_} ended before it could be cancelled")
    typer.echo(f"cancelled {seen.device} {seen.id}{when}")


def _cancel_in_file(state_dir: Path, path: Path, key: Key) -> bool:
    """Write the outcome as the daemon would have."""
    with only_agent_of(state_dir):
        table = open_table(path)
        try:
            with table.transaction("FULL"):
                spill = table.get(key)
                return spill is not None and _end(table, spill)
        finally:
            table.close()


def _end(table: SpillTable, spill: Spill) -> bool:
    now_ms = float(SystemClock().wall_ms())
    ending = cancel(spill, now_ms)
    step = settling_step(spill.channel)
    ended = Ended(
        spill.key,
        ending.outcome,
        ending.why,
        render(ending.answer, Encoding(spill.encoding)),
        now_ms,
        after_step(Stage.OPEN, step),
    )
    return table.end(ended) is not None


@app.command()
def export(
    file: Annotated[Path, typer.Argument(help="Where to; `-` is the standard output.")],
    state_dir: StateDir = None,
    stage: Annotated[
        StageName | None, typer.Option(help="Only rows of this stage.")
    ] = None,
    force: Annotated[
        bool, typer.Option("--force", help="Replace FILE if it is there.")
    ] = False,
) -> None:
    """Write every request as a line of JSON; what it carries is in base64."""
    chosen = None if stage is None else Stage[stage.name]
    with SpillView.open(_path(state_dir)) as view:
        if str(file) == "-":
            _write_lines(view, chosen, sys.stdout)
            return
        if file.exists() and not force:
            raise UserError(f"{file} is there already: --force replaces it")
        part = file.with_name(file.name + ".part")
        # Requests are the devices' own data: for this user's eyes only.
        with open(
            part, "w", encoding="utf-8", opener=lambda p, f: os.open(p, f, 0o600)
        ) as out:
            count = _write_lines(view, chosen, out)
        part.replace(file)
    typer.echo(f"{count} requests in {file}", err=True)


def _write_lines(view: SpillView, stage: Stage | None, out: TextIO) -> int:
    total = view.count(stage)
    done = 0
    for done, each in enumerate(_told_of(view.rows(stage), total), start=1):  # noqa: B007 - counted
        carried = view.carried(each.key)
        line = {
            **asdict(each),
            "request_base64": _base64(carried.request),
            "edge_base64": _base64(carried.edge),
            "answer_base64": _base64(carried.answer),
        }
        out.write(json.dumps(line) + "\n")
    return done


def _told_of(rows: Iterator[Seen], total: int) -> Iterator[Seen]:
    """Say how far it is, once it has taken two seconds and then now and then."""
    said_s = time.monotonic()
    for done, each in enumerate(rows):
        yield each
        if done % PROGRESS_EVERY == 0 and time.monotonic() - said_s > PROGRESS_AFTER_S:
            said_s = time.monotonic()
            typer.echo(f"{done} of {total} requests", err=True)


def _base64(data: bytes | None) -> str | None:
    return None if data is None else base64.b64encode(data).decode()


def _path(state_dir: Path | None) -> Path:
    return read_settings(state_dir=state_dir).outbox_path
