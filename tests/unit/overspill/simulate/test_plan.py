"""What a simulation is: read from TOML, and the same for the same seed."""

from __future__ import annotations

from collections import Counter

import pytest
from hypothesis import given
from hypothesis import strategies as st

from overspill.simulate.plan import (
    BadPlan,
    Fault,
    Plan,
    Trouble,
    cast,
    random_of,
    read_plan,
    usual_plan,
)

FAULTY = b"""
agents = 40
seed = 9
[rollout]
waves = "10%"
gates = false
[after]
agreement = 0.5
[faults.slow]
share = 0.1
bytes_per_s = 4096
[faults.crash_loop]
agents = 3
times = 0
"""


def test_a_plan_says_how_many_agents_have_which_fault() -> None:
    plan = read_plan(FAULTY)
    assert Counter(each.fault for each in cast(plan)) == {
        None: 33,
        Fault.SLOW: 4,
        Fault.CRASH_LOOP: 3,
    }
    assert plan.faults[Fault.SLOW].bytes_per_s == 4096
    assert plan.after.agreement == 0.5


def test_what_is_typed_stands_instead_of_what_is_written() -> None:
    plan = read_plan(FAULTY, agents=50, seed=None)
    assert (plan.agents, plan.seed) == (50, 9)


def test_the_command_says_the_rollout_in_the_words_of_the_operators_command() -> None:
    assert read_plan(FAULTY).rollout.words() == [
        *("--waves", "10%", "--probation", "3s", "--max-parallel", "100"),
        *("--lease", "60s", "--soak", "5s", "--no-gates"),
    ]
    assert "--soak" not in Plan().rollout.words()


@given(agents=st.integers(1, 300), seed=st.integers(0, 2**32))
def test_the_same_seed_gives_the_same_agents_the_same_faults(
    agents: int, seed: int
) -> None:
    assert cast(usual_plan(agents=agents, seed=seed)) == cast(
        usual_plan(agents=agents, seed=seed)
    )


def test_another_seed_gives_the_faults_to_others() -> None:
    one, other = (
        [each.fault for each in cast(usual_plan(agents=100, seed=seed))]
        for seed in (1, 2)
    )
    assert one != other
    assert Counter(one) == Counter(other)


def test_a_plan_that_went_to_another_process_casts_the_same_agents() -> None:
    plan = usual_plan(agents=60, seed=4)
    there = Plan.model_validate_json(plan.model_dump_json(exclude_unset=True))
    assert cast(there) == cast(plan)
    assert random_of(there, 3, "x").random() == random_of(plan, 3, "x").random()


@pytest.mark.parametrize(
    ("text", "says"),
    [
        (b"agents = 0", "agents: "),
        (b"agents = 'many'", "agents: "),
        (b"robots = 3", "robots: "),
        (b"agents = ", "not TOML"),
        (b"\xff", "not TOML"),
        (b"[faults.flood]\nshare = 0.1", "faults.flood"),
        (b"[faults.slow]\nshare = 0.1\ntimes = 2", "faults.slow has no times"),
        (b"[faults.slow]\nshare = 0.6\n[faults.offline]\nshare = 0.6", "120 agents"),
        (b"[after]\nagreement = 2", "after.agreement"),
        (b"#" * 70_000, "over 65536"),
    ],
)
def test_a_plan_that_cannot_be_meant_is_refused_by_what_is_wrong(
    text: bytes, says: str
) -> None:
    with pytest.raises(BadPlan, match=says):
        read_plan(text)


@given(share=st.floats(0, 1), agents=st.integers(1, 10_000))
def test_a_share_of_agents_is_never_more_than_there_are(
    share: float, agents: int
) -> None:
    assert 0 <= Trouble(share=share).count(agents) <= agents
