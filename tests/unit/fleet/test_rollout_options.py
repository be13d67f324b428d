"""The options of `rollout plan` and `rollout start` become the declared rollout."""

from __future__ import annotations

from typing import Any

import pytest
import typer

from fleet.cli.rollout_terms import TERMS, declared
from fleet.core.declared import DeclaredPolicy, DeclaredRollout
from fleet.core.gates import GateKind
from fleet.core.ordering import terms_of

NOTHING: dict[str, Any] = {
    **dict.fromkeys(TERMS),
    "no_gates": False,
    "shared": False,
    "model": "fashion",
    "version": "2",
}


def said(**options: Any) -> DeclaredRollout:
    return declared({**NOTHING, **options})


def refusal(**options: Any) -> str:
    with pytest.raises(typer.BadParameter) as raised:
        said(**options)
    return f"{raised.value.param_hint}: {raised.value.message}"


def test_without_options_every_default_holds() -> None:
    assert said() == DeclaredRollout(model="fashion", version="2")


def test_each_option_is_a_field() -> None:
    one = said(
        agents="a, b,",
        where="site=lyon",
        waves="2,all",
        soak="1m",
        approve="each",
        shadow="5%",
        gates=["agreement=3%", "spill=off"],
        on_failure="pause",
        max_parallel=7,
        lease="1m",
        patience="1h",
        window="02:00-03:00",
        probation="1m",
        probation_requests=9,
        rate="1kB",
        budget="1MB",
        shared=True,
    )
    assert one.agents == frozenset({"a", "b"})
    terms = terms_of(one, 5)
    kinds = [each.kind for each in terms.gates]
    assert GateKind.SPILL not in kinds
    assert terms.gates[kinds.index(GateKind.AGREEMENT)].limit == 0.03
    assert (terms.max_parallel, terms.lease_s, terms.patience_s) == (7, 60, 3600)
    assert one.policy == DeclaredPolicy(
        probation=60,
        probation_requests=9,
        rate=1000,
        budget=1_000_000,
        shared=True,
    )


def test_no_gates_means_none() -> None:
    assert terms_of(said(no_gates=True, waves="2,all"), 5).gates == ()


@pytest.mark.parametrize(
    ("options", "says"),
    [
        ({"waves": "50%,10%"}, "--waves: waves '50%,10%' do not grow"),
        ({"window": "at night"}, "--window: 'at night' is no window"),
        ({"max_parallel": 0}, "--max-parallel: should be greater than or equal to 1"),
        ({"probation": "long"}, "--probation: 'long' is no length of time"),
        ({"where": "site"}, "--where: character 5"),
        ({"gates": ["agrement=5%"]}, "--gate: 'agrement=5%' is no gate"),
        ({"gates": ["errors=lots"]}, "--gate: 'lots' is no share"),
        ({"gates": ["errors=1%"], "no_gates": True}, "--no-gates: not together"),
        ({"approve": "maybe"}, "--approve: should be 'never', 'first' or 'each'"),
        ({"agents": " , "}, "--agents: no agent is named"),
        ({"model": "Fashion"}, "NAME: "),
        ({"on_failure": "cry"}, "--on-failure: should be"),
    ],
)
def test_what_cannot_be_read_is_refused_by_its_option(
    options: dict[str, Any], says: str
) -> None:
    assert refusal(**options).startswith(says)
