"""Alive and ready, without a network."""

from __future__ import annotations

from http import HTTPStatus

from lifecycle.clock import FakeClock
from lifecycle.health import STALLED_S, Pulse, readiness_page


async def test_a_loop_that_turns_is_alive_and_one_that_stood_still_is_not() -> None:
    clock = FakeClock()
    with Pulse(clock) as pulse:
        assert pulse.page().status is HTTPStatus.OK
        clock.advance(STALLED_S - 0.1)
        assert pulse.page().status is HTTPStatus.OK
        clock.advance(1)
        page = pulse.page()
    assert page.status is HTTPStatus.SERVICE_UNAVAILABLE
    assert page.body == b"the event loop stood still for 11 s\n"


def test_what_is_not_ready_says_why() -> None:
    assert readiness_page(lambda: None).status is HTTPStatus.OK
    page = readiness_page(lambda: "loading")
    assert page.status is HTTPStatus.SERVICE_UNAVAILABLE
    assert page.body == b"not ready: loading\n"
