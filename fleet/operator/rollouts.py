"""What operators do to rollouts: plan, start, pause, resume, approve, abort, roll back."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace

from fleet.adapters.registry import Registry
from fleet.adapters.state.database import FleetDatabase
from fleet.adapters.state.ledger import Ledger
from fleet.adapters.state.rollouts import RolloutEvent
from fleet.core.following import Now
from fleet.core.machine import NEXT, Event, WrongMove
from fleet.core.orders import BadOrder, check_version, read_agents
from fleet.core.plan import Chosen, Costs, Needs, Plan, plan
from fleet.core.progress import RolloutProgress, all_progress, progress
from fleet.core.rollouts import (
    Rollout,
    RolloutState,
    next_generation,
)
from fleet.core.terms import Ordered, Terms, rollout_on
from fleet.loops.conducting import (
    advanced_in,
    command,
    look,
    needs_of,
    write_desired,
)
from fleet.operator.going_back import check_way_back


@dataclass(frozen=True, slots=True)
class Started:
    """A rollout that began, and the agents it changes something for now."""

    rollout: Rollout
    agents: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class History:
    """One rollout from its order on."""

    rollout: Rollout
    state: RolloutState
    events: tuple[RolloutEvent, ...]


class Rollouts:
    """The rollouts of a fleet. Every call blocks.

    Args:
        database: open.
        registry: where versions and desired documents lie.
        now: gives the time.
        by: who does it, for the record.
    """

    def __init__(
        self,
        database: FleetDatabase,
        registry: Registry,
        now: Callable[[], Now],
        by: str,
    ) -> None:
        self._database = database
        self._registry = registry
        self._now = now
        self._by = by

    def plan(
        self,
        model: str,
        version: str,
        agents: str | None = None,
        terms: Terms | None = None,
        costs: Costs | None = None,
    ) -> Plan:
        """What `start` would do now.

        Raises:
            BadOrder: unknown model, version or agent, or terms that cannot be kept.
            DatabaseUnavailable: the state cannot be read.
        """
        self._check_version(model, version)
        now = self._now()
        with self._database.reading() as ledger:
            rollout = self._ordered(ledger, model, version, agents, terms or Terms())
            return plan(
                rollout,
                ledger.devices(),
                ledger.labels(),
                _needs(ledger).get((model, version), Needs()),
                now,
                costs,
            )

    def start(
        self,
        model: str,
        version: str,
        agents: str | None = None,
        terms: Terms | None = None,
        *,
        written: Callable[[int, int], None] = lambda _done, _of: None,
    ) -> Started:
        """Begin a rollout; its first agents are told at once, the daemon goes on.

        Args:
            model: a published model.
            version: one of its published versions.
            agents: `a,b,c`; None means every agent, also those that come later.
            terms: waves, gates and the rest; None means all at once.
            written: called with how many of how many documents are written.

        Raises:
            BadOrder: unknown model, version or agent, or terms that cannot be kept.
            DatabaseUnavailable: nothing was changed.
            OSError: the registry cannot be written; the daemon completes it later.
        """
        self._check_version(model, version)
        with self._database.writing() as ledger:
            rollout = self._ordered(ledger, model, version, agents, terms or Terms())
            ledger.keep_rollout(rollout)
            at_ms, name = rollout.started_at_ms, str(rollout.generation)
            said = {"model": model, "version": version, "epoch": rollout.epoch}
            ledger.keep_event(rollout.generation, "start", said, at_ms=at_ms)
            ledger.record(self._by, "rollout.start", name, said, at_ms=at_ms)
        looked = look(self._database, _just_come(self._now()))
        changed = write_desired(
            self._database, self._registry, looked.agents, written=written
        )
        return Started(rollout, changed)

    def pause(self, generation: int, reason: str = "") -> tuple[str, ...]:
        """Tell nobody more until it is resumed.

        Returns:
            The agents of whom something else is desired now; so do those below.

        Raises:
            BadOrder: no such rollout, or it cannot be done in its state; as below.
            DatabaseUnavailable: nothing was changed.
        """
        return self._do(generation, Event.PAUSE, reason or f"paused by {self._by}")

    def resume(self, generation: int, reason: str = "") -> tuple[str, ...]:
        """Go on; the gates that have failed are overruled, and asked no more."""
        return self._do(generation, Event.RESUME, reason or f"resumed by {self._by}")

    def approve(self, generation: int, reason: str = "") -> tuple[str, ...]:
        """Let it go on to the next wave."""
        return self._do(generation, Event.APPROVE, reason or f"approved by {self._by}")

    def abort(self, generation: int, reason: str = "") -> tuple[str, ...]:
        """End it where it is: who has the version keeps it, nobody else is told."""
        return self._do(generation, Event.ABORT, reason or f"aborted by {self._by}")

    def roll_back(self, generation: int, reason: str = "") -> tuple[str, ...]:
        """Send every agent that was told back to the version of before.

        Raises:
            BadOrder: also when that is not signed any more, or when all of them follow
                a newer rollout.
            DatabaseUnavailable: nothing was changed.
        """
        return self._do(
            generation, Event.ROLL_BACK, reason or f"rolled back by {self._by}"
        )

    def progress(self, *, every: bool = False) -> list[RolloutProgress]:
        """How far rollouts are, newest first.

        Args:
            every: also those that ended, or that newer ones have superseded.
        """
        now = self._now()
        with self._database.reading() as ledger:
            devices = ledger.devices()
            came = all_progress(advanced_in(ledger, now), devices, now)
            if every:
                known = {each.rollout.generation for each in came}
                older = [
                    each for each in ledger.rollouts() if each.generation not in known
                ]
                courses = ledger.courses(older)
                came += [
                    progress(each, courses[each.generation], Chosen(()), devices, now)
                    for each in older
                ]
        return sorted(came, key=lambda one: -one.rollout.generation)

    def progress_of(self, generation: int) -> RolloutProgress:
        """How far one rollout is.

        Raises:
            BadOrder: there is none of this generation.
        """
        now = self._now()
        with self._database.reading() as ledger:
            devices = ledger.devices()
            for each in all_progress(advanced_in(ledger, now), devices, now):
                if each.rollout.generation == generation:
                    return each
            rollout = _named(ledger, generation)
            course = ledger.courses([rollout])[generation]
            return progress(rollout, course, Chosen(()), devices, now)

    def history(self, generation: int | None = None) -> list[History]:
        """What happened in rollouts, newest first; of one or of all.

        Raises:
            BadOrder: there is none of this generation.
        """
        with self._database.reading() as ledger:
            states = ledger.rollout_states()
            rollouts = (
                ledger.rollouts()
                if generation is None
                else [_named(ledger, generation)]
            )
            return [
                History(
                    each,
                    states[each.generation],
                    tuple(ledger.events(each.generation)),
                )
                for each in reversed(rollouts)
            ]

    def _do(self, generation: int, event: Event, reason: str) -> tuple[str, ...]:
        now = self._now()
        try:
            with self._database.writing() as ledger:
                rollout = _named(ledger, generation)
                state = ledger.rollout_states()[generation]
                if event is Event.ROLL_BACK and (state, event) in NEXT:
                    check_way_back(ledger, self._registry, rollout)
                agents = command(
                    ledger,
                    rollout,
                    event,
                    reason,
                    by=self._by,
                    now_ms=now.now_ms,
                )
        except WrongMove as error:
            raise BadOrder(str(error)) from error
        looked = look(self._database, _just_come(now))
        return write_desired(self._database, self._registry, agents | looked.agents)

    def _check_version(self, model: str, version: str) -> None:
        published: dict[str, list[str]] = {}
        for each in self._registry.published():
            published.setdefault(each.name, []).append(each.version)
        drafted = self._registry.known_versions(model)
        check_version(model, version, published, drafted)

    def _ordered(
        self,
        ledger: Ledger,
        model: str,
        version: str,
        agents: str | None,
        terms: Terms,
    ) -> Rollout:
        devices, rollouts = ledger.devices(), ledger.rollouts()
        ordered = Ordered(
            model=model,
            version=version,
            targets=read_agents(agents, devices),
            generation=next_generation(rollouts, devices.values()),
            at_ms=self._now().now_ms,
            by=self._by,
        )
        return rollout_on(terms, ordered, self._registry.signed_versions(model))


def _just_come(now: Now) -> Now:
    """The time, for a look by somebody who has heard nobody so far.

    Only the daemon knows since when agents can be heard: after an outage of its own or
    of RabbitMQ a command must not blame them for it. So no lease runs out here, and no
    wave has soaked; the daemon looks again at once.
    """
    return replace(now, listening_since_ms=now.now_ms)


def _needs(ledger: Ledger) -> Mapping[tuple[str, str], Needs]:
    return {(each.model, each.version): needs_of(each) for each in ledger.versions()}


def _named(ledger: Ledger, generation: int) -> Rollout:
    for each in ledger.rollouts():
        if each.generation == generation:
            return each
    raise BadOrder(
        f"there is no rollout {generation}: `overspill rollout history` names them"
    )
