"""What reports and time make of a rollout: one look, and what was decided in it.

Pure: it returns the course after the look with the decisions that led there. Looking
twice at the same decides nothing new.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Final

from fleet.core.cohorts import cut, is_last, wave_of
from fleet.core.devices import Device
from fleet.core.following import Now, follow, follow_back, standing
from fleet.core.gates import Decision, Unsure, Verdict
from fleet.core.judging import judge
from fleet.core.leaving import ending
from fleet.core.machine import (
    OPEN,
    Changed,
    Event,
    Step,
    Tell,
    affected,
    moved_by,
)
from fleet.core.rollouts import (
    FAILED_AGENT,
    GONE_BACK,
    MOVING,
    PULLS,
    SUCCEEDED,
    AgentState,
    Course,
    OnFailure,
    Rollout,
    RolloutState,
    Told,
    Wave,
)
from fleet.core.windows import is_open

R, E = RolloutState, Event
WATCHED: Final = frozenset({R.RUNNING, R.AWAITING_APPROVAL})


@dataclass(frozen=True, slots=True)
class View:
    """What a rollout sees of the fleet.

    Attributes:
        devices: every known agent, by name.
        eligible: who may be told, in the rollout's order (`cohorts.in_order`).
        taken: agents that a newer rollout of the same model has or will have.
        now: the time.
        excluded: why others among its agents will not be told, whatever is waited for.
    """

    devices: Mapping[str, Device]
    eligible: Sequence[str]
    now: Now
    taken: Collection[str] = frozenset()
    excluded: Mapping[str, str] = field(default_factory=dict)


def advance(rollout: Rollout, course: Course, view: View) -> Step:
    """Look once; the result is stable until a report comes or time passes."""
    look = _Look(rollout, course, view)
    look.follow()
    if course.state in OPEN:
        look.tell(look.last_wave())
        look.mend()
    elif course.state in WATCHED and not look.end_without_agents():
        look.conduct()
    elif course.state is R.ROLLING_BACK:
        look.end_going_back()
    return look.step()


class _Look:
    """One look in progress; a value in all but name, gone after `step`."""

    def __init__(self, rollout: Rollout, course: Course, view: View) -> None:
        self.rollout = rollout
        self.view = view
        self.course = course
        self.told = dict(course.told)
        self.decisions: list[Tell | Changed] = []
        self.changed: dict[str, Told] = {}
        self.now_ms = view.now.now_ms
        self.eligible = [each for each in view.eligible if each not in view.taken]
        self._standing: dict[str, AgentState] = {}

    def step(self) -> Step:
        """What came of it."""
        told = self.told if self.changed else self.course.told
        return Step(
            replace(self.course, told=told),
            tuple(self.decisions),
            tuple(self.changed.values()),
        )

    def follow(self) -> None:
        """Take in what every told agent reports."""
        after = follow_back if self.course.state in GONE_BACK else follow
        for agent, told in self.told.items():
            came = after(self.rollout, told, self.view.devices.get(agent))
            if came is not told:
                self.changed[agent] = came
        self.told.update(self.changed)

    def last_wave(self) -> int:
        """The index under which latecomers are told."""
        return self.course.wave

    def end_without_agents(self) -> bool:
        """Whether it has ended because all that it named are gone."""
        if self._counted():
            return False
        view = self.view
        end = ending(self.rollout, view.devices, view.excluded, view.taken)
        if end is None:
            return False
        self._move(*end)
        return True

    def conduct(self) -> None:
        """Tell, judge, and go on for as long as there is something to go on with."""
        while self.course.state in WATCHED:
            if self._stopped_by_a_gate() or self.course.state is not R.RUNNING:
                break
            self.tell(self.course.wave)
            if not self._wave_is_through():
                break

    def tell(self, wave: int) -> None:
        """Tell as many more agents as the wave and the cap of pulls allow."""
        shadow = wave_of(self.rollout, wave).shadow
        open_end = self.course.state in OPEN
        population = self._population()
        room = population if open_end else cut(self.rollout, wave, population)
        room -= self._in_wave(wave)
        # Also those that a newer rollout will have: until it tells them they pull on.
        places = self.rollout.max_parallel - sum(
            self._alone(agent) in PULLS
            for agent in self.told
            if agent in self.view.devices
        )
        chosen: list[str] = []
        for agent in self.eligible:
            if len(chosen) >= min(room, places):
                break
            if self._can_be_told(agent, shadow=shadow) and self._in_window(agent):
                chosen.append(agent)
        for agent in chosen:
            self._keep(self._fresh(agent, wave, shadow=shadow))
        if chosen:
            self.decisions.append(Tell(tuple(chosen), wave, shadow))
            self.course = replace(self.course, settled_at_ms=None)
            self._judge()

    def mend(self) -> None:
        """A rollout that failed is done once no agent fails any more."""
        if self.course.state is R.FAILED and not self._failed():
            self._move(E.FINISH, "every agent that had failed has mended")

    def end_going_back(self) -> None:
        """All are back, or their lease to go back has run out."""
        waiting, lost = 0, []
        for agent in self.told:
            if self._at(agent) in {AgentState.SUPERSEDED, AgentState.BACK}:
                continue
            if self._at(agent) is AgentState.GOING_BACK:
                waiting += 1
            else:
                lost.append(agent)
        if not waiting:
            reason = self.course.reason or ""
            if lost:
                reason += f" ({len(lost)} not heard of yet: they go back when they are)"
            self._move(E.ALL_BACK, reason)

    def _judge(self) -> None:
        verdicts = judge(self.rollout, self._counted(), self.view.devices, self.told)
        self.course = replace(self.course, verdicts=verdicts)

    def _stopped_by_a_gate(self) -> bool:
        self._judge()
        failed = [
            each
            for each in self.course.verdicts
            if each.decision is Decision.FAIL and each.kind not in self.course.waived
        ]
        if not failed:
            return False
        reason = "; ".join(f"{each.kind.value}: {each.reason}" for each in failed)
        possible = self.rollout.way_back is not None or all(
            each.shadow for each in self.told.values()
        )
        if self.rollout.on_failure is OnFailure.ROLL_BACK and possible:
            self._move(E.ROLL_BACK, reason)
        elif self.course.state is R.RUNNING:
            self._move(E.PAUSE, reason)
        return True

    def _wave_is_through(self) -> bool:
        """Whether the next wave has begun."""
        wave = wave_of(self.rollout, self.course.wave)
        settled = self._settled(self.course.wave, shadow=wave.shadow)
        if settled != (self.course.settled_at_ms is not None):
            at_ms = self.now_ms if settled else None
            self.course = replace(self.course, settled_at_ms=at_ms)
        if self.course.settled_at_ms is None:
            return False
        # While nobody was heard nothing was watched.
        from_ms = max(self.course.settled_at_ms, self.view.now.listening_since_ms)
        soaked_s = (self.now_ms - from_ms) / 1000 - wave.soak_s
        if soaked_s < 0 or self._held(wave, soaked_s):
            return False
        if self._last():
            self._finish()
            return False
        self._widen()
        return True

    def _held(self, wave: Wave, soaked_s: float) -> bool:
        """Whether gates or people do not let it go on yet; asks people if need be."""
        if self.course.approved >= self.course.wave:
            return False
        unsure = self._unsure()
        why = [f"{each.kind.value}: {each.reason}" for each in unsure]
        late = len(self._counted())
        if late and not self._answered():
            # Others wait for them, perhaps for ever: a person can let them go on.
            why.append(f"none of {late} agents has come to an end within its lease")
        missing = self._missing()
        if missing:
            why.append(f"{missing} agents more belong to this wave and are away")
        if why:
            overdue = soaked_s >= self.rollout.patience_s
            if overdue or any(each.final for each in unsure):
                self._move(E.ASK, f"it cannot be decided: {'; '.join(why)}")
            return True
        if wave.approve and not self._last():
            self._move(E.ASK, f"wave {self.course.wave + 1} has passed")
            return True
        return False

    def _last(self) -> bool:
        return is_last(self.rollout, self.course.wave, self._population())

    def _missing(self) -> int:
        """How many agents a wave lacks. The last has all that are there.

        Or a fleet that is mostly away would be through all its waves with the few that
        are there, and all the others would come into one that nobody watches.
        """
        if self._last() or wave_of(self.rollout, self.course.wave).shadow:
            return 0
        upto = cut(self.rollout, self.course.wave, self._population())
        return max(0, upto - self._in_wave(self.course.wave))

    def _population(self) -> int:
        """How many agents the waves are cut from.

        Whom it has told counts, also when the version would no longer fit there: its
        own bundle may have filled the disk. Or it would take a place of another's.
        """
        eligible = set(self.eligible)
        return len(eligible) + sum(
            agent not in eligible and self._at(agent) is not AgentState.SUPERSEDED
            for agent in self.told
        )

    def _in_wave(self, wave: int) -> int:
        """How many of those still its own it has told, the shadows apart."""
        shadow = wave_of(self.rollout, wave).shadow
        return sum(
            each.shadow == shadow and self._at(agent) is not AgentState.SUPERSEDED
            for agent, each in self.told.items()
        )

    def _finish(self) -> None:
        failed = self._failed()
        if failed and (not self.rollout.gates or self.course.waived):
            self._move(E.FAIL, f"{_agents(failed)} did not take it")
        else:
            self._move(E.FINISH, f"{_agents(failed)} did not take it" if failed else "")

    def _widen(self) -> None:
        self._move(E.WIDEN, "")
        self.course = replace(
            self.course,
            wave=self.course.wave + 1,
            wave_since_ms=self.now_ms,
            settled_at_ms=None,
        )

    def _unsure(self) -> list[Verdict]:
        """What the gates say that do not let it go on yet."""
        may_pass = {
            each.kind for each in self.rollout.gates if each.unsure is Unsure.GO_ON
        } | self.course.waived
        return [
            each
            for each in self.course.verdicts
            if each.decision is not Decision.PASS and each.kind not in may_pass
        ]

    def _settled(self, wave: int, *, shadow: bool) -> bool:
        """Whether nobody of the wave is still to be told or to be waited for."""
        if any(self._at(agent) in MOVING for agent in self.told):
            return False
        if not self._answered(shadow=shadow) and (self._last() or not self._counted()):
            # Nothing has happened yet, so nothing can be said; unless nobody serves
            # any version that a shadow could run beside.
            return shadow and not self.told and any(map(self._here, self.eligible))
        if self._in_wave(wave) >= cut(self.rollout, wave, self._population()):
            return True
        return not any(
            self._can_be_told(agent, shadow=shadow) or self._may_be_here(agent)
            for agent in self.eligible
        )

    def _answered(self, *, shadow: bool = True) -> bool:
        """Whether anybody has; without `shadow` only of those that were to serve it."""
        return any(
            self._at(agent) in SUCCEEDED | FAILED_AGENT and (shadow or not each.shadow)
            for agent, each in self.told.items()
        )

    def _failed(self) -> list[str]:
        return [each for each in self.told if self._at(each) in FAILED_AGENT]

    def _counted(self) -> Mapping[str, AgentState]:
        """Every told agent that is still this rollout's, and how it stands."""
        states = {agent: self._at(agent) for agent in self.told}
        return {
            agent: state
            for agent, state in states.items()
            if state is not AgentState.SUPERSEDED
        }

    def _can_be_told(self, agent: str, *, shadow: bool) -> bool:
        told = self.told.get(agent)
        if told is not None and (shadow or not told.shadow):
            return False
        return self._here(agent) and not (shadow and self._serves(agent) is None)

    def _in_window(self, agent: str) -> bool:
        facts = self.view.devices[agent].facts
        return is_open(self.rollout.policy.window, facts, self.now_ms)

    def _serves(self, agent: str) -> str | None:
        device = self.view.devices.get(agent)
        slot = None if device is None else device.slot(self.rollout.model)
        return None if slot is None else slot.active

    def _here(self, agent: str) -> bool:
        return self.view.now.heard(self.view.devices.get(agent))

    def _may_be_here(self, agent: str) -> bool:
        """Whether an agent that nothing was asked of may only not have been heard yet."""
        return (
            agent not in self.told
            and not self._here(agent)
            and not self.view.now.long_enough
        )

    def _fresh(self, agent: str, wave: int, *, shadow: bool) -> Told:
        device = self.view.devices.get(agent)
        slot = None if device is None else device.slot(self.rollout.model)
        return Told(
            agent=agent,
            wave=wave,
            told_at_ms=self.now_ms,
            since_ms=self.now_ms,
            shadow=shadow,
            version=None if slot is None else slot.active,
            before=None if slot is None else slot.active,
            before_epoch=0 if slot is None else slot.epoch,
        )

    def _keep(self, told: Told) -> None:
        self.told[told.agent] = self.changed[told.agent] = told
        self._standing.pop(told.agent, None)

    def _at(self, agent: str) -> AgentState:
        # A retired agent is as little this rollout's as one that a newer one has.
        if agent in self.view.taken or agent not in self.view.devices:
            return AgentState.SUPERSEDED
        return self._alone(agent)

    def _alone(self, agent: str) -> AgentState:
        """How it stands, whatever other rollouts want of it."""
        known = self._standing.get(agent)
        if known is None:
            device = self.view.devices.get(agent)
            known = standing(self.rollout, self.told[agent], device, self.view.now)
            self._standing[agent] = known
        return known

    def _move(self, event: Event, reason: str) -> None:
        before = replace(self.course, told=self.told)
        moved = moved_by(self.rollout, before, event, reason, self.now_ms)
        if event is E.ROLL_BACK:
            self.told = dict(moved.told)
            self.changed.update(self.told)
            self._standing.clear()
        self.course = moved
        self.decisions.append(
            Changed(event, reason, moved.wave, affected(before, event))
        )


def _agents(names: Sequence[str]) -> str:
    listed = ", ".join(sorted(names)[:5]) + (", …" if len(names) > 5 else "")
    return f"{len(names)} agent{'' if len(names) == 1 else 's'} ({listed})"
