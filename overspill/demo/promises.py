"""What was promised with each edge version, and what the agents say of it. Pure.

An agent's account is read from its `status`: it knows no truth, only what the cloud
believes of requests that were spilled or audited.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Final, Literal

from bundle.manifest import Manifest

BROKEN: Final = "broken"

Kind = Literal["spill", "excess", "error"]


@dataclass(frozen=True, slots=True)
class Target:
    """What a bundle promises: at most `limit`, a share of requests, 0..1.

    Attributes:
        text: in words.
        kind: what is limited: requests spilled, wrong more often than the cloud, wrong.
    """

    text: str
    kind: Kind
    limit: float

    @classmethod
    def of(cls, manifest: Manifest) -> Target | None:
        """What a bundle promises; None when it promises nothing."""
        stated = manifest.calibration and manifest.calibration.target
        return Target(stated.text, stated.kind, stated.limit) if stated else None


@dataclass(frozen=True, slots=True)
class ByDevices:
    """What was realised of what a target limits, by what devices heard; shares.

    `low` to `high` is where the long run lies, with 95 %.
    """

    value: float
    low: float
    high: float


@dataclass(frozen=True, slots=True)
class ByAgent:
    """One agent's account of a promise.

    Attributes:
        agent: whose.
        standing: `kept`, `at_risk` or `broken`.
        value: the share realised, as far as it knows.
        low: the share is at least this, and
        high: at most this, with the target's confidence.
        requests: how many it counted.
        known: of how many it knew how much of what is limited they had.
        uncovered: of how many it can say nothing.
    """

    agent: str
    standing: str
    value: float
    low: float
    high: float
    requests: int
    known: int
    uncovered: int


@dataclass(frozen=True, slots=True)
class Kept:
    """What became of a target."""

    devices: ByDevices | None
    agents: list[ByAgent]

    @property
    def standing(self) -> str:
        """The worst that an agent says; empty when none does."""
        for each in (BROKEN, "at_risk", "kept"):
            if any(agent.standing == each for agent in self.agents):
                return each
        return ""

    @property
    def together(self) -> ByDevices | None:
        """The agents' accounts as one, each as heavy as its requests."""
        total = sum(each.requests for each in self.agents)
        if not total:
            return None
        value, low, high = (
            sum(getattr(each, name) * each.requests for each in self.agents) / total
            for name in ("value", "low", "high")
        )
        return ByDevices(value, low, high)


@dataclass(frozen=True, slots=True)
class Change:
    """An agent has put another threshold in force; None spills nothing."""

    agent: str
    old: float | None
    new: float | None
    why: str


@dataclass(slots=True)
class Accounts:
    """What agents said, by version: their last word on the promise.

    Attributes:
        by_version: by agent.
        changes: of thresholds, as they were seen.
    """

    by_version: dict[str, dict[str, ByAgent]] = field(default_factory=dict)
    changes: list[Change] = field(default_factory=list)
    _in_force: dict[tuple[str, str], float | None] = field(default_factory=dict)

    def take(self, agent: str, status: Mapping[str, Any], model: str) -> None:
        """Read what an agent says of a model."""
        cascade = status.get("models", {}).get(model, {}).get("cascade")
        if not cascade:
            return
        version, now = cascade["version"], cascade["threshold"]
        before = self._in_force.setdefault((agent, version), cascade["calibrated"])
        if now != before:
            self.changes.append(Change(agent, before, now, cascade["why"]))
            self._in_force[agent, version] = now
        promise = cascade["promise"]
        if promise is not None:
            self.by_version.setdefault(version, {})[agent] = ByAgent(
                agent=agent,
                standing=promise["standing"],
                value=promise["value"],
                low=promise["low"],
                high=promise["high"],
                requests=promise["requests"],
                known=promise["audited"],
                uncovered=promise["uncovered"],
            )

    def of(self, version: str) -> list[ByAgent]:
        """What all agents said of a version, in the order of their names."""
        said = self.by_version.get(version, {})
        return [said[agent] for agent in sorted(said)]


@dataclass(frozen=True, slots=True)
class Promised:
    """A version's target and the agents' accounts of it, as they stood at some time."""

    target: Target
    agents: Sequence[ByAgent]
