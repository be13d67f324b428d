"""`overspill simulate`: a whole fleet of light agents, with faults, through one rollout."""

from __future__ import annotations

import asyncio
import json
import shlex
import shutil
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Annotated, TypeAlias

import typer
from rich.console import Console

from overspill.commands.visiting import look_for_ever, visit
from overspill.demo.workplace import workplace
from overspill.interruption import Interrupted, run_until_interrupted
from overspill.simulate.guests import BadGuests, invite
from overspill.simulate.live import SceneView
from overspill.simulate.plan import (
    BEFORE,
    MAX_PLAN_BYTES,
    MODEL,
    MOST_AGENTS,
    NAME_PREFIX,
    BadPlan,
    Plan,
    read_plan,
    usual_plan,
)
from overspill.simulate.report import document, output, show
from overspill.simulate.run import Options, Outcome, Simulation
from overspill.simulate.stage import Stage
from overspill.tasks import alongside

Then: TypeAlias = Callable[[Outcome, Stage], Awaitable[None]]


def simulate(  # noqa: PLR0913 - each is an option of the command
    *,
    agents: Annotated[
        int | None,
        typer.Option(
            min=1, max=MOST_AGENTS, help="How many.", show_default="100, or the plan's"
        ),
    ] = None,
    plan_file: Annotated[
        Path | None,
        typer.Option(
            "--plan",
            metavar="FILE",
            help="TOML: agents, faults, how good the versions are (docs/simulate.md).",
        ),
    ] = None,
    seed: Annotated[
        int | None,
        typer.Option(
            min=0,
            help="The same seed gives the same agents the same faults.",
            show_default="1, or the plan's",
        ),
    ] = None,
    faults: Annotated[
        bool, typer.Option(help="Without a plan: a few agents with each fault.")
    ] = True,
    processes: Annotated[
        int, typer.Option(min=1, max=64, help="That hold the agents.")
    ] = 2,
    workers: Annotated[int, typer.Option(min=1, max=32, help="In the pool.")] = 1,
    within: Annotated[
        float, typer.Option(metavar="SECONDS", min=1, help="The rollout may take it.")
    ] = 300.0,
    folder: Annotated[
        Path | None,
        typer.Option(help="Work there and leave it; a temporary folder if unset."),
    ] = None,
    stay: Annotated[
        bool,
        typer.Option(
            "--stay", help="Leave it running until Ctrl-C, to roll out more by hand."
        ),
    ] = False,
    broker: Annotated[
        str | None,
        typer.Option(
            metavar="URL|DIR",
            help="Start nothing but the agents: they join the fleet at this broker, "
            "mqtt://HOST:1883 or the folder of `overspill broker up`, until Ctrl-C.",
        ),
    ] = None,
    passwords: Annotated[
        Path | None,
        typer.Option(
            metavar="FILE",
            help="With --broker: lines NAME=PASSWORD of the agents that may connect.",
        ),
    ] = None,
    prefix: Annotated[
        str,
        typer.Option(help="With --broker: only names that begin so are simulated."),
    ] = NAME_PREFIX,
    root: Annotated[
        Path | None,
        typer.Option(
            metavar="FILE", help="With --broker: the fleet's trust/root.json."
        ),
    ] = None,
    model: Annotated[
        str | None, typer.Option(help="With --broker: what they serve.")
    ] = None,
    serving: Annotated[
        Path | None,
        typer.Option(
            metavar="DIR",
            help="With --broker: the folder of the bundle that they come with.",
            show_default="none: they have no model yet",
        ),
    ] = None,
    to: Annotated[
        str | None,
        typer.Option(
            metavar="VERSION",
            help="With --broker: end once every agent serves it, or has said why not.",
        ),
    ] = None,
    as_json: Annotated[
        bool, typer.Option("--json", help="Print what came of it as JSON.")
    ] = False,
) -> None:
    """Put a rollout to many simulated agents, some of them with faults.

    A private RabbitMQ, a worker that serves updates, the fleet's daemon and agents that
    each have a connection and an identity of their own. They run the loops of the real
    agent around a pretended device and pull and verify real chunks. Nothing leaves this
    machine.

    With --broker they visit a fleet of yours, which rolls out to them: its broker lets
    them in by --passwords, and --root is what they trust. Their sessions end with them.

    Exit code 0: every agent settled, and the fleet knows of each what it says itself.
    1: not, and what is wrong is said. 2: wrong command line or plan. 130: interrupted,
    which is also how `--stay` ends, and `--broker` without `--to`.
    """
    try:
        plan = _plan(plan_file, agents, seed, faults=faults)
        if broker is None:
            _nothing_for_visitors(
                passwords=passwords, root=root, model=model, serving=serving, to=to
            )
            guests = None
        else:
            _nothing_to_start(plan, stay=stay)
            guests = invite(
                broker,
                passwords=passwords,
                prefix=prefix,
                agents=plan.agents,
                root=root,
                model=model,
                serving=serving,
            )
    except (BadPlan, BadGuests) as error:
        raise typer.BadParameter(str(error)) from error
    progress = Console(stderr=True)
    options = Options(workers=workers, processes=processes, within_s=within)
    if guests is not None:
        code = visit(plan, guests, options, to=to, folder=folder, as_json=as_json)
        raise typer.Exit(code)

    def tell(outcome: Outcome) -> None:
        if as_json:
            typer.echo(json.dumps(document(outcome), indent=2))
        else:
            show(output(), outcome)

    async def stay_up(outcome: Outcome, stage: Stage) -> None:
        tell(outcome)
        typer.echo(_invitation(stage))
        await asyncio.Event().wait()

    then = stay_up if stay else None
    try:
        outcome = run_until_interrupted(
            lambda: _perform(plan, options, folder, then, progress)
        )
    except Interrupted as end:
        progress.print("interrupted: every process was stopped", highlight=False)
        raise typer.Exit(end.exit_code) from None
    tell(outcome)
    raise typer.Exit(1 if outcome.failures else 0)


