"""`overspill-agent`: run the daemon, or ask the one that runs."""

from __future__ import annotations

import asyncio
import base64
import json
import sqlite3
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Annotated, Any

import typer

from broker.link import BadUrl
from bundle.pack import BundleRejected
from edge_agent.adapters.control import ControlError, ask
from edge_agent.adapters.embedded_broker import PortTaken
from edge_agent.adapters.https_source import BadRegistryUrl
from edge_agent.adapters.outbox import OutboxUnusable
from edge_agent.cli import outbox
from edge_agent.cli.terminal import AsJson, StateDir, UserError, read_settings
from edge_agent.settings import AgentSettings
from lifecycle.interpreter import share_interpreter
from lifecycle.logs import configure_logs
from lifecycle.signals import stop_on_signals
from lifecycle.tracing import TelemetryMissing
from lifecycle.watchdog import ServiceManager

app = typer.Typer(
    help="Answer devices with a local model, and spill what is too hard to the cloud.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
)
app.add_typer(outbox.app, name="outbox")

USER_ERRORS = (
    BadRegistryUrl,
    BadUrl,
    BundleRejected,
    ControlError,
    OutboxUnusable,
    PortTaken,
    TelemetryMissing,
    OSError,
)


@app.command()
def run(  # noqa: PLR0913, PLR0917 - each is an option
    agent_id: Annotated[
        str | None,
        typer.Option(help="This agent's identity; the host's name if unset."),
    ] = None,
    cloud_url: Annotated[
        str | None,
        typer.Option(help="The cloud's broker: mqtt://user:password@host:port."),
    ] = None,
    local_url: Annotated[
        str | None,
        typer.Option(help="The devices' broker; unset, the agent embeds its own."),
    ] = None,
    embedded_port: Annotated[
        int | None, typer.Option(help="Where the embedded broker listens.")
    ] = None,
    bundle: Annotated[
        list[Path] | None,
        typer.Option(help="A bundle to serve from the first start. Repeatable."),
    ] = None,
    trusted_root: Annotated[
        Path | None,
        typer.Option(
            help="The fleet's root.json, that came with the device: who may sign models."
        ),
    ] = None,
    state_dir: StateDir = None,
    http_port: Annotated[
        int | None,
        typer.Option(help="Serve /healthz, /readyz and /metrics; 0: a free port."),
    ] = None,
    log_level: Annotated[
        str, typer.Option(help="debug, info, warning, error.")
    ] = "info",
) -> None:
    """Run the daemon until SIGTERM or Ctrl-C.

    Every knob is an OVERSPILL_AGENT_… variable too; options win.
    """
    settings = read_settings(
        agent_id=agent_id,
        cloud_url=cloud_url,
        local_url=local_url,
        embedded_port=embedded_port,
        bundles=bundle,
        trusted_root=trusted_root,
        state_dir=state_dir,
        http_port=http_port,
    )
    try:
        configure_logs(log_level)
    except KeyError as error:
        raise UserError(f"unknown log level {log_level!r}") from error
    share_interpreter()
    asyncio.run(_run(settings))


async def _run(settings: AgentSettings) -> None:
    from edge_agent.app import Agent  # noqa: PLC0415 - `status` needs none of it

    stop = stop_on_signals()
    service = ServiceManager.from_environment()
    async with (
        Agent(settings) as agent,
        # The devices' broker may come hours later, and the watchdog watches until then.
        service.watching("waiting for the devices' broker"),
    ):
        await agent.run(stop, on_ready=lambda: service.status("serving"))


@app.command()
def status(
    state_dir: StateDir = None,
    as_json: AsJson = False,
) -> None:
    """Show the running daemon's links, models, outbox and counters."""
    path = read_settings(state_dir=state_dir).control_socket
    reply = asyncio.run(ask(path, {"do": "status"}, timeout_s=10.0))
    if as_json:
        typer.echo(json.dumps(reply, indent=2))
    else:
        _show_status(reply)


def _show_status(reply: dict[str, Any]) -> None:
    cloud, local, outbox = reply["cloud"], reply["local"], reply["outbox"]
    typer.echo(f"agent   {reply['agent']}")
    typer.echo(f"cloud   {_link(cloud, 'configured')}")
    typer.echo(f"devices {_link(local, 'serving')}")
    for name, model in reply["models"].items():
        line = (
            f"model   {name} {model['serving'] or '(none serving)'}, {model['state']}"
        )
        typer.echo(line + (f": {model['reason']}" if model["reason"] else ""))
        for said in _update(model):
            typer.echo(f"        {said}")
        for said in _cascade(model["cascade"]):
            typer.echo(f"        {said}")
    if not reply["models"]:
        typer.echo("model   none: every request spills")
    typer.echo(f"outbox  {_depth(outbox)}")
    if reply["ledger"] is not None:
        typer.echo(f"ledger  {_ledger(reply['ledger'])}")
    failed = {name: n for name, n in reply["loops"]["failures"].items() if n}
    if failed:
        shown = ", ".join(f"{name} {n} times" for name, n in failed.items())
        typer.echo(f"failed  {shown}; last {reply['loops']['last_error']}")
    counters = {name: n for name, n in reply["counters"].items() if n}
    typer.echo("counts  " + ", ".join(f"{n} {name}" for name, n in counters.items()))


