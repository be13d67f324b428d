from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from edge_agent.core.source_order import (
    FIRST_REST_S,
    MAX_LIES,
    MOST_REST_S,
    MOST_RETRY_AFTER_S,
    Ask,
    Exhausted,
    Rest,
    SourceOrder,
)


def fail(
    order: SourceOrder,
    index: int,
    now_s: float,
    *,
    retry_after_s: float | None = None,
    chance: float = 0.5,
) -> None:
    order.failed(
        index, now_s, reason="too slow", retry_after_s=retry_after_s, chance=chance
    )


def test_the_preferred_source_is_asked_as_long_as_it_answers() -> None:
    order = SourceOrder(["mqtt", "https"])
    for now_s in range(5):
        assert order.next(now_s) == Ask(0)
        order.worked(0)


def test_another_source_is_asked_while_one_rests_and_the_first_again_after() -> None:
    order = SourceOrder(["mqtt", "https"])
    fail(order, 0, 10.0)
    assert order.next(10.0) == Ask(1)
    assert order.next(10.0 + FIRST_REST_S) == Ask(0)


def test_a_source_that_goes_on_failing_rests_for_longer_each_time_up_to_a_bound() -> (
    None
):
    order = SourceOrder(["mqtt"])
    now_s, rests = 0.0, []
    for _ in range(12):
        fail(order, 0, now_s)
        rest = order.next(now_s)
        assert isinstance(rest, Rest)
        rests.append(rest.until_s - now_s)
        now_s = rest.until_s
    assert rests == sorted(rests)
    assert rests[0] == FIRST_REST_S
    assert rests[-1] == MOST_REST_S


def test_a_window_of_questions_that_fail_together_counts_as_one_failure() -> None:
    order = SourceOrder(["mqtt"])
    for _ in range(8):
        fail(order, 0, 0.0)
    assert order.next(0.0) == Rest(FIRST_REST_S)


def test_a_busy_source_is_left_alone_as_long_as_it_asks_within_reason() -> None:
    order = SourceOrder(["mqtt"])
    fail(order, 0, 0.0, retry_after_s=7.0)
    assert order.next(0.0) == Rest(7.0)
    patient = SourceOrder(["mqtt"])
    fail(patient, 0, 0.0, retry_after_s=86_400.0)
    assert patient.next(0.0) == Rest(MOST_RETRY_AFTER_S)


def test_a_source_that_lies_again_and_again_is_asked_no_more() -> None:
    order = SourceOrder(["mqtt", "https"])
    now_s = 0.0
    for _ in range(MAX_LIES):
        order.lied(0, now_s, reason="gave something else", chance=0.5)
        now_s += 3600
    assert order.next(now_s) == Ask(1)
    order.lacks(1, reason="no such file")
    left = order.next(now_s)
    assert isinstance(left, Exhausted)
    assert "mqtt: gave something else" in left.reason
    assert "https: no such file" in left.reason


@given(
    st.lists(
        st.tuples(
            st.sampled_from(["worked", "failed", "lied", "lacks"]),
            st.integers(0, 2),
            st.floats(0, 100),
            st.floats(0, 1),
        ),
        max_size=60,
    )
)
def test_whatever_happens_there_is_an_answer_and_no_rest_is_endless(
    events: list[tuple[str, int, float, float]],
) -> None:
    order = SourceOrder(["a", "b", "c"])
    now_s, out = 0.0, set()
    for what, index, passed_s, chance in events:
        now_s += passed_s
        match what:
            case "worked":
                order.worked(index)
            case "failed":
                fail(order, index, now_s, chance=chance)
            case "lied":
                order.lied(index, now_s, reason="lied", chance=chance)
            case _:
                order.lacks(index, reason="lacks it")
                out.add(index)
        match order.next(now_s):
            case Ask(asked):
                assert asked not in out
            case Rest(until_s):
                assert now_s < until_s <= now_s + 1.5 * MOST_RETRY_AFTER_S
            case Exhausted():
                assert what in ("lied", "lacks") or out
