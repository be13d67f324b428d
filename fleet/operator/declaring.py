"""Compare the fleet with what was declared of it, and make it so. Every call blocks."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass

from pydantic import ValidationError

from fleet.adapters.fleet_file import BadFile, FleetFile
from fleet.adapters.state.database import FleetDatabase
from fleet.core.declared import DeclaredFleet, DeclaredRollout
from fleet.core.differences import (
    Change,
    Differences,
    LabelChange,
    breadth,
    compare,
)
from fleet.core.faults import faults
from fleet.core.following import Now
from fleet.core.labelling import MAX_LABELS
from fleet.core.ordering import terms_of
from fleet.core.orders import BadOrder
from fleet.core.plan import Costs, Plan
from fleet.core.terms import Terms
from fleet.operator.rollouts import Rollouts, Started


def read_declared(file: FleetFile) -> DeclaredFleet:
    """What a file declares.

    Raises:
        BadFile: something in it cannot be; one line for each mistake, in their order.
    """
    try:
        return DeclaredFleet.model_validate(file.data)
    except ValidationError as error:
        found = faults(error, file.data, DeclaredFleet)
        found.sort(key=lambda each: file.line(each.path))
        lines = [
            f"{file.where(each.path)}: "
            + (f"{each.field}: " if each.field else "")
            + each.reason
            for each in found
        ]
        raise BadFile("\n".join(lines)) from error


@dataclass(frozen=True, slots=True)
class Applied:
    """What applying did; `told` are the agents of whom something else is desired now."""

    differences: Differences
    started: tuple[Started, ...]

    @property
    def told(self) -> tuple[str, ...]:
        """Over all rollouts that began."""
        return tuple(agent for each in self.started for agent in each.agents)


class Declaring:
    """Brings the fleet to what was declared.

    Args:
        database: open.
        rollouts: what can be done to them.
        now: gives the time.
        by: who does it, for the record.
    """

    def __init__(
        self,
        database: FleetDatabase,
        rollouts: Rollouts,
        now: Callable[[], Now],
        by: str,
    ) -> None:
        self._database = database
        self._rollouts = rollouts
        self._now = now
        self._by = by

    def compare(self, declared: DeclaredFleet) -> Differences:
        """What stands between the fleet and what was declared.

        Raises:
            BadOrder: a version or an agent that is declared is not known.
            DatabaseUnavailable: the state cannot be read.
        """
        found = self._compare(declared)
        for each in found.rollouts:
            if each.change is Change.START:
                self.plan(each.declared)
        return found

    def plan(self, declared: DeclaredRollout, costs: Costs | None = None) -> Plan:
        """What beginning one declared rollout would do.

        Args:
            declared: which version, for whom, and how.
            costs: what pulling and installing it costs.

        Raises:
            BadOrder: its version or an agent is not known.
            DatabaseUnavailable: the state cannot be read.
        """
        agents = _named(declared)
        model, version = declared.model, declared.version
        bare = self._rollouts.plan(model, version, agents, Terms(query=declared.where))
        terms = terms_of(declared, len(bare.chosen.eligible))
        return self._rollouts.plan(model, version, agents, terms, costs)

    def start(
        self,
        declared: DeclaredRollout,
        written: Callable[[int, int], None] = lambda _done, _of: None,
    ) -> Started:
        """Begin one declared rollout.

        Raises:
            BadOrder: its version or an agent is not known.
            DatabaseUnavailable: nothing was changed.
            OSError: the registry cannot be written; the daemon completes it later.
        """
        planned = self.plan(declared)
        return self._rollouts.start(
            declared.model,
            declared.version,
            _named(declared),
            terms_of(declared, len(planned.chosen.eligible)),
            written=written,
        )

    def apply(
        self,
        declared: DeclaredFleet,
        written: Callable[[int, int], None] = lambda _done, _of: None,
    ) -> Applied:
        """Make every difference go away that can.

        Raises:
            BadOrder: a version or an agent is not known; nothing was changed.
            DatabaseUnavailable: rollouts before that one have begun.
            OSError: as above.
        """
        before = self.compare(declared)
        self._label(before.labels)
        # Those for more agents first: a later one takes its own from them.
        begun = sorted(
            (each for each in before.rollouts if each.change is Change.START),
            key=lambda each: breadth(each.declared),
        )
        return Applied(
            before, tuple(self.start(each.declared, written) for each in begun)
        )

    def _compare(self, declared: DeclaredFleet) -> Differences:
        with self._database.reading() as ledger:
            rollouts = ledger.rollouts()
            courses = ledger.courses(rollouts)
            return compare(
                declared,
                ledger.labels(),
                ledger.devices().keys(),
                [(each, courses[each.generation]) for each in rollouts],
            )

    def _label(self, changes: tuple[LabelChange, ...]) -> None:
        if not changes:
            return
        by_agent: dict[str, list[LabelChange]] = {}
        for each in changes:
            by_agent.setdefault(each.agent, []).append(each)
        with self._database.writing() as ledger:
            there = ledger.labels()
            for agent, some in by_agent.items():
                given = {
                    each.key: each.after for each in some if each.after is not None
                }
                taken = [each.key for each in some if each.after is None]
                _check_room(agent, there.get(agent, {}), given, taken)
                ledger.set_labels([agent], given)
                ledger.drop_labels([agent], taken)
            ledger.record(
                self._by,
                "device.label",
                f"{len(by_agent)} agents",
                {
                    agent: {each.key: each.after for each in some}
                    for agent, some in by_agent.items()
                },
                at_ms=self._now().now_ms,
            )


def _named(declared: DeclaredRollout) -> str | None:
    return None if declared.agents is None else ",".join(sorted(declared.agents))


def _check_room(
    agent: str, before: Mapping[str, str], given: Mapping[str, str], taken: list[str]
) -> None:
    if len({*before, *given}.difference(taken)) > MAX_LABELS:
        raise BadOrder(
            f"agent {agent!r} would have more than {MAX_LABELS} labels; nothing was "
            "changed"
        )
