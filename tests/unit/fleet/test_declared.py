"""What can be declared, what every default becomes, and what a mistake is answered."""

from __future__ import annotations

from typing import Any

import jsonschema
import pytest
import yaml

from broker.messages import Window
from fleet.adapters.fleet_file import BadFile, FleetFile
from fleet.core.declared import DeclaredFleet, DeclaredRollout
from fleet.core.gates import DEFAULT_GATES, GateKind, Unsure
from fleet.core.ordering import terms_of
from fleet.core.rollouts import Rate, Wave
from fleet.core.terms import check_terms
from fleet.operator.declaring import read_declared

WHOLE = """
labels:
  cam-1: {site: lyon, group: canary}
  cam-2:
    group:
rollouts:
  - model: fashion
    version: 1.10
    where: site=lyon and memory_mb >= 512
    waves:
      - {to: 2, soak: 10m, approve: yes}
      - to: 50%
    shadow: 10%
    soak: 1m
    approve: first
    gates:
      agreement: 4%
      spill: off
      errors: {limit: 1%, enough: 10%, min_sample: 50, unsure: go_on}
    window: Mon-Fri 02:00-05:00
    max_parallel: 20
    lease: 5m
    patience: 1h
    on_failure: pause
    policy: {probation: 2m, probation_requests: 10, rate: 100kB, budget: 20MB, shared: yes}
"""


def read(text: str) -> DeclaredFleet:
    return read_declared(FleetFile.parse(text.encode(), "fleet.yaml"))


def rollout(**said: Any) -> DeclaredRollout:
    return DeclaredRollout.model_validate({"model": "m", "version": "1", **said})


def refusal(text: str) -> list[str]:
    with pytest.raises(BadFile) as raised:
        read(text)
    return str(raised.value).splitlines()


def test_everything_that_can_be_declared_is_carried_out_as_declared() -> None:
    fleet = read(WHOLE)
    assert fleet.labels["cam-2"] == {"group": None}
    (declared,) = fleet.rollouts
    assert declared.version == "1.10"
    terms = terms_of(declared, 1000)
    check_terms(terms)
    assert terms.query == "site=lyon and memory_mb >= 512"
    assert terms.waves == (
        Wave(share=0.1, soak_s=60, approve=True, shadow=True),
        Wave(count=2, soak_s=600, approve=True),
        Wave(share=0.5, soak_s=60),
        Wave(soak_s=60),
    )
    gates = {each.kind: each for each in terms.gates}
    assert GateKind.SPILL not in gates
    assert gates[GateKind.AGREEMENT].limit == 0.04
    errors = gates[GateKind.ERRORS]
    assert (errors.limit, errors.enough, errors.min_sample) == (0.01, 0.1, 50)
    assert errors.unsure is Unsure.GO_ON
    policy = terms.policy
    assert policy.window == Window(days=[0, 1, 2, 3, 4], start_minute=120, minutes=180)
    assert (policy.probation_s, policy.probation_requests) == (120, 10)
    assert (policy.bytes_per_s, policy.bytes_per_day) == (100_000, 20_000_000)
    assert policy.shared
    assert (terms.max_parallel, terms.lease_s, terms.patience_s) == (20, 300, 3600)
    assert terms.on_failure == "pause"


def test_a_large_fleet_is_staged_behind_gates_and_a_small_one_updated_at_once() -> None:
    large, small = terms_of(rollout(), 21), terms_of(rollout(), 20)
    assert [each.share for each in large.waves] == [0.01, 0.1, 0.5, None]
    assert {each.soak_s for each in large.waves} == {300}
    assert large.gates == DEFAULT_GATES
    assert small.waves == (Wave(),)
    assert small.gates == ()
    assert small.policy.probation_s == large.policy.probation_s == 30


def test_what_is_said_of_waves_holds_for_any_fleet() -> None:
    for population in (3, 3000):
        assert terms_of(rollout(waves="all"), population).waves == (Wave(),)
        growing = terms_of(rollout(waves="10x2", soak="1m", approve="each"), population)
        assert growing.rate == Rate(10, 2.0, 60, approve=True)
        assert growing.gates == DEFAULT_GATES
        assert terms_of(rollout(waves="1%", gates="off"), population).gates == ()


def test_a_gate_keeps_the_distance_between_its_limit_and_what_must_be_proven() -> None:
    (agreement,) = [
        each
        for each in terms_of(rollout(gates={"agreement": "10%"}), 3).gates
        if each.kind is GateKind.AGREEMENT
    ]
    assert agreement.limit == 0.1
    assert agreement.enough == pytest.approx(0.3)


