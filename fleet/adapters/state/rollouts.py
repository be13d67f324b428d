"""Rollouts: what was ordered, how far it is, and what came of it on each agent."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass, fields, replace
from functools import lru_cache
from typing import Any, Final

from pydantic import TypeAdapter
from sqlalchemy import (
    Connection,
    RowMapping,
    Text,
    cast,
    func,
    insert,
    select,
    update,
)

from fleet.adapters.state.tables import EVENTS, RESULTS, ROLLOUTS, upsert
from fleet.core.rollouts import (
    REMEMBERED,
    AgentState,
    Course,
    Rollout,
    RolloutState,
    Told,
    begun,
)

TERMS: Final = TypeAdapter(Rollout)
COURSE: Final = TypeAdapter(Course)
# SQLite takes 32,766 parameters in one statement, older ones 999.
NAMED_AT_ONCE: Final = 500
REMEMBERED_TERMS: Final = 10_000


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
            select(cast(ROLLOUTS.c.terms, Text)).order_by(ROLLOUTS.c.generation)
        )
        return [_terms(row[0]) for row in rows]

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
                "state": RolloutState.RUNNING.value,
                "state_since_ms": rollout.started_at_ms,
                "epoch": rollout.epoch,
                "terms": TERMS.dump_python(rollout, mode="json"),
                "course": _page(begun(rollout)),
            },
        )

    def courses(self, rollouts: Iterable[Rollout]) -> dict[int, Course]:
        """How far each of these rollouts is, with every agent it has told."""
        by_generation = {each.generation: each for each in rollouts}
        told: dict[int, dict[str, Told]] = {each: {} for each in by_generation}
        for some in _cut(sorted(by_generation)):
            found = select(RESULTS).where(RESULTS.c.generation.in_(some))
            for row in self._connection.execute(found).mappings():
                told[row["generation"]][row["agent"]] = _told(row)
        courses: dict[int, Course] = {}
        for some in _cut(sorted(by_generation)):
            pages = select(ROLLOUTS).where(ROLLOUTS.c.generation.in_(some))
            for row in self._connection.execute(pages).mappings():
                generation = row["generation"]
                # Those from before rollouts had a course have an empty page.
                fresh = _page(begun(by_generation[generation]))
                page = {**fresh, **row["course"], "state": row["state"]}
                page["since_ms"] = row["state_since_ms"]
                courses[generation] = replace(
                    COURSE.validate_python(page), told=told[generation]
                )
        return courses

    def rollout_states(self) -> dict[int, RolloutState]:
        """The state of every rollout, by generation."""
        rows = self._connection.execute(select(ROLLOUTS.c.generation, ROLLOUTS.c.state))
        return {row.generation: RolloutState(row.state) for row in rows}

    def told_of(self, agents: Collection[str]) -> dict[str, dict[int, Told]]:
        """What rollouts have told `agents`, by agent and generation."""
        told: dict[str, dict[int, Told]] = {}
        names = sorted(agents)
        for start in range(0, len(names), NAMED_AT_ONCE):
            some = names[start : start + NAMED_AT_ONCE]
            found = select(RESULTS).where(RESULTS.c.agent.in_(some))
            for row in self._connection.execute(found).mappings():
                told.setdefault(row["agent"], {})[row["generation"]] = _told(row)
        return told

    def keep_course(self, generation: int, course: Course) -> None:
        """Write how far a rollout is; of its agents only those given to `keep_told`."""
        self._connection.execute(
            update(ROLLOUTS)
            .where(ROLLOUTS.c.generation == generation)
            .values(
                state=course.state.value,
                state_since_ms=course.since_ms,
                course=_page(course),
            )
        )

    def keep_told(self, generation: int, told: Iterable[Told]) -> None:
        """Write what came of a rollout on some agents."""
        upsert(
            self._connection,
            RESULTS,
            (
                {
                    "generation": generation,
                    **{each.name: getattr(one, each.name) for each in fields(Told)},
                    "state": one.state.value,
                }
                for one in told
            ),
        )

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


@lru_cache(maxsize=REMEMBERED_TERMS)
def _terms(text: str) -> Rollout:
    # Orders never change, and each look reads all of them.
    return TERMS.validate_json(text)


def _page(course: Course) -> dict[str, Any]:
    """A course as JSON, without its agents, who have rows of their own."""
    page: dict[str, Any] = COURSE.dump_python(replace(course, told={}), mode="json")
    del page["told"]
    return page


def _told(row: RowMapping) -> Told:
    said = {each.name: row[each.name] for each in fields(Told)}
    state = AgentState(said["state"])
    # Earlier programs wrote what silence had made of it.
    said["state"] = state if state in REMEMBERED else AgentState.PENDING
    return Told(**said)


def _cut(generations: list[int]) -> Iterable[list[int]]:
    return (
        generations[start : start + NAMED_AT_ONCE]
        for start in range(0, len(generations), NAMED_AT_ONCE)
    )
