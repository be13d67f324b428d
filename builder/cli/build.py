"""`overspill model build`: an edge model, its threshold and a report, from one file."""

from __future__ import annotations

import json as json_of
import sys
from pathlib import Path
from typing import Annotated, Any

import typer

from builder.adapters.needs import check_installed
from builder.app import Build, Built
from builder.cli.drawing import Drawn, candidates_table, quiet_tensorflow, results
from builder.core.refusal import BuildRefused
from builder.settings import read_build_file


def _share(text: str) -> float:
    """A share of requests: 0.15, or 15%."""
    try:
        value = float(text.removesuffix("%").strip())
    except ValueError as error:
        raise typer.BadParameter(f"a share reads 15% or 0.15, got {text!r}") from error
    share = value / 100 if text.endswith("%") else value
    if not 0 <= share < 1:
        raise typer.BadParameter(f"a share is from 0 to under 100%, got {text!r}")
    return share


def _limit(text: str) -> Any:  # noqa: ANN401 - typer's own
    return typer.Option(parser=_share, metavar="SHARE", show_default=False, help=text)


def build(  # noqa: PLR0913, PLR0917 - the options of a command
    file: Annotated[
        Path | None,
        typer.Argument(
            metavar="[FILE]", help="A build file (TOML), or a folder with build.toml."
        ),
    ] = None,
    out: Annotated[
        Path | None,
        typer.Option(help="Where steps, report and bundle go; built/NAME-VERSION."),
    ] = None,
    name: Annotated[str | None, typer.Option(help="Of the model.")] = None,
    version: Annotated[str | None, typer.Option(help="Of the bundle.")] = None,
    cloud: Annotated[
        Path | None, typer.Option(help="A SavedModel's folder, .keras or .h5.")
    ] = None,
    output: Annotated[
        str | None, typer.Option(help="Of a cloud model that has several.")
    ] = None,
    edge: Annotated[
        Path | None, typer.Option(help="An existing .tflite, to calibrate as it is.")
    ] = None,
    data: Annotated[
        str | None,
        typer.Option(
            help="A folder of pictures by class, .npz, .csv, .parquet or module:function."
        ),
    ] = None,
    target: Annotated[
        str | None, typer.Option(help="For example '2 points worse' or '15% spilled'.")
    ] = None,
    seed: Annotated[int | None, typer.Option(help="Of every chance.")] = None,
    max_kb: Annotated[float | None, typer.Option(help="Of the model file.")] = None,
    max_ms: Annotated[
        float | None, typer.Option(help="Of one invocation, median, one thread.")
    ] = None,
    max_spill: Annotated[
        float | None, _limit("Spilled to keep the target, such as 15%.")
    ] = None,
    max_accuracy_drop: Annotated[
        float | None, _limit("How much less often right than the cloud, alone.")
    ] = None,
    max_corrupt: Annotated[
        float | None, _limit("Of the examples, that cannot be read; 1%.")
    ] = None,
    *,
    accept_nearest: Annotated[
        bool,
        typer.Option(
            "--accept-nearest",
            help="Promise the nearest target where the data cannot support the one asked.",
        ),
    ] = False,
    json: Annotated[
        bool, typer.Option("--json", help="Print the report's JSON and nothing else.")
    ] = False,
) -> None:
    """Compress a model for the edge, and find the threshold that keeps a target.

    Makes candidates, measures each on examples held out, chooses one and calibrates it.
    What is finished is kept: run the same command again and it goes on.
    """
    said = {
        "name": name,
        "version": version,
        "target": target,
        "seed": seed,
        "edge": edge.resolve() if edge else None,
        "cloud": {"model": cloud.resolve() if cloud else None, "output": output},
        "data": {"source": _found(data), "max_corrupt": max_corrupt},
        "keep": {
            "max_kb": max_kb,
            "max_ms": max_ms,
            "max_spill": max_spill,
            "max_accuracy_drop": max_accuracy_drop,
        },
    }
    options = read_build_file(file, _stated(said))
    root = Path.cwd() if file is None else (file if file.is_dir() else file.parent)
    where = out or Path("built") / f"{options.name}-{options.version}"
    check_installed("tensorflow", "ai_edge_litert", "matplotlib")
    with quiet_tensorflow(), Drawn() as drawn:
        built = Build(options, root, where, drawn).run(accept_nearest=accept_nearest)
    if json:
        sys.stdout.write(json_of.dumps(built.document, indent=2) + "\n")
    else:
        _tell(built)
    if built.bundle is None:
        raise BuildRefused(_why_none(built))


def _found(data: str | None) -> str | None:
    """What lies in the working folder is meant from there, and not from the file's."""
    if data is not None and Path(data).exists():
        return str(Path(data).resolve())
    return data


def _stated(said: dict[str, Any]) -> dict[str, Any]:
    """Only what was said: an option left out leaves the file's word."""
    kept: dict[str, Any] = {}
    for name, value in said.items():
        inner = _stated(value) if isinstance(value, dict) else value
        if inner not in (None, {}):
            kept[name] = inner
    return kept


def _tell(built: Built) -> None:
    console = results()
    console.print(candidates_table(built.document))
    console.print(f"{built.choice.why}.", markup=False, highlight=False)
    test, promise = built.document["test"], built.document["promise"]
    if test is not None:
        console.print(
            f"{promise['target']}: threshold {promise['threshold']:.4f}. On the test "
            f"part {test['spilled']:.2%} spilled, right {test['accuracy']:.2%} (edge "
            f"alone {test['edge_accuracy']:.2%}"
            + (
                ")."
                if test["cloud_accuracy"] is None
                else f", cloud {test['cloud_accuracy']:.2%})."
            ),
            markup=False,
            highlight=False,
            soft_wrap=True,
        )
    console.print(f"Report: {built.report}", markup=False, soft_wrap=True)
    if built.bundle is not None:
        console.print(
            f"Next: overspill model publish {built.bundle}",
            markup=False,
            soft_wrap=True,
        )


def _why_none(built: Built) -> str:
    if built.choice.chosen is None:
        return f"no bundle was made: {built.choice.why}"
    return (
        f"no bundle was made: {built.document['promise']['says']} State another target, "
        "or use --accept-nearest."
    )
