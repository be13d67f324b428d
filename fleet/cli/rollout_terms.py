"""The options that say how a version is rolled out; the same fields as in `fleet.yaml`."""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable
from typing import Annotated, Any, Concatenate, Final, ParamSpec, cast, get_args

import typer
from pydantic import ValidationError
from typer.models import ArgumentInfo

from fleet.core.declared import FEW_AGENTS, STAGED, DeclaredRollout, read_gate
from fleet.core.faults import faults

# Options whose field lies within another.
INSIDE: Final = ("probation", "probation_requests", "rate", "budget", "shared")
OPTIONS: Final = {"gates": "--gate"}
WHO: Final = "Which agents"
HOW: Final = "Waves and gates"
UPDATE: Final = "How agents update"

TERMS: Final[dict[str, Any]] = {
    "model": Annotated[str, typer.Argument(metavar="NAME", help="A published model.")],
    "version": Annotated[
        str, typer.Argument(metavar="VERSION", help="One of its published versions.")
    ],
    "agents": Annotated[
        str | None,
        typer.Option(
            help="Only these, as a,b,c. Default: all, and those that come later.",
            rich_help_panel=WHO,
        ),
    ],
    "where": Annotated[
        str | None,
        typer.Option(
            metavar="QUERY",
            help='Only those that match, as "site=lyon and memory_mb >= 512".',
            rich_help_panel=WHO,
        ),
    ],
    "waves": Annotated[
        str | None,
        typer.Option(
            help=f"1%,10%,50% or 10,100 (agents in all), 10x2 (ten, then twice as many "
            f"more each time), all, or auto: {STAGED.replace(' ', '')}, but all at once up "
            f"to {FEW_AGENTS} agents. A last wave of all follows by itself.",
            rich_help_panel=HOW,
        ),
    ],
    "soak": Annotated[
        str | None,
        typer.Option(
            metavar="TIME",
            help="How long to watch each wave. Default: 5m when there are several.",
            rich_help_panel=HOW,
        ),
    ],
    "approve": Annotated[
        str | None,
        typer.Option(
            metavar="never|first|each",
            help="After which waves to wait for `rollout approve`. Default: never.",
            rich_help_panel=HOW,
        ),
    ],
    "shadow": Annotated[
        str | None,
        typer.Option(
            metavar="REACH",
            help="First only run it beside the active version, on 10, 5% or all.",
            rich_help_panel=HOW,
        ),
    ],
    "gates": Annotated[
        list[str] | None,
        typer.Option(
            "--gate",
            metavar="KIND=LIMIT",
            help="Another limit for a gate, or KIND=off; may be repeated. KIND: success, "
            "silence, errors, agreement, spill, latency, promise.",
            rich_help_panel=HOW,
        ),
    ],
    "no_gates": Annotated[
        bool,
        typer.Option("--no-gates", help="Ask no gate.", rich_help_panel=HOW),
    ],
    "on_failure": Annotated[
        str | None,
        typer.Option(
            metavar="roll_back|pause",
            help="What a failed gate does. Default: roll_back.",
            rich_help_panel=HOW,
        ),
    ],
    "max_parallel": Annotated[
        int | None,
        typer.Option(
            help="How many agents may pull at once. Default: 100.", rich_help_panel=HOW
        ),
    ],
    "lease": Annotated[
        str | None,
        typer.Option(
            metavar="TIME",
            help="How long an agent may stand still before it has failed. Default: 10m.",
            rich_help_panel=HOW,
        ),
    ],
    "patience": Annotated[
        str | None,
        typer.Option(
            metavar="TIME",
            help="How long gates may be unsure before you are asked. Default: 1d.",
            rich_help_panel=HOW,
        ),
    ],
    "window": Annotated[
        str | None,
        typer.Option(
            metavar="SPAN",
            help='When agents may change, in their own time: "Mon-Fri 02:00-05:00".',
            rich_help_panel=UPDATE,
        ),
    ],
    "probation": Annotated[
        str | None,
        typer.Option(
            metavar="TIME",
            help="How long an agent may still return by itself. Default: 30s.",
            rich_help_panel=UPDATE,
        ),
    ],
    "probation_requests": Annotated[
        int | None,
        typer.Option(
            help="And at least until it has served so many. Default: 0.",
            rich_help_panel=UPDATE,
        ),
    ],
    "rate": Annotated[
        str | None,
        typer.Option(
            metavar="BYTES",
            help="What an agent may pull a second, as 100kB.",
            rich_help_panel=UPDATE,
        ),
    ],
    "budget": Annotated[
        str | None,
        typer.Option(
            metavar="BYTES",
            help="What an agent may pull a day, as 20MB.",
            rich_help_panel=UPDATE,
        ),
    ],
    "shared": Annotated[
        bool,
        typer.Option(
            "--shared",
            help="Agents of a wave listen to one transfer together.",
            rich_help_panel=UPDATE,
        ),
    ],
}
P = ParamSpec("P")