def test_each_mistake_is_named_with_its_line_and_its_field() -> None:
    text = """labels:
  cam-1: {Site: lyon}
rollouts:
  - model: fashion
    version: 1
    wave: 1%
    soak: 10 parsecs
    waves:
      - to: 1%
        soak: never
      - {to: 50%, aprove: yes}
    gates: {agrement: 5%, errors: {limit: 500%}}
    window: Funday 02:00-05:00
    max_parallel: some
    where: site ==
  - version: 1
    gates: none
"""
    assert [line.split(" ", 2)[:2] for line in refusal(text)] == [
        ["fleet.yaml:1:", "labels:"],
        ["fleet.yaml:6:", "rollouts[0].wave:"],
        ["fleet.yaml:7:", "rollouts[0].soak:"],
        ["fleet.yaml:10:", "rollouts[0].waves[0].soak:"],
        ["fleet.yaml:11:", "rollouts[0].waves[1].aprove:"],
        ["fleet.yaml:12:", "rollouts[0].gates.agrement:"],
        ["fleet.yaml:12:", "rollouts[0].gates.errors.limit:"],
        ["fleet.yaml:13:", "rollouts[0].window:"],
        ["fleet.yaml:14:", "rollouts[0].max_parallel:"],
        ["fleet.yaml:15:", "rollouts[0].where:"],
        ["fleet.yaml:16:", "rollouts[1].model:"],
        ["fleet.yaml:17:", "rollouts[1].gates:"],
    ]


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("rollouts: [{model: m, version: 1, aprove: each}]", "did you mean approve?"),
        ("rollouts: [{model: m}]", "rollouts[0].version: it is missing"),
        ("rollouts: [{model: m, version: 1, waves: 50%, 10%}]", "fleet.yaml:1"),
        ('rollouts: [{model: m, version: 1, waves: "50%,10%"}]', "do not grow"),
        ("rollouts: [{model: m, version: 1, agents: []}]", "no agent is named"),
        ('rollouts: [{model: m, version: 1, shadow: "1,2"}]', "one wave is"),
        ("rollouts: [{model: m, version: 1}, {model: m, version: 2}]", "both of m"),
        ("labels: {cam-1: {and: x}}", "'and' is no label's key"),
        ("a: [1\nb: 2", "fleet.yaml:2"),
        ("model: a\nmodel: b", "fleet.yaml:2: model stands on line 1 as well"),
        ("[1, 2]", "fleet.yaml:1: names and what they stand for should be here"),
        ("a word", "fleet.yaml:1: names and what they stand for should be here"),
        ("labels: [cam-1]", "labels: names and what they stand for should be here"),
        ("x: &a {y: 1}\nz: {<<: *a}", "fleet.yaml:2: a key is a plain word"),
    ],
)
def test_a_mistake_is_answered_by_what_would_do(text: str, says: str) -> None:
    assert says in "\n".join(refusal(text))


def test_a_long_value_is_not_quoted_whole() -> None:
    (said,) = refusal(
        f"rollouts: [{{model: m, version: 1, max_parallel: {'x' * 9000}}}]"
    )
    assert "…)" in said
    assert len(said) < 250


def test_a_file_that_makes_much_of_little_is_refused() -> None:
    text = "a: &a [x, x, x, x, x, x, x, x, x, x]\n" + "\n".join(
        f"{after}: &{after} [{', '.join(['*' + before] * 10)}]"
        for before, after in zip("abcdef", "bcdefg", strict=True)
    )
    assert "more than 250000 parts" in refusal(text)[0]
    assert "MiB" in refusal("#" * (9 * 1024 * 1024))[0]
    assert "UTF-8" in _refused(b"\xff\xfe\x00")
    assert "nested too deeply" in _refused(b"[" * 5000)


def _refused(data: bytes) -> str:
    with pytest.raises(BadFile) as raised:
        FleetFile.parse(data, "fleet.yaml")
    return str(raised.value)


def test_an_empty_file_declares_nothing() -> None:
    assert read("") == DeclaredFleet()
    assert read("# nothing yet\n") == DeclaredFleet()


def test_the_schema_takes_what_is_taken_and_refuses_what_is_not() -> None:
    schema = DeclaredFleet.model_json_schema()
    jsonschema.Draft202012Validator.check_schema(schema)
    validator = jsonschema.Draft202012Validator(schema)
    # As an editor reads the file: numbers are numbers there.
    text = WHOLE.replace("1.10", '"1.10"').replace("off", '"off"')
    assert list(validator.iter_errors(yaml.safe_load(text))) == []
    wrong = {"rollouts": [{"model": "m", "version": "1", "wave": "1%"}]}
    assert list(validator.iter_errors(wrong))
