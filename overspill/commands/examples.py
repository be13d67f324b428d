"""`overspill examples`: what the pool has kept for retraining, as a data set, or gone."""

from __future__ import annotations

import json
import sys
import time
from collections import Counter
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Annotated, Any, Final

import numpy as np
import typer
from rich.console import Console
from rich.table import Table

from broker.messages import Reason
from bundle.durable import replacing
from cloud_worker.adapters.example_index import Row
from cloud_worker.adapters.example_view import ExampleView, Filter, Found, NoExamples
from cloud_worker.core.example_record import Example
from cloud_worker.core.examples import Agreement
from cloud_worker.settings import WorkerSettings
from fleet.core.letters import read_duration_s
from lifecycle.clock import SystemClock
from overspill.export import Export, to_folder, to_npz

NAME_LENGTH: Final = 12
PROGRESS_AFTER_S: Final = 2.0

app = typer.Typer(no_args_is_help=True)

FolderOption = Annotated[
    Path | None,
    typer.Option(
        "--folder",
        file_okay=False,
        help="Where workers keep examples. Default: OVERSPILL_WORKER_EXAMPLES.",
    ),
]
Model = Annotated[str | None, typer.Option(help="Only those of this model.")]
Label = Annotated[
    str | None, typer.Option("--class", help="Only those the cloud calls so.")
]
Why = Annotated[Reason | None, typer.Option(help="Only those spilled for this.")]
Device = Annotated[
    str | None, typer.Option(metavar="AGENT/DEVICE", help="Only those of this device.")
]
Older = Annotated[
    str | None,
    typer.Option(metavar="TIME", help="Only those kept so long ago: 2h, 30d."),
]
Disagreed = Annotated[
    bool, typer.Option("--disagreed", help="Only those the edge got otherwise.")
]
AsJson = Annotated[
    bool, typer.Option("--json", help="Print one JSON document, for scripts.")
]
OneId = Annotated[
    str, typer.Argument(metavar="ID", help="The beginning of its digest.")
]


class BadChoice(Exception):
    """These options do not say what to do."""


@app.callback()
def examples() -> None:
    """Answered requests that the pool keeps for retraining: see, export, purge."""


@app.command("list")
def list_examples(  # noqa: PLR0913 - each is an option of the command
    *,
    model: Model = None,
    label: Label = None,
    reason: Why = None,
    device: Device = None,
    older: Older = None,
    disagreed: Disagreed = False,
    limit: Annotated[int, typer.Option(min=1, help="At most so many.")] = 50,
    folder: FolderOption = None,
    as_json: AsJson = False,
) -> None:
    """List what is kept, the newest first, and how much there is of each class."""
    wanted = _filter(model, label, reason, device, older, disagreed=disagreed)
    with ExampleView(_folder(folder)) as view:
        found = view.find(wanted)
    rows = [each.row for each in found]
    if as_json:
        _print_json(
            {**_totals(rows), "examples": [asdict(row) for row in rows[:limit]]}
        )
        return
    if not rows:
        typer.echo("no example is chosen by these options")
        return
    console = Console(width=None if sys.stdout.isatty() else 200)
    console.print(_table(rows[:limit]))
    for name, classes in _by_model(rows).items():
        most = ", ".join(f"{each} {count}" for each, count in classes.most_common(12))
        typer.echo(f"{name}: {sum(classes.values())} examples: {most}")
    if len(rows) > limit:
        _warn(f"{limit} shown, of {len(rows)}: --limit shows more")


@app.command()
def show(
    id_: OneId,
    *,
    save: Annotated[
        Path | None, typer.Option(help="Write its inputs there: an image, or .npz.")
    ] = None,
    folder: FolderOption = None,
    as_json: AsJson = False,
) -> None:
    """Show one example: what was asked, what the edge said, what the cloud said."""
    with ExampleView(_folder(folder)) as view:
        found = view.named(id_)[0]
    example = found.read()
    if save is not None:
        _save(example, save)
    if as_json:
        _print_json({**asdict(found.row), "inputs": _inputs(example)})
        return
    typer.echo("\n".join(_lines(found.row, example)))


