"""`overspill device`: what agents say of themselves."""

from __future__ import annotations

from typing import Any

import typer
from rich.table import Table

from broker.messages import CascadeReport, SlotReport
from fleet.cli import terminal
from fleet.cli.terminal import AsJson, Home
from fleet.core.devices import Device

app = typer.Typer(
    help="What the agents of the fleet report of themselves.", no_args_is_help=True
)


@app.callback()
def device() -> None:
    """What the agents of the fleet report of themselves."""


@app.command("list")
def list_devices(home: Home = None, *, json: AsJson = False) -> None:
    """List every agent that ever reported: what it serves, and when it was last heard of.

    `overspill fleet run` must run for reports to arrive here.
    """
    with terminal.opened(terminal.read_settings(home)) as fleet:
        devices = fleet.devices()
        now_ms = fleet.clock.wall_ms()
        silent_after_s = fleet.settings.silent_after_s
    if json:
        terminal.print_json([_document(each, now_ms) for each in devices])
        return
    if not devices:
        terminal.note("no agent has reported yet: is `overspill fleet run` up?")
        return
    table = Table("agent", "models", "last report", "first seen", "reports", "facts")
    for each in devices:
        silent = each.silent(now_ms, silent_after_s)
        table.add_row(
            each.agent,
            "\n".join(map(_slot, each.slots)) or "none",
            terminal.age(now_ms, each.last_seen_ms) + (" (silent)" if silent else ""),
            f"{terminal.age(now_ms, each.first_seen_ms)} ago",
            str(each.reports),
            ", ".join(f"{key}={value}" for key, value in sorted(each.facts.items())),
        )
    terminal.tables().print(table)


def _slot(slot: SlotReport) -> str:
    text = f"{slot.model} {slot.active or 'none'}"
    if slot.state in {"pulling", "testing"}:
        text += f" ({slot.state} {slot.staged or 'another'})"
    if slot.state == "refused":
        text += f" (refused: {slot.reason or 'no reason given'})"
    return text if slot.cascade is None else text + _cascade(slot.cascade)


def _cascade(told: CascadeReport) -> str:
    """What an operator should know of the promise, and nothing while all is well."""
    words = []
    if told.standing is not None and told.value is not None:
        words.append(f"target {told.standing.replace('_', ' ')}: {told.value:.2%}")
    if told.drift:
        words.append("DRIFT")
    if told.share < 1:
        words.append(f"spills {told.share:.0%} of what it should: {told.why}")
    return "".join(f"\n  {each}" for each in words)


def _document(device: Device, now_ms: int) -> dict[str, Any]:
    return {
        "agent": device.agent,
        "first_seen_ms": device.first_seen_ms,
        "last_seen_ms": device.last_seen_ms,
        "last_report_age_s": max(0, now_ms - device.last_seen_ms) / 1000,
        "reports": device.reports,
        "slots": [each.model_dump(mode="json") for each in device.slots],
        "counters": dict(device.counters),
        "facts": dict(device.facts),
    }
