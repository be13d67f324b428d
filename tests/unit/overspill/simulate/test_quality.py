"""What a version does on a pretended device, in the agent's real books."""

from __future__ import annotations

from random import Random

from broker.messages import UpdatePolicy
from edge_agent.core.probation import Commit, GiveUp, judge_probation
from lifecycle.clock import FakeClock
from overspill.simulate.plan import MODEL, Quality
from overspill.simulate.quality import PretendedAccounts

GOOD = Quality(agreement=0.95, errors=0.0, latency_ms=4.0)
LONG_S = 400.0


def accounts(clock: FakeClock, **after: float) -> PretendedAccounts:
    changed = GOOD.model_copy(update=after)
    found = PretendedAccounts(
        lambda version: changed if version == "2" else GOOD,
        rng=Random(5),
        requests_per_s=10.0,
        audit_share=0.2,
        slowness=1.0,
        now_s=clock.monotonic,
    )
    for version in ("1", "2"):
        found.begin(MODEL, version, clock.monotonic())
        found.swap(MODEL, version)
        clock.advance(LONG_S)
    return found


def judged(found: PretendedAccounts) -> object:
    now, before = found.of(MODEL, "2"), found.of(MODEL, "1")
    assert now is not None
    return judge_probation(UpdatePolicy(), now, before, LONG_S)


def test_only_the_version_that_serves_is_asked() -> None:
    clock = FakeClock()
    found = accounts(clock)
    before, now = found.of(MODEL, "1"), found.of(MODEL, "2")
    assert before is not None
    assert now is not None
    assert before.requests == now.requests == LONG_S * 10
    clock.advance(1.0)
    assert found.ensure(MODEL, "2", 0.0).requests == LONG_S * 10 + 10
    assert found.ensure(MODEL, "1", 0.0).requests == LONG_S * 10


def test_an_agents_own_judgement_passes_a_version_that_is_as_good() -> None:
    assert judged(accounts(FakeClock())) == Commit()


def test_an_agents_own_judgement_gives_up_what_is_worse() -> None:
    for worse, word in (
        ({"agreement": 0.5}, "agrees"),
        ({"errors": 0.2}, "failed"),
        ({"latency_ms": 40.0}, "median"),
    ):
        found = judged(accounts(FakeClock(), **worse))
        assert isinstance(found, GiveUp)
        assert word in found.reason