@app.command()
def export(  # noqa: PLR0913 - each is an option of the command
    to: Annotated[
        Path, typer.Argument(help="FILE.npz, or a new folder of pictures by class.")
    ],
    *,
    model: Annotated[
        str | None,
        typer.Option(help="Of which model; may be left out where there is one."),
    ] = None,
    label: Label = None,
    reason: Why = None,
    disagreed: Disagreed = False,
    input_: Annotated[
        str | None, typer.Option("--input", help="Which input, of several.")
    ] = None,
    force: Annotated[
        bool, typer.Option("--force", help="Replace FILE.npz if it is there.")
    ] = False,
    folder: FolderOption = None,
    as_json: AsJson = False,
) -> None:
    """Write examples as a data set for `overspill model build`.

    Labels are the cloud's answers, in the order of the cloud model's classes. What
    cannot be a part of it (no label, another shape) is counted.
    """
    wanted = _filter(model, label, reason, None, None, disagreed=disagreed)
    with ExampleView(_folder(folder)) as view:
        found = view.find(wanted)
    _check_one_model(found)
    with Console(stderr=True).status("reading examples") as status:

        def told(done: int) -> None:
            status.update(f"reading examples: {done} of {len(found)}")

        if to.suffix == ".npz":
            written = to_npz(found, to, only_input=input_, force=force, told=told)
        else:
            written = to_folder(found, to, told=told)
    if as_json:
        _print_json(_exported(written))
        return
    typer.echo(
        f"{written.examples} examples of {len(written.classes)} classes in {written.path}"
    )
    for why, count in written.left_out.items():
        _warn(f"{count} left out: {why}")


@app.command()
def purge(  # noqa: PLR0913 - each is an option of the command
    id_: Annotated[
        str | None,
        typer.Argument(metavar="[ID]", help="The beginning of a digest; or use --all."),
    ] = None,
    *,
    every: Annotated[
        bool, typer.Option("--all", help="All that the other options choose.")
    ] = False,
    model: Model = None,
    label: Label = None,
    reason: Why = None,
    device: Device = None,
    older: Older = None,
    yes: Annotated[bool, typer.Option("--yes", help="Do not ask.")] = False,
    folder: FolderOption = None,
    as_json: AsJson = False,
) -> None:
    """Delete examples for good, in every worker's part. Workers may go on meanwhile."""
    wanted = _filter(model, label, reason, device, older)
    if (id_ is None) is not every or (id_ is not None and wanted != Filter()):
        raise BadChoice("say which: either the ID of one, or --all and what chooses")
    with ExampleView(_folder(folder)) as view:
        view.tidy()
        found = view.find(wanted) if id_ is None else view.named(id_)
        if every and found and not yes:
            _ask(len(found), as_json=as_json)
        gone = _purge(view, found)
    document = {"purged": gone.total(), "models": dict(gone)}
    if as_json:
        _print_json(document)
    else:
        typer.echo(f"purged {gone.total()} examples")


def _purge(view: ExampleView, found: Sequence[Found]) -> Counter[str]:
    gone: Counter[str] = Counter()
    said_s = time.monotonic()
    for row in view.purge(found):
        gone[row.model] += 1
        if time.monotonic() - said_s > PROGRESS_AFTER_S:
            said_s = time.monotonic()
            typer.echo(f"{gone.total()} of {len(found)} purged", err=True)
    return gone


def _folder(given: Path | None) -> Path:
    folder = given or WorkerSettings().examples
    if folder is None:
        raise NoExamples(
            "where are they? Say --folder, or set OVERSPILL_WORKER_EXAMPLES"
        )
    return folder


def _filter(
    model: str | None,
    label: str | None,
    reason: Reason | None,
    device: str | None,
    older: str | None,
    *,
    disagreed: bool = False,
) -> Filter:
    before_ms = None
    if older is not None:
        before_ms = SystemClock().wall_ms() - round(read_duration_s(older) * 1000)
    return Filter(
        model=model,
        label=label,
        reason=None if reason is None else reason.value,
        device=device,
        before_ms=before_ms,
        disagreed=disagreed,
    )


