"""Whatever agents, people and time do: what no rollout may ever do, and what all must."""

from __future__ import annotations

from typing import Any

from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule
from typing_extensions import override

from broker.messages import SlotReport
from fleet.core.following import Now, standing
from fleet.core.gates import Gate, GateKind
from fleet.core.machine import Event, WrongMove
from fleet.core.rollouts import (
    LIVE,
    PULLS,
    AgentState,
    Rate,
    Rollout,
    RolloutState,
    Wave,
    WayBack,
)
from tests.rollouts import Small, refusing, served

ALIVE = [f"a{each}" for each in range(5)]
DEAD = "dead"
MODELS = ("fashion", "boots")
LEASE_S = 100.0
WAVES: list[dict[str, Any]] = [
    {},
    {"waves": (Wave(count=2), Wave())},
    {"waves": (Wave(share=0.3, soak_s=50), Wave(share=0.6), Wave())},
    {"waves": (Wave(count=1, approve=True), Wave())},
    {"waves": (Wave(count=2, shadow=True), Wave(count=3), Wave())},
    {"waves": (), "rate": Rate(1, 2)},
]
GATES = ((), (Gate(GateKind.SUCCESS, limit=0.2),))
PEOPLE = (Event.PAUSE, Event.RESUME, Event.APPROVE, Event.ABORT, Event.ROLL_BACK)


