"""What became of each simulated agent, from what they say. Pure."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from enum import StrEnum
from typing import Any, Final

from overspill.simulate.plan import Fault, Persona


class Became(StrEnum):
    """What became of an agent."""

    CONVERGED = "converged"
    RETURNED = "returned"
    BACK = "sent back"
    REFUSED = "refused"
    EXCLUDED = "excluded"
    WAITING = "waiting"
    UNDER_WAY = "under way"
    UNREACHED = "unreached"
    BROKEN = "broken"


# Why an agent that has said nothing of the rollout was not reached: the fleet's word.
NOT_HEARD: Final[Mapping[str, str]] = {
    "queued": "the fleet has not told it yet",
    "pending": "the fleet has told it, and it has not answered",
    "silent": "the fleet has not heard of it for too long",
    "stuck": "the fleet has told it, and it has not answered within its lease",
}
DONE: Final = "done"
MOST_REASONS: Final = 3
# In these nothing more is to come of this rollout.
SETTLED: Final = frozenset(
    {
        Became.CONVERGED,
        Became.RETURNED,
        Became.BACK,
        Became.REFUSED,
        Became.EXCLUDED,
    }
)
_BY_STATE: Final[Mapping[str, Became]] = {
    "idle": Became.UNDER_WAY,
    "waiting": Became.WAITING,
    "pulling": Became.UNDER_WAY,
    "testing": Became.UNDER_WAY,
    "shadow": Became.UNDER_WAY,
    "probation": Became.UNDER_WAY,
    "swapped": Became.UNDER_WAY,
    "returned": Became.RETURNED,
    "refused": Became.REFUSED,
}


@dataclass(frozen=True, slots=True)
class Fate:
    """What became of one agent, when (seconds after the rollout began), and why."""

    became: Became
    at_s: float | None = None
    reason: str | None = None


def fate_of_state(slot: Mapping[str, Any], at_s: float) -> Fate:
    """What a slot comes to that works on what is desired."""
    return Fate(_BY_STATE[slot["state"]], at_s, slot["reason"])


@dataclass(frozen=True, slots=True)
class Row:
    """What became of all agents with one fault.

    Attributes:
        reasons: why they ended otherwise than converged, and how many for each.
        waits: why they waited on their way, and how many for each.
        last_s: when the last of them settled.
    """

    fault: Fault | None
    agents: int
    became: Mapping[Became, int]
    reasons: Sequence[tuple[str, int]]
    waits: Sequence[tuple[str, int]]
    last_s: float | None


@dataclass(slots=True)
class Tally:
    """Takes in what the processes tell.

    Attributes:
        personas: every agent.
        version: that is rolled out.
        generation: of the rollout, whose way back has the next; None until it began.
        ended: how the rollout ended, as the fleet says; None while it goes on.
        given_up: the rollout has ended a while ago, whoever has not settled.
        excluded: whom the fleet did not choose, and why.
        by_fleet: how the fleet has each agent, in a word.
        down: why an agent of each process is not connected.
    """

    personas: Sequence[Persona]
    version: str
    generation: int | None = None
    ended: str | None = None
    given_up: bool = False
    excluded: Mapping[str, str] = field(default_factory=dict)
    by_fleet: Mapping[str, str] = field(default_factory=dict)
    fates: dict[str, Fate] = field(default_factory=dict)
    waited: dict[str, list[str]] = field(default_factory=dict)
    down: dict[int, str] = field(default_factory=dict)
    connected: dict[int, int] = field(default_factory=dict)
    heard_bytes: dict[int, int] = field(default_factory=dict)
    resident_mb: dict[int, float] = field(default_factory=dict)

    def take(self, process: int, said: Mapping[str, Any], at_s: float) -> None:
        """One line of one process, heard `at_s` seconds after the rollout began."""
        self.connected[process] = said["connected"]
        self.down.pop(process, None)
        if said.get("down"):
            self.down[process] = said["down"]
        self.heard_bytes[process] = said["heard_bytes"]
        self.resident_mb[process] = said["resident_mb"]
        for agent, slot in said["slots"].items():
            fate = self.fates[agent] = self._fate(slot, at_s)
            if fate.became is Became.WAITING and fate.reason:
                self._waits(agent, fate.reason)
        for agent, error in said["failed"].items():
            self.fates[agent] = Fate(Became.BROKEN, at_s, error)

    def _waits(self, agent: str, reason: str) -> None:
        reasons = self.waited.setdefault(agent, [])
        if reason not in reasons and len(reasons) < MOST_REASONS:
            reasons.append(reason)

    def _fate(self, slot: Mapping[str, Any], at_s: float) -> Fate:
        if self.generation is None or slot["generation"] < self.generation:
            return Fate(Became.UNREACHED)
        state = slot["state"]
        if state in {"idle", "swapped"}:
            if slot["active"] == self.version:
                return Fate(Became.CONVERGED, at_s)
            if slot["generation"] > self.generation:
                return Fate(Became.BACK, at_s)
        return fate_of_state(slot, at_s)

    def of(self, persona: Persona) -> Fate:
        """What became of one agent so far."""
        fate = self.fates.get(persona.agent, Fate(Became.UNREACHED))
        why = self.excluded.get(persona.agent)
        if fate.became is not Became.UNREACHED:
            return fate
        if why is not None:
            return Fate(Became.EXCLUDED, None, why)
        state = self.by_fleet.get(persona.agent)
        return replace(
            fate, reason=state and NOT_HEARD.get(state, f"the fleet has it as {state}")
        )

    @property
    def settled(self) -> bool:
        """Whether nothing more is to come: not of the rollout, nor of any agent."""
        if self.ended is None:
            return False
        left = {self.of(each).became for each in self.personas} - SETTLED
        if self.given_up:
            # Whom the fleet waits for no longer, nobody else need wait for.
            left -= {Became.WAITING, Became.UNDER_WAY}
        if self.ended != DONE:
            # Whom a rollout that was stopped never reached, nothing will happen to.
            left -= {Became.UNREACHED}
        return not left

    @property
    def all_connected(self) -> bool:
        """Whether every agent is connected."""
        return sum(self.connected.values()) >= len(self.personas)

    def counts(self) -> Mapping[Became, int]:
        """How many agents became what."""
        return Counter(self.of(each).became for each in self.personas)

    def rows(self) -> list[Row]:
        """A row of each fault that some agent has; the healthy first."""
        found = []
        for fault in (None, *Fault):
            struck = [each for each in self.personas if each.fault is fault]
            if struck:
                found.append(self._row(fault, struck))
        return found

    def _row(self, fault: Fault | None, struck: Sequence[Persona]) -> Row:
        fates = [self.of(each) for each in struck]
        reasons = Counter(
            _general(fate.reason, each.agent)
            for each, fate in zip(struck, fates, strict=True)
            if fate.reason
        )
        waits = Counter(
            _general(reason, each.agent)
            for each in struck
            for reason in self.waited.get(each.agent, ())
        )
        settled = [fate.at_s for fate in fates if fate.became in SETTLED]
        return Row(
            fault=fault,
            agents=len(fates),
            became=Counter(fate.became for fate in fates),
            reasons=reasons.most_common(MOST_REASONS),
            waits=waits.most_common(MOST_REASONS),
            last_s=max(filter(None, settled), default=None),
        )


def _general(reason: str, agent: str) -> str:
    """A reason without what only one agent's would have: its paths."""
    words = reason.split()
    return " ".join("…" if agent in word else word for word in words)


def compare(tally: Tally, known: Mapping[str, str | None], before: str) -> list[str]:
    """Agents of whom the fleet knows something else than they say themselves.

    Args:
        tally: what they say.
        known: the version that each serves, as the fleet's inventory has it.
        before: the version that agents had.
    """
    wrong = []
    for persona in tally.personas:
        became = tally.of(persona).became
        serves = tally.version if became is Became.CONVERGED else before
        if became in SETTLED and known.get(persona.agent) != serves:
            wrong.append(persona.agent)
    return wrong
