"""The terms on which a version is rolled out, and the rollout that they make."""

from __future__ import annotations

from collections.abc import Collection, Iterable
from dataclasses import dataclass, field
from typing import Protocol

from broker.messages import UpdatePolicy
from fleet.core.gates import Gate
from fleet.core.labels import BadQuery, read_query
from fleet.core.orders import BadOrder
from fleet.core.rollouts import (
    DEFAULT_LEASE_S,
    DEFAULT_MAX_PARALLEL,
    DEFAULT_PATIENCE_S,
    OnFailure,
    Rate,
    Rollout,
    Wave,
    WayBack,
)


@dataclass(frozen=True, slots=True)
class Terms:
    """How a version is to be rolled out; the fields of `Rollout` that people choose.

    Without waves all are told at once (as `max_parallel` allows) and no gate is asked.
    """

    query: str | None = None
    waves: tuple[Wave, ...] = (Wave(),)
    rate: Rate | None = None
    gates: tuple[Gate, ...] = ()
    policy: UpdatePolicy = field(default_factory=UpdatePolicy)
    max_parallel: int = DEFAULT_MAX_PARALLEL
    lease_s: float = DEFAULT_LEASE_S
    patience_s: float = DEFAULT_PATIENCE_S
    on_failure: OnFailure = OnFailure.ROLL_BACK
    seed: int = 0


class Signed(Protocol):
    """What is needed here of a signed version."""

    @property
    def version(self) -> str:
        """Its name."""
        ...

    @property
    def epoch(self) -> int:
        """The one it was published in."""
        ...

    @property
    def way_back(self) -> WayBack | None:
        """What was signed with it: the version to go back to, in a later epoch."""
        ...


@dataclass(frozen=True, slots=True)
class Ordered:
    """Which version of which model is to serve where, and who said so when."""

    model: str
    version: str
    targets: frozenset[str] | None
    generation: int
    at_ms: int
    by: str


def rollout_on(terms: Terms, ordered: Ordered, signed: Iterable[Signed]) -> Rollout:
    """The rollout that was ordered.

    Args:
        terms: how.
        ordered: what.
        signed: the signed versions of its model.

    Raises:
        BadOrder: the terms cannot be kept; says why.
    """
    check_terms(terms)
    epoch, way_back = epochs_for(ordered.version, signed)
    return Rollout(
        generation=ordered.generation,
        model=ordered.model,
        version=ordered.version,
        started_at_ms=ordered.at_ms,
        targets=ordered.targets,
        epoch=epoch,
        way_back=way_back,
        by=ordered.by,
        query=terms.query,
        waves=terms.waves,
        rate=terms.rate,
        gates=terms.gates,
        policy=terms.policy,
        max_parallel=terms.max_parallel,
        lease_s=terms.lease_s,
        patience_s=terms.patience_s,
        on_failure=terms.on_failure,
        seed=terms.seed,
    )


def check_terms(terms: Terms) -> None:
    """Return if a rollout can be held to these terms.

    Raises:
        BadOrder: it cannot; says why.
    """
    try:
        if terms.query is not None:
            read_query(terms.query)
    except BadQuery as error:
        raise BadOrder(str(error)) from error
    if terms.max_parallel < 1:
        raise BadOrder("at least one agent must be allowed to update at a time")
    if terms.lease_s <= 0 or terms.patience_s < 0:
        raise BadOrder("a lease is longer than 0 s, patience not shorter than 0 s")
    if not terms.waves and terms.rate is None:
        raise BadOrder("a rollout has at least one wave")
    if any(each.shadow for each in terms.waves[1:]):
        raise BadOrder("only the first wave can be a shadow")
    _check_gates(terms.gates)


def _check_gates(gates: Collection[Gate]) -> None:
    if len(gates) != len({each.kind for each in gates}):
        raise BadOrder("a gate is named twice")
    if any(not 0 < each.false_alarm < 1 for each in gates):
        raise BadOrder("a gate's false alarm is a chance above 0% and under 100%")


def epochs_for(version: str, signed: Iterable[Signed]) -> tuple[int, WayBack | None]:
    """The epoch to desire a version in, and the way back that was signed with it.

    A publish takes an epoch, and signs a version to go back to for the epoch after it.
    So a version has a way back while that is signed; what the newest one leads to is
    desired in its later epoch; any other has only its own, which agents that went on
    refuse.

    Args:
        version: to be rolled out.
        signed: the signed versions of its model.
    """
    by_epoch = sorted(signed, key=lambda each: each.epoch)
    if not by_epoch:
        return 0, None
    newest = by_epoch[-1]
    if newest.version == version:
        return newest.epoch, newest.way_back
    if newest.way_back is not None and newest.way_back.version == version:
        return newest.way_back.epoch, None
    # Also when a newer one was published since: who takes this one has not gone on.
    return next(
        ((each.epoch, each.way_back) for each in by_epoch if each.version == version),
        (0, None),
    )
