"""All that is known of one agent, at one moment."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Final

from fleet.adapters.state.database import FleetDatabase
from fleet.adapters.state.devices import Passage, Retired, WrittenDesired
from fleet.core.audit import Entry
from fleet.core.devices import Device
from fleet.core.orders import BadOrder

SHOWN_PASSAGES: Final = 20
SHOWN_ENTRIES: Final = 20


@dataclass(frozen=True, slots=True)
class Sight:
    """An agent: what it says, what is said of it, and what was done to it.

    `desired` is None when nothing was ever desired of it, `retired` when it is not.
    """

    device: Device
    labels: Mapping[str, str]
    desired: WrittenDesired | None
    retired: Retired | None
    passages: tuple[Passage, ...]
    record: tuple[Entry, ...]


def see(database: FleetDatabase, agent: str) -> Sight:
    """Look up one agent, retired or not.

    Raises:
        BadOrder: it has never reported.
        DatabaseUnavailable: the database cannot be read.
    """
    with database.reading() as ledger:
        device = ledger.device(agent)
        if device is None:
            raise BadOrder(
                f"agent {agent!r} has never reported: see `overspill device list`"
            )
        return Sight(
            device=device,
            labels=ledger.labels().get(agent, {}),
            desired=ledger.desired([agent]).get(agent),
            retired=ledger.retired().get(agent),
            passages=tuple(ledger.passages(agent, SHOWN_PASSAGES)),
            record=tuple(ledger.newest_audit(SHOWN_ENTRIES, subject=agent)),
        )