class Rollouts(RuleBasedStateMachine):
    """Five agents that may do anything, and one that says nothing any more."""

    def __init__(self) -> None:
        super().__init__()
        self.fleet = Small([*ALIVE, DEAD])
        self.reports: list[tuple[str, SlotReport]] = []
        self.highest: dict[tuple[str, str], int] = {}
        self.lapsed: set[tuple[int, str]] = set()

    @rule(
        model=st.sampled_from(MODELS),
        version=st.sampled_from(["2", "3"]),
        named=st.none() | st.frozensets(st.sampled_from(ALIVE), min_size=1),
        staged=st.sampled_from(WAVES),
        gates=st.sampled_from(GATES),
        max_parallel=st.integers(1, 4),
        signed=st.booleans(),
    )
    @precondition(lambda self: len(self.fleet.rollouts) < 6)
    def start(
        self,
        model: str,
        version: str,
        named: frozenset[str] | None,
        staged: dict[str, Any],
        gates: tuple[Gate, ...],
        max_parallel: int,
        *,
        signed: bool,
    ) -> None:
        self.fleet.start(
            version,
            model=model,
            targets=named,
            gates=gates,
            max_parallel=max_parallel,
            way_back=WayBack("1", 50) if signed else None,
            epoch=49,
            lease_s=LEASE_S,
            patience_s=500,
            **staged,
        )

    @rule()
    def look(self) -> None:
        self.fleet.look()
        before = dict(self.fleet.courses)
        assert not any(each.decisions for each in self.fleet.look())
        assert self.fleet.courses == before

    @rule(agent=st.sampled_from(ALIVE))
    def obey(self, agent: str) -> None:
        self._say(agent, [served(each) for each in self.fleet.desired(agent).values()])

    @rule(agent=st.sampled_from(ALIVE))
    def refuse(self, agent: str) -> None:
        desired = self.fleet.desired(agent).values()
        self._say(agent, [refusing(each) for each in desired])

    @rule(
        agent=st.sampled_from(ALIVE),
        state=st.sampled_from(
            ["waiting", "pulling", "testing", "probation", "returned"]
        ),
        pulled=st.integers(0, 3),
    )
    def work(self, agent: str, state: Any, pulled: int) -> None:
        self._say(
            agent,
            [
                SlotReport(
                    model=each.model,
                    active=each.version if state == "probation" else "1",
                    state=state,
                    generation=each.generation,
                    pulled_bytes=pulled,
                )
                for each in self.fleet.desired(agent).values()
            ],
        )

    @rule(data=st.data())
    @precondition(lambda self: self.reports)
    def hear_again(self, data: st.DataObject) -> None:
        agent, slot = data.draw(st.sampled_from(self.reports))
        self.fleet.says(agent, slot)

    @rule(
        seconds=st.sampled_from([1, 40, 101, 1000]),
        heard=st.sets(st.sampled_from(ALIVE)),
    )
    def passes(self, seconds: float, heard: set[str]) -> None:
        self.fleet.passes(seconds, heard=heard)

    @rule(data=st.data(), event=st.sampled_from(PEOPLE))
    @precondition(lambda self: self.fleet.rollouts)
    def ask(self, data: st.DataObject, event: Event) -> None:
        self._do(data.draw(st.sampled_from(self.fleet.rollouts)), event)

    @invariant()
    def nobody_is_desired_what_no_rollout_ordered(self) -> None:
        allowed = {
            (each.model, generation)
            for each in self.fleet.rollouts
            for generation in (
                each.generation,
                each.deploy_generation,
                each.back_generation,
            )
        }
        for agent in self.fleet.devices:
            for model, desired in self.fleet.desired(agent).items():
                assert (model, desired.generation) in allowed
                one = max(
                    (
                        each
                        for each in self.fleet.rollouts
                        if each.generation <= desired.generation
                    ),
                    key=lambda each: each.generation,
                )
                assert one.names(agent)
                forward = desired.generation <= one.deploy_generation
                versions = {one.version} if forward else {"1", "2", "3"}
                assert desired.version in versions

    @invariant()
    def generations_only_rise(self) -> None:
        for agent in self.fleet.devices:
            for model, desired in self.fleet.desired(agent).items():
                before = self.highest.get((agent, model), 0)
                assert desired.generation >= before
                self.highest[agent, model] = desired.generation

    @invariant()
    def no_more_than_allowed_are_at_it(self) -> None:
        now = Now(self.fleet.now_ms)
        for one in self.fleet.rollouts:
            busy = 0
            for agent, told in self.fleet.course(one).told.items():
                at = standing(one, told, self.fleet.devices[agent], now)
                if at in {AgentState.STUCK, AgentState.SILENT, AgentState.LATE}:
                    # It gave its place back, for good.
                    self.lapsed.add((one.generation, agent))
                elif (one.generation, agent) not in self.lapsed:
                    busy += at in PULLS
            assert busy <= one.max_parallel

    @override
    def teardown(self) -> None:
        """However it went: when agents report again, everything comes to an end."""
        for _ in range(60):
            for one in self.fleet.rollouts:
                self._do(one, Event.RESUME)
                self._do(one, Event.APPROVE)
            self.fleet.look()
            self.fleet.obey(*ALIVE)
            self.fleet.passes(LEASE_S / 2 + 1, heard=ALIVE)
        self.fleet.look()
        for one in self.fleet.rollouts:
            course = self.fleet.course(one)
            mine = [
                each for each in ALIVE if one.names(each) and not self._newer(one, each)
            ]
            # With nobody but the dead to tell it waits for them, and is in nobody's way.
            assert course.state not in LIVE or not mine, course
            if course.state is RolloutState.ROLLED_BACK:
                assert all(
                    course.told[each].state is AgentState.BACK
                    for each in ALIVE
                    if each in course.told and not self._newer(one, each)
                )
        for agent in ALIVE:
            for model, desired in self.fleet.desired(agent).items():
                slot = self.fleet.devices[agent].slot(model)
                assert slot is not None
                assert desired.shadow or slot.active == desired.version

    def _newer(self, one: Rollout, agent: str) -> bool:
        return any(
            other.model == one.model
            and other.generation > one.generation
            and other.names(agent)
            for other in self.fleet.rollouts
        )

    def _say(self, agent: str, slots: list[SlotReport]) -> None:
        for each in slots:
            self.reports.append((agent, each))
            self.fleet.says(agent, each)

    def _do(self, one: Rollout, event: Event) -> None:
        try:
            self.fleet.do(one, event)
        except WrongMove as error:
            assert str(one.generation) in str(error)  # noqa: PT017 - most are refused


TestRollouts = Rollouts.TestCase
TestRollouts.settings = settings(max_examples=80, stateful_step_count=30, deadline=None)
