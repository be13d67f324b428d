from __future__ import annotations

from collections import Counter
from itertools import chain

import pytest

from broker.messages import Medium, Priority
from overspill.load.arrivals import Replay, Spacing, Steady
from overspill.load.mix import Bounds, Choice, Mix, Payload, Plan, Planned
from overspill.load.quantities import Weighted


def payload(name: str) -> Payload:
    return Payload(name, medium=Medium(media_type="image/png", data=name.encode()))


MIX = Mix(
    models=Weighted(("big", "small"), (0.25, 0.75)),
    payloads={"big": [payload("a")], "small": [payload("b"), payload("c")]},
    deadlines_s=Weighted((0.03, 0.15), (0.5, 0.5)),
    priorities=Weighted((Priority.HI, Priority.BULK), (0.1, 0.9)),
    senders=3,
)


def plan(bounds: Bounds, *, mix: Mix = MIX, seed: int = 1) -> Plan:
    return Plan(Steady.at(1000, Spacing.CONSTANT), mix, bounds, seed)


def all_of(planned: Plan) -> list[Planned]:
    return list(chain.from_iterable(planned.envelopes()))


def fields(each: Planned) -> tuple[object, ...]:
    return (
        each.number,
        each.offset_s,
        each.sender,
        each.model,
        each.priority,
        each.deadline_s,
        each.payload.name,
    )


def test_the_mix_has_the_shares_that_were_asked_for() -> None:
    planned = all_of(plan(Bounds(for_s=4, requests=10_000)))

    assert len(planned) == 4000
    for of, share in (
        (Counter(each.model for each in planned)["big"], 0.25),
        (Counter(each.deadline_s for each in planned)[0.03], 0.5),
        (Counter(each.priority for each in planned)[Priority.HI], 0.1),
        (Counter(each.sender for each in planned)[0], 1 / 3),
    ):
        assert of / len(planned) == pytest.approx(share, abs=0.04)


def test_each_model_gets_its_own_payloads() -> None:
    for each in all_of(plan(Bounds(for_s=1, requests=1000))):
        assert each.payload in MIX.payloads[each.model]


def test_the_same_seed_plans_the_same_load() -> None:
    bounds = Bounds(for_s=0.5, requests=1000)

    first, again, other = (all_of(plan(bounds, seed=seed)) for seed in (1, 1, 2))

    assert list(map(fields, first)) == list(map(fields, again))
    assert list(map(fields, first)) != list(map(fields, other))


def test_what_is_measured_is_bounded_by_time_and_by_number_after_the_warm_up() -> None:
    by_time = all_of(plan(Bounds(for_s=0.25, requests=10_000, warmup_s=0.125)))
    by_number = all_of(plan(Bounds(for_s=9, requests=50, warmup_s=0.125)))

    assert Counter(each.measured for each in by_time) == {False: 125, True: 250}
    assert Counter(each.measured for each in by_number) == {False: 125, True: 50}
    assert [each.number for each in by_time] == list(range(375))


def test_an_envelope_holds_requests_of_one_sender_model_and_class() -> None:
    envelopes = list(plan(Bounds(for_s=1, requests=100, envelope=8)).envelopes())

    assert [len(each) for each in envelopes] == [8] * 12 + [4]
    for together in envelopes:
        assert len({(p.sender, p.model, p.priority) for p in together}) == 1
        assert len({p.offset_s for p in together}) == 1
    # The rate counts requests and not envelopes.
    assert envelopes[1][0].offset_s == pytest.approx(8 / 1000)


def test_a_trace_overrides_the_mix_where_it_says_something() -> None:
    planned = all_of(
        Plan(
            Replay((0.0, 0.1)),
            MIX,
            Bounds(for_s=1, requests=10),
            choices=(
                Choice(model="small", payload="c", deadline_s=2.0),
                Choice(priority=Priority.HI),
            ),
        )
    )

    assert [each.offset_s for each in planned] == [0.0, 0.1]
    assert (planned[0].model, planned[0].payload.name) == ("small", "c")
    assert planned[0].deadline_s == 2.0
    assert planned[1].priority is Priority.HI