def with_terms(
    command: Callable[Concatenate[DeclaredRollout, P], None],
) -> Callable[..., None]:
    """The command with the options that declare a rollout in place of the declared one."""
    own = list(inspect.signature(command, eval_str=True).parameters.values())[1:]
    options = [
        inspect.Parameter(
            name,
            inspect.Parameter.KEYWORD_ONLY,
            annotation=kind,
            default=_default(kind),
        )
        for name, kind in TERMS.items()
    ]

    @functools.wraps(command)
    def typed(**said: Any) -> None:  # noqa: ANN401 - each option has its own type
        fields = {name: said.pop(name) for name in TERMS}
        rest = cast("Callable[[DeclaredRollout], None]", command)
        functools.partial(rest, **said)(declared(fields))

    signature = inspect.Signature([*options, *own])
    # What typer reads; a command has more options than people should write twice.
    typed.__signature__ = signature  # type: ignore[attr-defined]
    typed.__annotations__ = {
        each.name: each.annotation for each in signature.parameters.values()
    }
    return typed


def _default(kind: Any) -> Any:  # noqa: ANN401 - an annotation, and a default of its type
    base, info = get_args(kind)
    if isinstance(info, ArgumentInfo):
        return inspect.Parameter.empty
    return False if base is bool else None


def declared(said: dict[str, Any]) -> DeclaredRollout:
    """The rollout that options declare.

    Args:
        said: by field; None, and False for a flag, is not said.

    Raises:
        typer.BadParameter: one cannot be read; says which and what would do.
    """
    fields = {
        name: value
        for name, value in said.items()
        if value is not None and value is not False
    }
    no_gates = fields.pop("no_gates", False)
    gates = fields.pop("gates", None)
    if no_gates and gates:
        raise typer.BadParameter("not together with --gate", param_hint="--no-gates")
    if no_gates:
        fields["gates"] = "off"
    elif gates:
        fields["gates"] = _gates(gates)
    if "agents" in fields:
        named = fields["agents"].split(",")
        fields["agents"] = [each.strip() for each in named if each.strip()]
    fields["policy"] = {name: fields.pop(name) for name in INSIDE if name in fields}
    try:
        return DeclaredRollout.model_validate(fields)
    except ValidationError as error:
        fault = faults(error, fields, DeclaredRollout)[0]
        places = [each for each in fault.path if each != "policy"] or ["options"]
        raise typer.BadParameter(
            fault.reason, param_hint=_option(str(places[0]))
        ) from error


def _gates(said: list[str]) -> dict[str, Any]:
    try:
        return dict(map(read_gate, said))
    except ValueError as error:
        raise typer.BadParameter(str(error), param_hint="--gate") from error


def _option(field: str) -> str:
    if field in {"model", "version"}:
        return {"model": "NAME", "version": "VERSION"}[field]
    return OPTIONS.get(field, f"--{field.replace('_', '-')}")
