"""`overspill fleet run`: the daemon that listens to agents; and a copy of what it keeps."""

from __future__ import annotations

import asyncio
from typing import Annotated

import structlog
import typer

from fleet.app import Fleet, run_daemon
from fleet.cli import terminal
from fleet.cli.state_copy import copy
from fleet.cli.terminal import AmqpUrl, Home
from lifecycle.logs import configure_logs
from lifecycle.signals import stop_on_signals

log = structlog.get_logger(__name__)

app = typer.Typer(help="The fleet's own daemon and its state.", no_args_is_help=True)
app.command("copy")(copy)


@app.callback()
def fleet() -> None:
    """The fleet's own daemon and its state."""


@app.command()
def run(
    home: Home = None,
    amqp_url: AmqpUrl = None,
    log_level: Annotated[
        str | None, typer.Option(help="debug, info, warning or error.")
    ] = None,
) -> None:
    """Listen to agents and keep the inventory, until SIGTERM or Ctrl-C.

    RabbitMQ may be absent at the start and may go at any time: the daemon comes back
    to it by itself. Commands work while it runs and while it does not.
    """
    settings = terminal.read_settings(home, amqp_url)
    if settings.amqp_url is None:
        terminal.fail(
            "no RabbitMQ is configured: set OVERSPILL_FLEET_AMQP_URL to "
            "amqp://user:password@host:port/vhost"
        )
    level = log_level or settings.log_level
    if level.lower() not in {"debug", "info", "warning", "error"}:
        terminal.fail(f"log level {level!r} is none of debug, info, warning, error")
    configure_logs(level)
    with terminal.opened(settings) as opened:
        asyncio.run(_run(opened, settings.amqp_url))


async def _run(fleet: Fleet, amqp_url: str) -> None:
    stop = stop_on_signals()
    log.info("fleet runs", home=str(fleet.settings.home))
    await run_daemon(fleet, amqp_url, stop)
    log.info("fleet stopped")
