"""Desired documents follow the rollouts; what is written of a rollout follows the reports.

Both are worked out anew from the database inside one writing transaction, so the
daemon and an operator's command never overwrite each other with something older.
"""

from __future__ import annotations

from collections.abc import Collection

import structlog

from fleet.adapters.registry import Registry
from fleet.adapters.state.database import FleetDatabase
from fleet.adapters.state.ledger import Ledger
from fleet.core.rollouts import AgentState, RolloutState, current, desired_for
from fleet.loops.documents import write_documents

log = structlog.get_logger(__name__)


def converge(
    database: FleetDatabase,
    registry: Registry,
    agents: Collection[str],
    *,
    anew: bool = False,
) -> tuple[str, ...]:
    """Write what each of `agents` should serve, where that changed. Blocks.

    Args:
        database: open.
        registry: where agents read it.
        agents: of whom something may have changed.
        anew: write also what did not change, because the registry may have lost it.

    Returns:
        The agents for whom it changed, and who should be told.

    Raises:
        DatabaseUnavailable: nothing was changed.
        OSError: the registry cannot be written; documents before that one were.
    """
    with database.writing() as ledger:
        return write_desired(ledger, registry, agents, anew=anew)


def write_desired(
    ledger: Ledger,
    registry: Registry,
    agents: Collection[str],
    *,
    anew: bool = False,
) -> tuple[str, ...]:
    """As `converge`, inside a writing transaction."""
    rollouts = ledger.rollouts()
    return write_documents(
        ledger,
        registry,
        {agent: desired_for(agent, rollouts) for agent in agents},
        anew=anew,
    )


def keep_progress(
    ledger: Ledger, reporting: Collection[str], *, now_ms: int, silent_after_s: float
) -> None:
    """Write how far the rollouts are, now that `reporting` have reported."""
    progress = current(
        ledger.rollouts(),
        ledger.devices(),
        now_ms=now_ms,
        silent_after_s=silent_after_s,
    )
    for each in progress:
        generation = each.rollout.generation
        for came in each.agents:
            if came.agent not in reporting or came.state is AgentState.SUPERSEDED:
                continue
            if (
                ledger.keep_result(generation, came, now_ms)
                and came.state is AgentState.REFUSED
            ):
                log.warning(
                    "agent refused a version",
                    agent=came.agent,
                    generation=generation,
                    model=each.rollout.model,
                    version=each.rollout.version,
                    reason=came.reason,
                )
        if ledger.keep_state(generation, each.state, now_ms):
            report = log.warning if each.state is RolloutState.FAILED else log.info
            report(
                "rollout changed",
                generation=generation,
                model=each.rollout.model,
                version=each.rollout.version,
                state=each.state.value,
            )
