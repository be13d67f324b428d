"""`overspill up`: the same system as the demo's, left running to play with."""

from __future__ import annotations

import asyncio
import json
import os
import shlex
import shutil
import sys
from pathlib import Path
from typing import Annotated, Any, Final

import typer
from rich.console import Console

from broker.ports import free_port, is_free
from overspill.demo.live import LiveView, Scene
from overspill.example import Example
from overspill.interruption import Interrupted, run_until_interrupted
from overspill.program import Program
from overspill.system import System
from overspill.tasks import alongside

DEFAULT_FOLDER: Final = Path(".overspill/up")
USUAL_PORT: Final = 1883
LOOK_EVERY_S: Final = 0.5
OPERATOR_FILE: Final = "operator.env"


def up(
    *,
    folder: Annotated[
        Path,
        typer.Option(help="Where it keeps everything; found again the next time."),
    ] = DEFAULT_FOLDER,
    workers: Annotated[int, typer.Option(min=1, max=32, help="In the pool.")] = 2,
    as_json: Annotated[
        bool, typer.Option("--json", help="Print one line of JSON once it is ready.")
    ] = False,
) -> None:
    """Start the whole system and leave it running until Ctrl-C.

    RabbitMQ, workers, the fleet's daemon and three agents, all on the loopback
    address. Prints where to publish and what to try.
    """
    messages = Console(stderr=True)
    try:
        run_until_interrupted(
            lambda: _run(folder, workers=workers, as_json=as_json, messages=messages)
        )
    except Interrupted as end:
        messages.print(f"stopped; {folder} is kept for the next time", highlight=False)
        raise typer.Exit(end.exit_code) from None


async def _run(folder: Path, *, workers: int, as_json: bool, messages: Console) -> None:
    example = Example.beside_package()
    scene = Scene(headline="starting the system")
    system = System(
        folder,
        example,
        workers=workers,
        device_port=USUAL_PORT if is_free(USUAL_PORT) else free_port(),
        changed=scene.parts.__setitem__,
    )
    scene.parts.update(dict.fromkeys(system.parts, "waiting"))
    with LiveView(scene, messages) as view:
        serving = _serve(system, view, as_json=as_json, messages=messages)
        await alongside(serving, _look_for_ever(view))


async def _serve(
    system: System, view: LiveView, *, as_json: bool, messages: Console
) -> None:
    async with system:
        view.close()
        settings = _write_operator_file(system)
        if as_json:
            typer.echo(json.dumps(document(system, settings)))
        else:
            typer.echo(invitation(system, settings))
        await _watch(system, messages)


async def _look_for_ever(view: LiveView) -> None:
    while True:
        view.look()
        await asyncio.sleep(LOOK_EVERY_S)


async def _watch(system: System, messages: Console) -> None:
    """Tell of processes that end; the rest goes on, as it would anywhere."""
    told: set[Program] = set()
    while True:
        for program in system.died():
            if program not in told:
                told.add(program)
                messages.print(program.obituary(), highlight=False, markup=False)
        await asyncio.sleep(LOOK_EVERY_S)


def document(system: System, operator_file: Path) -> dict[str, Any]:
    """Where everything is, without passwords."""
    return {
        "ready": True,
        "folder": str(system.folder),
        "logs": str(system.logs),
        "operator_file": str(operator_file),
        "fleet_home": str(system.home),
        "rabbitmq": {
            "version": system.rabbitmq_version,
            "ports": system.rabbitmq_ports,
            "pids": list(system.rabbitmq_pids),
            "credentials": str(system.folder / "rabbitmq" / "node.json"),
        },
        "agents": [
            {
                "agent": place.agent,
                "device": place.device,
                "url": place.url,
                "port": place.port,
                "embedded": place.embedded,
                "state_dir": str(place.state_dir),
            }
            for place in system.agents
        ],
        "processes": {program.name: program.pid for program in system.programs},
    }


def invitation(system: System, operator_file: Path) -> str:
    """What a person may try now, ready to be copied."""
    example, first = system.example, system.agents[0]
    before, after = example.manifests()
    rabbitmq = _shown(system.folder / "rabbitmq")
    overspill, agent = _command("overspill"), _command("overspill-agent")
    to = f"-h 127.0.0.1 -p {first.port}"
    topic = f"infer/{first.device}/{example.model}"
    others = "\n".join(
        f"  {place.agent} serves devices at {place.url}"
        + (" (the broker that it embeds)" if place.embedded else " (Mosquitto)")
        for place in system.agents
    )
    return f"""\
The system is up. RabbitMQ {system.rabbitmq_version}, {len(system.agents)} agents:
{others}

Be a device. Listen in one terminal, publish in another:
  mosquitto_sub {to} -t answer/{first.device}
  mosquitto_pub {to} -f {_shown(example.shirt)} -t {topic}
  mosquitto_pub {to} -f {_shown(example.large_picture)} -t {topic}
  echo "{{\\"id\\": \\"shirt-1\\", \\"deadline_ms\\": 5000, \\"image\\": \\"$(base64 -w0 {_shown(example.shirt)})\\"}}" \\
    | mosquitto_pub {to} -s -t {topic}

Be the operator. Edge model version {before.version} is in service, push {after.version}:
  set -a; . {_shown(operator_file)}; set +a
  {overspill} model publish {_shown(example.bundles[1])}
  {overspill} rollout start {example.model} {after.version} --wait 60
  {overspill} device list

Take the cloud away, publish, and bring it back:
  {overspill} broker down --folder {rabbitmq}
  {overspill} broker up --folder {rabbitmq}

Look inside:
  {agent} status --state-dir {_shown(first.state_dir)}
  {overspill} broker status --folder {rabbitmq}
  tail -f {_shown(system.logs)}/*.log

Ctrl-C stops it all."""


def _write_operator_file(system: System) -> Path:
    """The settings of the operator's commands, password included, for a shell."""
    path = system.folder / OPERATOR_FILE
    path.touch(mode=0o600)
    path.chmod(0o600)
    path.write_text(
        "".join(
            f"{name}={shlex.quote(value)}\n"
            for name, value in system.operator_variables.items()
        )
    )
    return path


def _command(name: str) -> str:
    """How this person reaches a command: by its name, or else where it is."""
    beside = Path(sys.executable).parent / name
    if shutil.which(name) is not None or not beside.exists():
        return name
    return _shown(beside)


def _shown(path: Path) -> str:
    """A path as a person would type it here."""
    here = Path.cwd()
    shown = path.relative_to(here) if path.is_relative_to(here) else path
    return shlex.quote(str(shown)) if os.fspath(shown) else "."
