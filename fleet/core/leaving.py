"""When a rollout to named agents has none of them left, and how it ends then.

One for all agents or for a query waits for those that will join. Named agents that were
retired, or that cannot take the version, will not: nothing would ever happen any more.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from typing import Final

from fleet.core.devices import Device
from fleet.core.machine import Event
from fleet.core.rollouts import Rollout

SHOWN: Final = 5


def ending(
    rollout: Rollout,
    devices: Mapping[str, Device],
    excluded: Mapping[str, str],
    taken: Collection[str],
) -> tuple[Event, str] | None:
    """What happens to a rollout of which no told agent counts any more.

    Args:
        rollout: which.
        devices: every agent of the fleet.
        excluded: why some of them cannot take its version.
        taken: those that newer rollouts of the model have or will have.

    Returns:
        The event with its reason; None when it can still reach one of its agents.
    """
    if rollout.targets is None:
        return None
    gone: dict[str, str] = {}
    for agent in sorted(rollout.targets - set(taken)):
        why = "retired" if agent not in devices else excluded.get(agent)
        if why is None:
            return None
        gone[agent] = why
    if len(gone) < len(rollout.targets):
        return Event.SUPERSEDE, "newer rollouts took its agents" + _said(gone, "; ")
    return Event.ABORT, "none of its agents is left" + _said(gone, ": ")


def _said(gone: Mapping[str, str], before: str) -> str:
    some = [f"{agent} ({why})" for agent, why in list(gone.items())[:SHOWN]]
    more = ", …" if len(gone) > SHOWN else ""
    return before + ", ".join(some) + more if some else ""