def _nothing_for_visitors(**given: object) -> None:
    strange = [name for name, value in given.items() if value is not None]
    if strange:
        raise BadGuests(f"--{strange[0]} is for visitors of a fleet: give --broker")


def _nothing_to_start(plan: Plan, *, stay: bool) -> None:
    if stay:
        raise BadGuests("--stay has nothing to leave running: with --broker they stay")
    strange = plan.model_fields_set & {
        "outage_s",
        "rollout",
        "model_bytes",
        "moved_share",
    }
    if strange:
        raise BadGuests(
            f"the plan says {min(strange)}, which is the fleet's own matter with --broker"
        )


def _plan(
    file: Path | None, agents: int | None, seed: int | None, *, faults: bool
) -> Plan:
    if file is not None:
        try:
            with file.open("rb") as opened:
                text = opened.read(MAX_PLAN_BYTES + 1)
        except OSError as error:
            raise BadPlan(f"{file} cannot be read: {error.strerror}") from error
        return read_plan(text, agents=agents, seed=seed)
    if faults:
        return usual_plan(agents=agents, seed=seed)
    return read_plan(b"", agents=agents, seed=seed)


async def _perform(
    plan: Plan,
    options: Options,
    folder: Path | None,
    then: Then | None,
    console: Console,
) -> Outcome:
    with workplace(folder, keep=False) as place:
        simulation = Simulation(plan, options, place.folder, then)
        with SceneView(simulation.scene, console) as view:
            outcome = await alongside(simulation.run(), look_for_ever(view))
        place.keep = place.keep or bool(outcome.failures)
        if place.keep:
            # What agents pulled is of no use to anybody.
            for left in place.folder.glob("logs/agents-*/"):
                shutil.rmtree(left, ignore_errors=True)
            console.print(f"logs are in {place.folder / 'logs'}", highlight=False)
    return outcome


def _invitation(stage: Stage) -> str:
    """How to be the operator of what runs."""
    path = stage.folder / "operator.env"
    path.touch(mode=0o600)
    path.write_text(
        "".join(
            f"{name}={shlex.quote(value)}\n"
            for name, value in stage.operator_variables.items()
        )
    )
    return f"""
It stays up until Ctrl-C. Be the operator in another terminal:
  set -a; . {shlex.quote(str(path))}; set +a
  overspill rollout history
  overspill rollout start {MODEL} {BEFORE} --waves 10%,50% --soak 5s --probation 3s
  overspill rollout watch
  overspill device list"""