def _update(model: dict[str, Any]) -> Iterator[str]:
    """Where a model's update stands, and what was counted of it."""
    if model["staged"] is not None:
        yield f"staged {model['staged']} in epoch {model['staged_epoch']}"
    if model["active"] is not None:
        yield f"epoch {model['epoch']}, nothing below {model['floor']} is taken"
    health = model["health"]
    if health is not None and health["requests"]:
        p99 = "" if health["p99_ms"] is None else f", p99 {health['p99_ms']:.3g} ms"
        yield (
            f"in {health['for_s']:.0f} s {health['requests']} requests, "
            f"{health['errors']} failed, {health['spilled']} spilled, agreed with the "
            f"cloud on {health['agreed']} of {health['compared']}{p99}"
        )


def _cascade(shown: dict[str, Any] | None) -> Iterator[str]:
    """How a model's threshold, promise and drift test stand."""
    if shown is None:
        return
    threshold = shown["threshold"]
    now = "none is spilled" if threshold is None else f"{threshold:.4g}"
    yield f"threshold {now} of {shown['calibrated']:.4g}: {shown['why']}"
    promise, drift = shown["promise"], shown["drift"]
    if promise is not None:
        yield (
            f"target {promise['text']}: {promise['standing'].replace('_', ' ')}, "
            f"{promise['value']:.2%} ({promise['low']:.2%} to {promise['high']:.2%}) of "
            f"{promise['requests']} requests, {promise['audited']} known, "
            f"{promise['uncovered']} not covered"
        )
    if shown["audited"]:
        yield f"audits {shown['audited']}, {shown['disagreed']} disagreed"
    if drift is not None and drift["alarm"]:
        way = "lower" if drift["lower"] else "other"
        yield (
            f"DRIFT since request {drift['alarmed_at']}: scores are {way} than "
            "calibrated, the target is not promised"
        )


def _depth(outbox: dict[str, Any]) -> str:
    if outbox["error"] is not None:
        return f"FAILS, spills are refused: {outbox['error']}"
    age = "" if outbox["oldest_s"] is None else f", oldest {outbox['oldest_s']:.1f} s"
    return (
        f"{outbox['open']} open ({outbox['open_bytes']} bytes){age}; "
        f"{outbox['untold']} untold"
    )


def _ledger(ledger: dict[str, Any]) -> str:
    line = (
        f"{sum(ledger['accepted'].values())} accepted: {ledger['answered']} answered, "
        f"{ledger['failed']} failed, {ledger['expired']} expired, "
        f"{ledger['waiting']} waiting; {ledger['undelivered']} undelivered"
    )
    if not ledger["balanced"]:
        line += f"; DOES NOT BALANCE, {ledger['missing']} are missing"
    return line


def _link(link: dict[str, Any], there: str) -> str:
    if not link[there]:
        return "not configured"
    return "up" if link["up"] else f"down: {link['error'] or 'connecting'}"


@app.command("drift-seen")
def drift_seen(
    model: Annotated[str, typer.Argument(help="Whose drift test begins anew.")],
    state_dir: StateDir = None,
) -> None:
    """Acknowledge a drift alarm: the test of that model begins anew."""
    path = read_settings(state_dir=state_dir).control_socket
    reply = asyncio.run(ask(path, {"do": "drift_seen", "model": model}, timeout_s=10.0))
    if not reply["begun"]:
        raise UserError(f"no model {model!r} has been asked anything since the start")
    typer.echo(f"the drift test of {model} begins anew")


@app.command()
def infer(
    file: Annotated[
        Path, typer.Argument(help="A PNG, JPEG, JSON or MessagePack file.")
    ],
    model: Annotated[str, typer.Option(help="Which model to ask.")],
    state_dir: StateDir = None,
    timeout: Annotated[float, typer.Option(help="Seconds to wait.")] = 120.0,
) -> None:
    """Send one request through the running daemon and print the answer as JSON."""
    path = read_settings(state_dir=state_dir).control_socket
    try:
        payload = base64.b64encode(file.read_bytes()).decode()
    except OSError as error:
        raise UserError(f"cannot read {file}: {error.strerror}") from error
    reply = asyncio.run(
        ask(
            path,
            {"do": "infer", "model": model, "payload": payload},
            timeout_s=timeout,
        )
    )
    typer.echo(reply["answer"])
    if json.loads(reply["answer"])["status"] != "answered":
        raise typer.Exit(1)


def main() -> None:
    """The entry point: a user's mistake is one line on standard error."""
    try:
        app()
    except (UserError, *USER_ERRORS) as error:
        sys.stderr.write(f"overspill-agent: {error}\n")
        raise SystemExit(1) from None
    except sqlite3.Error as error:
        sys.stderr.write(f"overspill-agent: the outbox failed: {error}\n")
        raise SystemExit(1) from None


if __name__ == "__main__":
    main()
