"""How a declared rollout is to be carried out, as terms with every default filled in."""

from __future__ import annotations

from dataclasses import replace
from typing import Final

from broker.messages import UpdatePolicy
from fleet.core.cohorts import read_waves
from fleet.core.declared import (
    ALL,
    AUTO,
    FEW_AGENTS,
    STAGED,
    DeclaredGate,
    DeclaredRollout,
    DeclaredWave,
    in_one_line,
    shadow_wave,
)
from fleet.core.gates import DEFAULT_GATES, Gate, Unsure
from fleet.core.rollouts import Wave
from fleet.core.terms import Terms

STAGED_SOAK_S: Final = 300.0


def terms_of(declared: DeclaredRollout, population: int) -> Terms:
    """How it is to be rolled out to so many agents.

    Args:
        declared: what is to be served.
        population: how many agents it would reach now; `auto` waves depend on it.
    """
    waves = declared.waves
    if waves == AUTO:
        waves = ALL if population <= FEW_AGENTS else STAGED
    staged = waves != ALL or declared.shadow is not None
    soak_s = declared.soak
    if soak_s is None:
        soak_s = STAGED_SOAK_S if staged else 0.0
    read, rate = read_waves(in_one_line(waves), soak_s=soak_s)
    each = declared.approve == "each"
    if rate is not None:
        rate = replace(rate, approve=each)
    read = tuple(
        replace(wave, approve=each or (index == 0 and declared.approve == "first"))
        for index, wave in enumerate(read)
    )
    read = _own_words(waves, read)
    if declared.shadow is not None:
        shadow = shadow_wave(declared.shadow, soak_s)
        read = (replace(shadow, approve=declared.approve != "never"), *read)
    return Terms(
        query=declared.where,
        waves=read,
        rate=rate,
        gates=_gates(declared, staged=staged),
        policy=_policy(declared),
        max_parallel=declared.max_parallel,
        lease_s=declared.lease,
        patience_s=declared.patience,
        on_failure=declared.on_failure,
    )


def _gates(declared: DeclaredRollout, *, staged: bool) -> tuple[Gate, ...]:
    if declared.gates == "off":
        return ()
    if declared.gates == "default":
        return DEFAULT_GATES if staged else ()
    gates = []
    for default in DEFAULT_GATES:
        said = declared.gates.get(default.kind)
        if said != "off":
            gates.append(_changed(default, said))
    return tuple(gates)


def _policy(declared: DeclaredRollout) -> UpdatePolicy:
    said = declared.policy
    return UpdatePolicy(
        probation_s=said.probation,
        probation_requests=said.probation_requests,
        max_error_share=said.max_error_share,
        max_agreement_drop=said.max_agreement_drop,
        max_slowdown=said.max_slowdown,
        window=declared.window,
        bytes_per_s=said.rate,
        bytes_per_day=said.budget,
        shared=said.shared,
    )


def _changed(default: Gate, said: DeclaredGate | None) -> Gate:
    if said is None:
        return default
    gate = default
    if said.limit is not None:
        # What must be proven absent moves along with what fails it.
        factor = None if default.enough is None else default.enough / default.limit
        enough = None if factor is None else min(1.0, said.limit * factor)
        gate = replace(gate, limit=said.limit, enough=enough)
    changes = said.model_dump(exclude_none=True, exclude={"limit", "unsure"})
    if said.unsure is not None:
        changes["unsure"] = Unsure(said.unsure)
    return replace(gate, **changes)


def _own_words(
    declared: str | tuple[DeclaredWave, ...], waves: tuple[Wave, ...]
) -> tuple[Wave, ...]:
    """What single waves say of themselves, above what is said of all."""
    if isinstance(declared, str):
        return waves
    said = [*declared, *[None] * (len(waves) - len(declared))]
    return tuple(
        wave
        if own is None
        else replace(
            wave,
            soak_s=wave.soak_s if own.soak is None else own.soak,
            approve=wave.approve if own.approve is None else own.approve,
        )
        for wave, own in zip(waves, said, strict=True)
    )
