"""One agent as it is printed: line by line, and as a document."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from dataclasses import asdict
from typing import Any

from broker.messages import HealthReport, SlotReport
from fleet.cli import terminal
from fleet.core.devices import Device
from fleet.operator.sight import Sight


def device_document(device: Device, now_ms: int) -> dict[str, Any]:
    """What an agent says of itself."""
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


def document(sight: Sight, now_ms: int) -> dict[str, Any]:
    """All that is known of an agent."""
    desired, retired = sight.desired, sight.retired
    return {
        **device_document(sight.device, now_ms),
        "labels": dict(sight.labels),
        "desired": None
        if desired is None
        else [each.model_dump(mode="json") for each in desired.models],
        "retired": None if retired is None else asdict(retired),
        "history": [asdict(each) for each in sight.passages],
        "record": [
            {**asdict(each), "details": json.loads(each.details)}
            for each in sight.record
        ],
    }


def lines(sight: Sight, now_ms: int, *, silent_after_s: float) -> Iterator[str]:
    """All that is known of an agent, for a person."""
    device = sight.device
    yield device.agent
    heard = f"{terminal.age(now_ms, device.last_seen_ms)} ago"
    silent = ", silent" if device.silent(now_ms, silent_after_s) else ""
    first = f"{terminal.age(now_ms, device.first_seen_ms)} ago"
    yield f"  heard    {heard}{silent}; first {first}; {device.reports} reports"
    if sight.retired is not None:
        gone = sight.retired
        why = f": {gone.reason}" if gone.reason else ""
        ago = terminal.age(now_ms, gone.at_ms)
        yield f"  retired  {ago} ago by {gone.who}{why}"
    yield f"  labels   {_pairs(sight.labels) or 'none'}"
    yield f"  facts    {_pairs(device.facts) or 'none'}"
    for slot in device.slots:
        yield from _slot(slot)
    yield from _desired(sight)
    for each in sight.passages:
        ago = terminal.age(now_ms, each.since_ms)
        why = f": {each.reason}" if each.reason else ""
        yield (
            f"  rollout  {each.generation}, {each.model} {each.version}: "
            f"{each.state} {ago} ago{why}"
        )
    for entry in sight.record:
        ago = terminal.age(now_ms, entry.at_ms)
        yield f"  record   {ago} ago {entry.what} by {entry.who}"


def _slot(slot: SlotReport) -> Iterator[str]:
    doing = "" if slot.state == "idle" else f", {slot.state}"
    staged = f" {slot.staged}" if slot.staged else ""
    why = f": {slot.reason}" if slot.reason else ""
    yield f"  model    {slot.model} {slot.active or 'none'}{doing}{staged}{why}"
    if slot.total_bytes:
        of = terminal.size(slot.total_bytes)
        yield f"    pulled     {terminal.size(slot.pulled_bytes)} of {of}"
    yield (
        f"    generation {slot.generation}, epoch {slot.epoch}, takes none below "
        f"{slot.floor}; previous {slot.previous or 'none'}"
    )
    for name, health in (("health", slot.health), ("before", slot.before)):
        if health is not None:
            yield f"    {name:<10} {_health(health)}"


def _health(health: HealthReport) -> str:
    words = [
        f"{health.requests} requests in {health.for_s:.0f} s",
        f"{health.errors} errors",
        f"{health.spilled} spilled",
    ]
    if health.compared:
        words.append(f"{health.agreed} of {health.compared} agreed with the cloud")
    if health.p50_ms is not None:
        words.append(f"p50 {health.p50_ms:.1f} ms")
    return ", ".join(words)


def _desired(sight: Sight) -> Iterator[str]:
    if sight.desired is None:
        yield "  desired  nothing"
        return
    for wanted in sight.desired.models:
        slot = sight.device.slot(wanted.model)
        how = ", as shadow" if wanted.shadow else ""
        yield (
            f"  desired  {wanted.model} {wanted.version}{how} (generation "
            f"{wanted.generation}, epoch {wanted.epoch}): "
            f"{_standing(slot, wanted.version, wanted.generation)}"
        )


def _standing(slot: SlotReport | None, version: str, generation: int) -> str:
    if slot is None or slot.generation < generation:
        return "not heard of yet"
    return "served" if slot.active == version else "not served"


def _pairs(said: Mapping[str, str]) -> str:
    return ", ".join(f"{key}={value}" for key, value in sorted(said.items()))
