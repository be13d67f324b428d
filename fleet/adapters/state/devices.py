"""Agents as they last reported, and what operators say of them."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass
from typing import Any, Final

from pydantic import TypeAdapter
from sqlalchemy import Connection, RowMapping, delete, select

from broker.messages import DesiredModel, SlotReport
from fleet.adapters.state.tables import (
    DESIRED,
    DEVICES,
    LABELS,
    RESULTS,
    RETIRED,
    ROLLOUTS,
    upsert,
)
from fleet.core.devices import Device

SLOTS: Final = TypeAdapter(tuple[SlotReport, ...])
MODELS: Final = TypeAdapter(tuple[DesiredModel, ...])
# SQLite takes 32,766 parameters in one statement, older ones 999.
NAMED_AT_ONCE: Final = 500


@dataclass(frozen=True, slots=True)
class Retired:
    """An agent that an operator took out of the fleet."""

    agent: str
    at_ms: int
    who: str
    reason: str


@dataclass(frozen=True, slots=True)
class WrittenDesired:
    """The document that an agent was last given; `sha256` is over its bytes."""

    agent: str
    generation: int
    sha256: str
    models: tuple[DesiredModel, ...]


@dataclass(frozen=True, slots=True)
class Passage:
    """What came of one rollout on one agent."""

    generation: int
    model: str
    version: str
    state: str
    reason: str | None
    told_at_ms: int
    since_ms: int


class DevicePages:
    """The part of a `Ledger` about agents."""

    def __init__(self, connection: Connection) -> None:
        self._connection = connection

    def devices(self) -> dict[str, Device]:
        """Every agent that ever reported and is not retired, by name."""
        retired = select(RETIRED.c.agent)
        rows = self._connection.execute(
            select(DEVICES)
            .where(DEVICES.c.agent.not_in(retired))
            .order_by(DEVICES.c.agent)
        )
        return {row["agent"]: _device(row) for row in rows.mappings()}

    def devices_named(self, agents: Collection[str]) -> dict[str, Device]:
        """Those of `agents` that ever reported, retired or not, by name."""
        found: dict[str, Device] = {}
        for some in _cut(sorted(agents)):
            rows = self._connection.execute(
                select(DEVICES).where(DEVICES.c.agent.in_(some))
            )
            found.update((row["agent"], _device(row)) for row in rows.mappings())
        return found

    def device(self, agent: str) -> Device | None:
        """One agent, if it ever reported; retired or not."""
        return self.devices_named([agent]).get(agent)

    def keep_device(self, device: Device) -> None:
        """Write what is known of an agent."""
        self.keep_devices([device])

    def keep_devices(self, devices: Iterable[Device]) -> None:
        """Write what is known of several agents, in one statement."""
        upsert(
            self._connection,
            DEVICES,
            (
                {
                    "agent": each.agent,
                    "first_seen_ms": each.first_seen_ms,
                    "last_seen_ms": each.last_seen_ms,
                    "reports": each.reports,
                    "slots": SLOTS.dump_python(each.slots, mode="json"),
                    "counters": dict(each.counters),
                    "facts": dict(each.facts),
                }
                for each in devices
            ),
        )

    def labels(self) -> dict[str, dict[str, str]]:
        """What operators call agents: values by key, by agent."""
        found: dict[str, dict[str, str]] = {}
        query = select(LABELS).order_by(LABELS.c.agent, LABELS.c.key)
        for row in self._connection.execute(query):
            found.setdefault(row.agent, {})[row.key] = row.value
        return found

    def set_labels(self, agents: Collection[str], labels: Mapping[str, str]) -> None:
        """Give each of `agents` these labels; others of theirs stay."""
        upsert(
            self._connection,
            LABELS,
            (
                {"agent": agent, "key": key, "value": value}
                for agent in agents
                for key, value in labels.items()
            ),
        )

    def drop_labels(self, agents: Collection[str], keys: Collection[str]) -> None:
        """Take the labels with these keys from each of `agents`."""
        for some in _cut(sorted(agents)):
            self._connection.execute(
                delete(LABELS).where(
                    LABELS.c.agent.in_(some), LABELS.c.key.in_(sorted(keys))
                )
            )

    def retired(self) -> dict[str, Retired]:
        """Every agent that is retired, by name."""
        rows = self._connection.execute(select(RETIRED).order_by(RETIRED.c.agent))
        return {row["agent"]: Retired(**row) for row in rows.mappings()}

    def retire(self, retired: Retired) -> None:
        """Take an agent out of the fleet: its labels go, and it is in no rollout.

        What it should serve (`desired`) is the caller's to remove first.
        """
        upsert(
            self._connection,
            RETIRED,
            [
                {
                    "agent": retired.agent,
                    "at_ms": retired.at_ms,
                    "who": retired.who,
                    "reason": retired.reason,
                }
            ],
        )
        for table in (LABELS, DESIRED):
            self._connection.execute(
                delete(table).where(table.c.agent == retired.agent)
            )

    def readmit(self, agent: str) -> bool:
        """Take a retired agent back; the rest comes with its next report.

        Returns:
            Whether it was retired.
        """
        gone = self._connection.execute(delete(RETIRED).where(RETIRED.c.agent == agent))
        return gone.rowcount > 0

    def passages(self, agent: str, last: int) -> list[Passage]:
        """What came of the newest rollouts on an agent, oldest first."""
        rows = self._connection.execute(
            select(
                RESULTS.c.generation,
                ROLLOUTS.c.model,
                ROLLOUTS.c.version,
                RESULTS.c.state,
                RESULTS.c.reason,
                RESULTS.c.told_at_ms,
                RESULTS.c.since_ms,
            )
            .join(ROLLOUTS, ROLLOUTS.c.generation == RESULTS.c.generation)
            .where(RESULTS.c.agent == agent)
            .order_by(RESULTS.c.generation.desc())
            .limit(last)
        )
        return [Passage(**row) for row in rows.mappings()][::-1]

    def desired(self, agents: Collection[str]) -> dict[str, WrittenDesired]:
        """What `agents` were last given, by name."""
        found: dict[str, WrittenDesired] = {}
        for some in _cut(sorted(agents)):
            rows = self._connection.execute(
                select(DESIRED).where(DESIRED.c.agent.in_(some))
            )
            for row in rows.mappings():
                models = MODELS.validate_python(row["models"])
                found[row["agent"]] = WrittenDesired(**{**row, "models": models})
        return found

    def keep_desired(self, written: Iterable[WrittenDesired]) -> None:
        """Write what agents were given."""
        upsert(
            self._connection,
            DESIRED,
            (
                {
                    "agent": each.agent,
                    "generation": each.generation,
                    "sha256": each.sha256,
                    "models": MODELS.dump_python(each.models, mode="json"),
                }
                for each in written
            ),
        )


def _device(row: RowMapping | Mapping[str, Any]) -> Device:
    return Device(
        agent=row["agent"],
        first_seen_ms=row["first_seen_ms"],
        last_seen_ms=row["last_seen_ms"],
        slots=SLOTS.validate_python(row["slots"]),
        counters=row["counters"],
        facts=row["facts"],
        reports=row["reports"],
    )


def _cut(names: list[str]) -> Iterable[list[str]]:
    return (
        names[start : start + NAMED_AT_ONCE]
        for start in range(0, len(names), NAMED_AT_ONCE)
    )
