"""Whether a rollout that a person wants to take back can be: is there a way, and for whom.

A rollout on its way has its way back kept signed, and so has the newest of each model.
From an older one that was done long ago nothing may lead back any more, and its agents
may follow another since.
"""

from __future__ import annotations

from fleet.adapters.registry import Registry
from fleet.adapters.state.ledger import Ledger
from fleet.core.machine import NEXT, Event
from fleet.core.orders import BadOrder
from fleet.core.rollouts import Course, Rollout


def check_way_back(ledger: Ledger, registry: Registry, rollout: Rollout) -> None:
    """Return if sending its agents back would bring them back.

    Args:
        ledger: in the transaction that would do it.
        registry: knows what is signed.
        rollout: in a state in which it can be rolled back.

    Raises:
        BadOrder: it would not; says why, and what to do in place of it.
    """
    course = ledger.courses([rollout])[rollout.generation]
    newer = _newer_of_all(ledger, rollout, course)
    name = f"rollout {rollout.generation} of {rollout.model} {rollout.version}"
    if newer is not None:
        state = ledger.rollout_states()[newer.generation]
        # Nothing leads back from one that has gone back itself.
        instead = (
            f"roll that one back (overspill rollout rollback {newer.generation}), or "
            if (state, Event.ROLL_BACK) in NEXT
            else ""
        )
        raise BadOrder(
            f"{name}: its agents follow rollout {newer.generation} of {newer.model} "
            f"{newer.version} ({state.value.replace('_', ' ')}) by now, so nobody would "
            f"go back: {instead}start a rollout of the version to serve"
        )
    back = rollout.way_back
    if back is None or all(each.shadow for each in course.told.values()):
        return  # The machine says what that means.
    if not registry.is_way_back(rollout.model, back):
        raise BadOrder(
            f"{name}: the way back to {back.version} is not signed any more, because "
            "newer versions were published since: publish what it held under a new "
            "version (overspill model publish DIR), and start a rollout of that"
        )


def _newer_of_all(ledger: Ledger, rollout: Rollout, course: Course) -> Rollout | None:
    """The newest rollout that its agents follow, if none follows this one any more."""
    if not course.told:
        return None
    rollouts = {
        each.generation: each
        for each in ledger.rollouts()
        if each.model == rollout.model
    }
    told = ledger.told_of(course.told)
    followed = {max(told[agent].keys() & rollouts.keys()) for agent in course.told}
    return None if rollout.generation in followed else rollouts[max(followed)]
