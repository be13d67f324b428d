"""`overspill`: distribution and command. Loads only the command that was asked for.

A failure that a person can mend is one sentence on standard error and exit code 1; a
wrong command line is exit code 2; anything else is a fault of ours, with a traceback.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from importlib import import_module
from importlib.metadata import version
from typing import Annotated, Final

import typer

from lifecycle.logs import configure_logs

# Each name is a typer.Typer (`module:app`) or a function, imported when it is used.
COMMANDS: Final = {
    "demo": "overspill.commands.demo:demo",
    "up": "overspill.commands.up:up",
    "doctor": "overspill.commands.doctor:doctor",
    "broker": "overspill.commands.broker:app",
    "simulate": "overspill.commands.simulate:simulate",
    "load": "overspill.commands.load:load",
    "model": "overspill.commands.model:app",
    "explain": "builder.cli.explain:explain",
    "rollout": "fleet.cli.rollout:app",
    "apply": "fleet.cli.apply:apply",
    "diff": "fleet.cli.apply:diff",
    "trust": "fleet.cli.trust:app",
    "device": "fleet.cli.device:app",
    "audit": "fleet.cli.audit:app",
    "dead": "fleet.cli.dead:app",
    "examples": "overspill.commands.examples:app",
    "fleet": "fleet.cli.daemon:app",
}
# Their exceptions say what happened, to what, and what to do next.
PACKAGES: Final = frozenset(
    {
        "broker",
        "builder",
        "bundle",
        "cascade",
        "lifecycle",
        "edge_agent",
        "cloud_worker",
        "fleet",
        "overspill",
    }
)


def main(arguments: Sequence[str] | None = None) -> None:
    """Run the command line and exit.

    Args:
        arguments: without the program's name; those of the process when None.
    """
    given = list(sys.argv[1:] if arguments is None else arguments)
    try:
        build(given)(args=given, prog_name="overspill")
    except KeyboardInterrupt:
        sys.stderr.write("interrupted\n")
        sys.exit(130)
    except Exception as error:
        if not _can_be_mended(error):
            raise
        sys.stderr.write("\n".join([f"error: {error}", *_notes(error)]) + "\n")
        sys.exit(1)


def build(arguments: Sequence[str]) -> typer.Typer:
    """The application with the command that `arguments` name, or else with all."""
    app = typer.Typer(
        name="overspill",
        no_args_is_help=True,
        pretty_exceptions_enable=False,
        callback=_overspill,
    )
    named = next((each for each in arguments if not each.startswith("-")), None)
    for name in [named] if named in COMMANDS else COMMANDS:
        _mount(app, name)
    return app


def _mount(app: typer.Typer, name: str) -> None:
    module, _, attribute = COMMANDS[name].partition(":")
    try:
        target = getattr(import_module(module), attribute)
    except ModuleNotFoundError as error:
        _mount_stub(app, name, error.name or module)
        return
    if isinstance(target, typer.Typer):
        app.add_typer(target, name=name)
    else:
        app.command(name)(target)


def _mount_stub(app: typer.Typer, name: str, module: str) -> None:
    """A command that says which part of the distribution is not installed."""

    # Not a group: whatever follows its name, this is what is to be said.
    @app.command(
        name,
        help=f"(not installed: needs the Python module {module})",
        context_settings={"allow_extra_args": True, "ignore_unknown_options": True},
    )
    def explain() -> None:
        sys.stderr.write(
            f"error: `overspill {name}` needs the Python module {module}, which is not "
            "installed: run `pip install 'overspill[all]'`\n"
        )
        raise typer.Exit(1)


def _can_be_mended(error: Exception) -> bool:
    ours = type(error).__module__.partition(".")[0] in PACKAGES
    return ours or isinstance(error, OSError)


def _notes(error: Exception) -> list[str]:
    """What was added to an error on its way up, such as where logs are."""
    return list(getattr(error, "__notes__", ()))


def _print_version(*, asked: bool) -> None:
    if asked:
        typer.echo(f"overspill {version('overspill')}")
        raise typer.Exit


def _overspill(
    *,
    log_level: Annotated[
        str, typer.Option(help="What to log to standard error.", metavar="LEVEL")
    ] = "warning",
    version: Annotated[  # noqa: ARG001 - its callback acts before anything else
        bool,
        typer.Option(
            "--version",
            help="Print the version and exit.",
            is_eager=True,
            callback=lambda asked: _print_version(asked=asked),
        ),
    ] = False,
) -> None:
    """Inference that lives on the edge and spills to the cloud."""
    if log_level.lower() not in {"debug", "info", "warning", "error"}:
        raise typer.BadParameter(
            "use debug, info, warning or error", param_hint="level"
        )
    configure_logs(log_level)


if __name__ == "__main__":
    main()
