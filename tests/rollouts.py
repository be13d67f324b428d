"""A fleet of a few agents that follow their desired documents, for rollouts to be tried on."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field, replace
from typing import Any

from broker.messages import DesiredModel, SlotReport
from fleet.core.devices import Device
from fleet.core.fleetwide import Fleet, advance_all, relevant
from fleet.core.following import Now
from fleet.core.machine import Event, Step, order
from fleet.core.plan import Needs
from fleet.core.rollouts import (
    Course,
    Rollout,
    begun,
    desired_for,
    next_generation,
)

MODEL = "fashion"
START_MS = 1_700_000_000_000


def served(desired: DesiredModel) -> SlotReport:
    """What an agent says that has done all that was desired."""
    if desired.shadow:
        return SlotReport(
            model=desired.model,
            active="1",
            staged=desired.version,
            state="shadow",
            generation=desired.generation,
        )
    return SlotReport(
        model=desired.model,
        active=desired.version,
        state="swapped",
        generation=desired.generation,
        epoch=desired.epoch,
    )


def refusing(desired: DesiredModel) -> SlotReport:
    """What an agent says that will not have it."""
    return SlotReport(
        model=desired.model,
        active="1",
        state="refused",
        reason="golden input 3 differs",
        generation=desired.generation,
    )


@dataclass
class Small:
    """Agents, rollouts and a clock. Nothing happens by itself."""

    agents: Iterable[str] = ()
    now_ms: int = START_MS
    devices: dict[str, Device] = field(default_factory=dict)
    rollouts: list[Rollout] = field(default_factory=list)
    courses: dict[int, Course] = field(default_factory=dict)
    steps: list[Step] = field(default_factory=list)
    needs: Mapping[tuple[str, str], Needs] = field(default_factory=dict)

    def __post_init__(self) -> None:
        for each in self.agents:
            self.joins(each)

    def joins(self, agent: str, *, active: str | None = "1") -> None:
        slot = SlotReport(model=MODEL, active=active)
        self.devices[agent] = Device(agent, self.now_ms, self.now_ms, (slot,))

    def knows(self, agent: str, **facts: str) -> None:
        self.devices[agent] = replace(self.devices[agent], facts=facts)

    def start(self, version: str = "2", **more: Any) -> Rollout:
        rollout = Rollout(
            next_generation(self.rollouts, self.devices.values()),
            more.pop("model", MODEL),
            version,
            self.now_ms,
            **more,
        )
        self.rollouts.append(rollout)
        self.courses[rollout.generation] = begun(rollout)
        return rollout

    def look(self, *, listening_since_ms: int = 0) -> list[Step]:
        """What every rollout decides; they are as they say from now on."""
        states = {each: course.state for each, course in self.courses.items()}
        fleet = Fleet(
            self.devices, {}, self.needs, Now(self.now_ms, listening_since_ms)
        )
        came = advance_all(relevant(self.rollouts, states), states, self.courses, fleet)
        for each in came:
            self.courses[each.rollout.generation] = each.step.course
        self.steps = [each.step for each in came]
        return self.steps

    def do(self, rollout: Rollout, event: Event) -> None:
        """What a person asks for."""
        generation = rollout.generation
        step = order(rollout, self.courses[generation], event, "because", self.now_ms)
        self.courses[generation] = step.course

    def course(self, rollout: Rollout) -> Course:
        return self.courses[rollout.generation]

    def passes(self, seconds: float, *, heard: Iterable[str] | None = None) -> None:
        """Time goes by; agents report what they did before, or only those of `heard`."""
        self.now_ms += round(seconds * 1000)
        for agent in list(self.devices) if heard is None else heard:
            self.devices[agent] = replace(self.devices[agent], last_seen_ms=self.now_ms)

    def desired(self, agent: str) -> dict[str, DesiredModel]:
        pairs = [(each, self.courses[each.generation]) for each in self.rollouts]
        return {each.model: each for each in desired_for(agent, pairs)}

    def says(self, agent: str, slot: SlotReport) -> None:
        before = self.devices[agent]
        others = tuple(each for each in before.slots if each.model != slot.model)
        self.devices[agent] = replace(
            before, last_seen_ms=self.now_ms, slots=(*others, slot)
        )

    def obey(
        self,
        *agents: str,
        answer: Callable[[DesiredModel], SlotReport] = served,
    ) -> None:
        """These agents (or all) do what is desired of them, and say so."""
        for agent in agents or tuple(self.devices):
            for desired in self.desired(agent).values():
                self.says(agent, answer(desired))

    def told(self, rollout: Rollout) -> set[str]:
        return set(self.course(rollout).told)

    def run(
        self,
        *,
        looks: int = 50,
        answer: Callable[[DesiredModel], SlotReport] = served,
        every_s: float = 1.0,
    ) -> None:
        """Look and obey in turn."""
        for _ in range(looks):
            self.look()
            self.obey(answer=answer)
            self.passes(every_s)
