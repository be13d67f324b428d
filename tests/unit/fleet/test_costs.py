"""How long updates take is learned from those that were."""

from __future__ import annotations

from broker.messages import UpdatePolicy, Window
from fleet.core.rollouts import AgentState, Course, Rollout, Told
from fleet.operator.costs import usual_update_s


def took(
    *seconds: float, probation_s: float = 0, window: Window | None = None
) -> tuple[Rollout, Course]:
    policy = UpdatePolicy(probation_s=probation_s, window=window)
    told = {
        f"a{n}": Told(
            f"a{n}", 0, 1000, AgentState.UPDATED, since_ms=1000 + round(each * 1000)
        )
        for n, each in enumerate(seconds)
    }
    return Rollout(1, "m", "1", 0, policy=policy), Course(told=told)


def test_most_agents_took_no_longer() -> None:
    assert usual_update_s([took(*range(1, 11))]) == 10
    assert usual_update_s([took(*[2] * 19, 500)]) == 2


def test_probation_is_not_part_of_it() -> None:
    assert usual_update_s([took(*[70] * 5, probation_s=60)]) == 10


def test_few_updates_or_those_that_waited_for_a_window_tell_nothing() -> None:
    assert usual_update_s([took(1, 2, 3)]) is None
    assert usual_update_s([took(*[9000] * 9, window=Window())]) is None
    assert usual_update_s([]) is None
