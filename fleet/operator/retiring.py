"""Agents taken out of the fleet, and taken back."""

from __future__ import annotations

from collections.abc import Sequence

from fleet.adapters.registry import Registry
from fleet.adapters.state.database import FleetDatabase
from fleet.adapters.state.devices import Retired
from fleet.core.orders import SHOWN, BadOrder


def retire(
    database: FleetDatabase,
    registry: Registry,
    agents: Sequence[str],
    *,
    who: str,
    reason: str,
    now_ms: int,
) -> None:
    """Take agents out of the fleet: their labels and what they should serve go.

    What they serve now they go on serving, and what they report is still kept. They
    are in no rollout until they are taken back.

    Raises:
        BadOrder: one is not known, or retired already; nothing was changed.
        DatabaseUnavailable: nothing was changed.
        OSError: the registry cannot be written; try again.
    """
    with database.writing() as ledger:
        known = ledger.devices_named(agents)
        unknown = sorted({*agents} - known.keys())
        if unknown:
            raise BadOrder(
                f"agent {', '.join(map(repr, unknown[:SHOWN]))} has never reported: "
                "see `overspill device list`"
            )
        retired = sorted({*agents} & ledger.retired().keys())
        if retired:
            raise BadOrder(f"agent {retired[0]!r} is retired already")
        every = ledger.labels()
        for agent in sorted({*agents}):
            ledger.retire(Retired(agent, now_ms, who, reason))
            # Before the commit: what is gone from the registry by mistake comes back
            # with the agent's next report, what stays there would be pulled.
            registry.withdraw_desired(agent)
            ledger.record(
                who,
                "device.retire",
                agent,
                {"reason": reason, "labels": every.get(agent, {})},
                at_ms=now_ms,
            )


def readmit(
    database: FleetDatabase, agents: Sequence[str], *, who: str, now_ms: int
) -> None:
    """Take retired agents back; with its next report each is in the fleet again.

    Raises:
        BadOrder: one is not retired; nothing was changed.
        DatabaseUnavailable: nothing was changed.
    """
    with database.writing() as ledger:
        for agent in sorted({*agents}):
            if not ledger.readmit(agent):
                raise BadOrder(f"agent {agent!r} is not retired")
            ledger.record(who, "device.readmit", agent, at_ms=now_ms)