def _check_one_model(found: Sequence[Found]) -> None:
    models = sorted({each.row.model for each in found})
    if len(models) > 1:
        raise BadChoice(f"there are examples of {', '.join(models)}: say which --model")


def _ask(count: int, *, as_json: bool) -> None:
    if as_json or not sys.stdin.isatty():
        raise BadChoice("purging several needs --yes where nobody can be asked")
    typer.confirm(f"Purge {count} examples for good?", abort=True)


def _by_model(rows: Sequence[Row]) -> dict[str, Counter[str]]:
    by_model: dict[str, Counter[str]] = {}
    for row in rows:
        by_model.setdefault(row.model, Counter())[row.label or "(no label)"] += 1
    return by_model


def _totals(rows: Sequence[Row]) -> dict[str, Any]:
    return {
        "count": len(rows),
        "size_bytes": sum(row.size_bytes for row in rows),
        "models": {name: dict(found) for name, found in _by_model(rows).items()},
    }


def _table(rows: Sequence[Row]) -> Table:
    table = Table("id", "model", "spilled", "edge", "cloud", "times", "size", "kept")
    now_ms = SystemClock().wall_ms()
    for row in rows:
        table.add_row(
            row.digest[:NAME_LENGTH],
            f"{row.model} {row.version}",
            row.reason,
            _said(row.edge_label, row.edge_confidence),
            _said(row.label, row.confidence),
            str(row.count),
            _size(row.size_bytes),
            f"{_age(now_ms - row.at_ms)} ago",
        )
    return table


def _lines(row: Row, example: Example) -> list[str]:
    lines = [
        row.digest,
        f"  model    {row.model}, version {row.version}",
        f"  spilled  {row.reason}, by device {row.device} (hashed)",
        f"  cloud    {_said(row.label, row.confidence)}, margin {row.margin:.3f}",
    ]
    if row.edge_version is not None:
        edge = _said(row.edge_label, row.edge_confidence)
        lines.append(f"  edge     {edge}, version {row.edge_version}")
    agreement = Agreement(row.agreement).name.lower()
    lines.append(f"  the two  {agreement}; asked {row.count} times")
    lines.extend(
        f"  input    {name}: {what}" for name, what in _inputs(example).items()
    )
    return lines


def _inputs(example: Example) -> dict[str, str]:
    medium = example.inputs.medium
    if medium is not None:
        return {medium.media_type: _size(len(medium.data))}
    tensors = example.inputs.tensors or {}
    return {name: f"{each.dtype} {each.shape}" for name, each in tensors.items()}


def _save(example: Example, path: Path) -> None:
    if path.exists():
        raise BadChoice(f"{path} is there already: name another file")
    medium, tensors = example.inputs.medium, example.inputs.tensors or {}
    with replacing(path, mode=0o600) as file:
        if medium is not None:
            file.write(medium.data)
            return
        arrays = {
            name: np.frombuffer(each.data, each.dtype).reshape(each.shape)
            for name, each in tensors.items()
        }
        np.savez_compressed(file, allow_pickle=False, **arrays)


def _exported(written: Export) -> dict[str, Any]:
    return {
        "path": str(written.path),
        "examples": written.examples,
        "classes": written.classes,
        "left_out": written.left_out,
    }


def _said(label: str | None, sure: float | None) -> str:
    if label is None and sure is None:
        return ""
    return f"{label or '?'}" + ("" if sure is None else f" {sure:.2f}")


def _age(ms: int) -> str:
    seconds = max(0, ms) / 1000
    for unit, length in (("d", 86_400), ("h", 3600), ("min", 60)):
        if seconds >= 2 * length:
            return f"{seconds / length:.0f} {unit}"
    return f"{seconds:.0f} s"


def _size(size_bytes: int) -> str:
    return f"{size_bytes} B" if size_bytes < 10_000 else f"{size_bytes / 1000:.1f} kB"


def _warn(text: str) -> None:
    typer.echo(f"warning: {text}", err=True)


def _print_json(document: dict[str, Any]) -> None:
    typer.echo(json.dumps(document, indent=2))
