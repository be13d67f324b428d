"""`overspill broker`: a private RabbitMQ on this machine, loopback only."""

from __future__ import annotations

import asyncio
import json
from pathlib import Path
from typing import Annotated, Any, Final

import typer

from broker.node import Node, NodeError, NodeInfo

NOT_RUNNING: Final = 3

app = typer.Typer(no_args_is_help=True)

Folder = Annotated[
    Path,
    typer.Option(
        "--folder", help="Where it keeps configuration, data, logs and credentials."
    ),
]
AsJson = Annotated[
    bool, typer.Option("--json", help="Print one JSON document, for scripts.")
]
Port = Annotated[int | None, typer.Option(min=1, max=65535, show_default="a free one")]

DEFAULT_FOLDER: Final = Path(".overspill/broker")


@app.callback()
def broker() -> None:
    """Run a private RabbitMQ on this machine, loopback only, for demos and tests."""


@app.command()
def up(
    folder: Folder = DEFAULT_FOLDER,
    agents: Annotated[
        str, typer.Option(help="Agents that may connect, separated by commas.")
    ] = "agent-1,agent-2,agent-3",
    models: Annotated[
        str, typer.Option(help="Models whose queues exist from the start.")
    ] = "",
    amqp_port: Port = None,
    mqtt_port: Port = None,
    *,
    as_json: AsJson = False,
) -> None:
    """Start it, or find it running. It outlives this command."""
    node = Node(
        folder,
        agents=_names(agents),
        models=_names(models),
        amqp_port=amqp_port,
        mqtt_port=mqtt_port,
    )
    info = asyncio.run(node.start())
    if as_json:
        _print_json(_document(node.folder, info))
        return
    typer.echo(_summary(node.folder, info))
    typer.echo(
        f"  credentials in {node.folder / 'node.json'}\n"
        "  a URL with its password: overspill broker url USER"
    )


@app.command()
def status(folder: Folder = DEFAULT_FOLDER, *, as_json: AsJson = False) -> None:
    """Say whether it runs and what its queues hold. Exit 3 if it does not.

    RabbitMQ counts the messages of a queue every few seconds.
    """
    node = _load(folder)
    if node is None or not node.info.running:
        if as_json:
            _print_json({"running": False, "folder": str(folder.absolute())})
        else:
            typer.echo(f"no broker runs in {folder.absolute()}")
        raise typer.Exit(NOT_RUNNING)
    queues = asyncio.run(node.queues())
    if as_json:
        _print_json({**_document(node.folder, node.info), "queues": queues})
        return
    typer.echo(_summary(node.folder, node.info))
    width = max(map(len, queues), default=0)
    for name in sorted(queues):
        typer.echo(f"  {name:<{width}}  {queues[name]:>7}")


@app.command()
def down(folder: Folder = DEFAULT_FOLDER) -> None:
    """Stop it. Its data, ports and credentials stay for the next `up`."""
    node = _load(folder)
    if node is None or not node.info.running:
        typer.echo(f"no broker runs in {folder.absolute()}")
        return
    pid = node.info.pid
    asyncio.run(node.stop())
    typer.echo(f"stopped the broker in {node.folder} (process {pid})")


@app.command()
def url(
    user: Annotated[str, typer.Argument(help="admin, worker, fleet or an agent.")],
    folder: Folder = DEFAULT_FOLDER,
    *,
    amqp: Annotated[
        bool | None,
        typer.Option("--amqp/--mqtt", help="Default: MQTT for agents, else AMQP."),
    ] = None,
) -> None:
    """Print where a user connects, with the password."""
    node = Node.load(folder)
    if user not in node.info.passwords:
        raise NodeError(
            f"the broker in {node.folder} has no user {user!r}; it knows "
            + ", ".join(sorted(node.info.passwords))
        )
    by_amqp = user not in node.info.agents if amqp is None else amqp
    typer.echo(node.amqp_url(user) if by_amqp else node.mqtt_url(user))


def _names(text: str) -> tuple[str, ...]:
    return tuple(name.strip() for name in text.split(",") if name.strip())


def _load(folder: Path) -> Node | None:
    return Node.load(folder) if (folder / "node.json").exists() else None


def _summary(folder: Path, info: NodeInfo) -> str:
    users = sorted(set(info.passwords) - set(info.agents))
    return (
        f"RabbitMQ {info.version} runs in {folder} (process {info.pid})\n"
        f"  AMQP amqp://127.0.0.1:{info.amqp_port}  users {', '.join(users)}\n"
        f"  MQTT mqtt://127.0.0.1:{info.mqtt_port}  agents {', '.join(info.agents)}"
    )


def _document(folder: Path, info: NodeInfo) -> dict[str, Any]:
    """All but the passwords, which stay in the file that only its owner reads."""
    return {
        "running": True,
        "folder": str(folder),
        "version": info.version,
        "pid": info.pid,
        "amqp_url": f"amqp://127.0.0.1:{info.amqp_port}",
        "mqtt_url": f"mqtt://127.0.0.1:{info.mqtt_port}",
        "ports": dict(info.ports),
        "users": sorted(set(info.passwords) - set(info.agents)),
        "agents": list(info.agents),
        "models": list(info.models),
        "credentials": str(folder / "node.json"),
    }


def _print_json(document: dict[str, Any]) -> None:
    typer.echo(json.dumps(document, indent=2))
