"""Rollouts: what was ordered, how far it is, and what came of it on each agent."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Final

from pydantic import TypeAdapter
from sqlalchemy import Connection, func, insert, select, update

from fleet.adapters.state.tables import EVENTS, RESULTS, ROLLOUTS, upsert
from fleet.core.rollouts import AgentProgress, Rollout, RolloutState

TERMS: Final = TypeAdapter(Rollout)


@dataclass(frozen=True, slots=True)
class AgentResult:
    """The last state of one agent in one rollout, and since when."""

    generation: int
    agent: str
    state: str
    version: str | None
    reason: str | None
    since_ms: int


@dataclass(frozen=True, slots=True)
class RolloutEvent:
    """Something that happened to a rollout; `details` is what JSON can hold."""

    generation: int
    sequence: int
    at_ms: int
    kind: str
    details: Mapping[str, Any]


class RolloutPages:
    """The part of a `Ledger` about rollouts."""

    def __init__(self, connection: Connection) -> None:
        self._connection = connection

    def rollouts(self) -> list[Rollout]:
        """Every rollout, oldest first."""
        rows = self._connection.execute(
            select(ROLLOUTS.c.terms).order_by(ROLLOUTS.c.generation)
        )
        return [TERMS.validate_python(row.terms) for row in rows]

    def keep_rollout(self, rollout: Rollout) -> None:
        """Write a rollout that begins."""
        self._connection.execute(
            insert(ROLLOUTS),
            {
                "generation": rollout.generation,
                "model": rollout.model,
                "version": rollout.version,
                "targets": None if rollout.targets is None else sorted(rollout.targets),
                "started_at_ms": rollout.started_at_ms,
                "state": RolloutState.IN_PROGRESS.value,
                "state_since_ms": rollout.started_at_ms,
                "epoch": 0,
                "terms": TERMS.dump_python(rollout, mode="json"),
                "course": {},
            },
        )

    def keep_state(self, generation: int, state: RolloutState, now_ms: int) -> bool:
        """Write how far a rollout is.

        Returns:
            Whether that is news.
        """
        changed = self._connection.execute(
            update(ROLLOUTS)
            .where(ROLLOUTS.c.generation == generation, ROLLOUTS.c.state != state.value)
            .values(state=state.value, state_since_ms=now_ms)
        )
        return changed.rowcount > 0

    def keep_result(self, generation: int, came: AgentProgress, now_ms: int) -> bool:
        """Write how far an agent is in a rollout.

        Returns:
            Whether that is news.
        """
        row = self._connection.execute(
            select(RESULTS).where(
                RESULTS.c.generation == generation, RESULTS.c.agent == came.agent
            )
        ).first()
        news = (came.state.value, came.version, came.reason)
        if row is not None and (row.state, row.version, row.reason) == news:
            return False
        upsert(
            self._connection,
            RESULTS,
            [
                {
                    "generation": generation,
                    "agent": came.agent,
                    "state": came.state.value,
                    "version": came.version,
                    "reason": came.reason,
                    "since_ms": now_ms,
                    "told_at_ms": now_ms,
                    "wave": 0,
                    "mark": 0,
                    "shadow": False,
                    "before": None,
                    "before_epoch": 0,
                }
            ],
        )
        return True

    def results(self) -> dict[tuple[int, str], AgentResult]:
        """The last written state of each agent in each rollout."""
        return {
            (row.generation, row.agent): AgentResult(
                generation=row.generation,
                agent=row.agent,
                state=row.state,
                version=row.version,
                reason=row.reason,
                since_ms=row.since_ms,
            )
            for row in self._connection.execute(select(RESULTS))
        }

    def keep_event(
        self, generation: int, kind: str, details: Mapping[str, Any], *, at_ms: int
    ) -> RolloutEvent:
        """Append to the history of a rollout."""
        last = self._connection.execute(
            select(func.max(EVENTS.c.sequence)).where(EVENTS.c.generation == generation)
        ).scalar()
        event = RolloutEvent(generation, (last or 0) + 1, at_ms, kind, dict(details))
        self._connection.execute(
            insert(EVENTS),
            {
                "generation": generation,
                "sequence": event.sequence,
                "at_ms": at_ms,
                "kind": kind,
                "details": event.details,
            },
        )
        return event

    def events(self, generation: int) -> list[RolloutEvent]:
        """The history of a rollout, oldest first."""
        rows = self._connection.execute(
            select(EVENTS)
            .where(EVENTS.c.generation == generation)
            .order_by(EVENTS.c.sequence)
        )
        return [RolloutEvent(**row) for row in rows.mappings()]
