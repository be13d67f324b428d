from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from edge_agent.core.window import SendWindow


def grown(limit: int, acknowledgements: int, taken_s: float = 0.002) -> SendWindow:
    window = SendWindow(limit)
    for _ in range(acknowledgements):
        window.ticket()
        window.acknowledged(taken_s, full=True)
    return window


def test_a_good_link_opens_it_to_its_limit() -> None:
    assert grown(20, 0).size == 4
    assert grown(20, 16).size == 20
    assert grown(20, 1000).size == 20
    assert grown(1, 100).size == 1


def test_what_is_lost_together_halves_it_once() -> None:
    window = grown(32, 100)
    tickets = [window.ticket() for _ in range(32)]
    for ticket in tickets:
        window.lost(ticket)
    assert window.size == 16
    window.lost(window.ticket())  # A second loss, after the first.
    assert window.size == 8


def test_after_a_loss_it_grows_by_one_a_window() -> None:
    window = grown(32, 100)
    window.lost(window.ticket())
    for size in (16, 17, 18):
        assert window.size == size
        for _ in range(size + 1):
            window.acknowledged(0.002, full=True)


def test_late_acknowledgements_close_it_until_late_is_what_is_usual() -> None:
    window = grown(32, 100)
    for _ in range(64):
        window.acknowledged(0.5, full=True)
    assert window.size < 32
    for _ in range(1500):
        window.acknowledged(0.5, full=True)
    assert window.size == 1
    # Slow for so long is what the link is now.
    for _ in range(1000):
        window.acknowledged(0.5, full=True)
    assert window.size > 20


def test_a_link_that_is_slow_from_the_start_is_measured_by_itself() -> None:
    assert grown(20, 400, taken_s=2.0).size == 20


def test_a_window_that_is_not_used_does_not_grow() -> None:
    window = SendWindow(20)
    for _ in range(100):
        window.ticket()
        window.acknowledged(0.001, full=False)
    assert window.size == 4


steps = st.one_of(
    st.tuples(st.just("ack"), st.floats(0.0, 10.0), st.booleans()),
    st.tuples(st.just("lost"), st.integers(0, 50), st.just(value=True)),
)


@given(st.integers(1, 200), st.lists(steps, max_size=200))
def test_it_stays_within_its_bounds_whatever_the_link_does(
    limit: int, history: list[tuple[str, float, bool]]
) -> None:
    window = SendWindow(limit)
    for what, value, full in history:
        ticket = window.ticket()
        before = window.size
        if what == "ack":
            window.acknowledged(value, full=full)
            assert abs(window.size - before) <= 1
        else:
            window.lost(max(1, ticket - int(value)))
            assert window.size >= before // 2
        assert 1 <= window.size <= limit
