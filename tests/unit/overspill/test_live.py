"""What a person sees who has no terminal, and the rate in it."""

from __future__ import annotations

import io

from rich.console import Console

from lifecycle.clock import FakeClock
from overspill.demo.live import DeviceLine, LiveView, Rate, Scene


def test_the_rate_is_that_of_the_last_moments() -> None:
    rate = Rate()

    assert rate.after(0.0, 0) == 0.0
    assert rate.after(1.0, 100) == 100.0
    later = [rate.after(float(second), 100) for second in range(2, 20)]

    assert later[-1] == 0.0


def test_without_a_terminal_a_line_comes_with_each_change_and_now_and_then() -> None:
    file, clock, scene = io.StringIO(), FakeClock(), Scene(headline="starting")
    view = LiveView(scene, Console(file=file, width=200), clock)

    with view:
        for _ in range(12):  # three seconds
            view.look()
            clock.advance(0.25)
        scene.headline = "streaming"
        view.look()

    assert [line[8:].strip() for line in file.getvalue().splitlines()] == [
        "starting",
        "streaming",
    ]


def test_a_line_says_who_is_waited_for() -> None:
    file = io.StringIO()
    scene = Scene(parts={"rabbitmq": "ready", "worker-1": "starting"})

    with LiveView(scene, Console(file=file, width=200), FakeClock()) as view:
        view.look()

    assert file.getvalue().strip().endswith("starting: waiting for worker-1")


def test_a_line_adds_up_what_the_devices_say() -> None:
    file = io.StringIO()
    scene = Scene(
        headline="streaming",
        queues={"depth": 5},
        lines=[
            DeviceLine(
                name,
                "agent-1",
                "mosquitto",
                {"asked": 10, "counts": {"edge": 7, "cloud": 2}, "version": version},
            )
            for name, version in (("cam1", "1"), ("cam2", "2"))
        ],
    )

    with LiveView(scene, Console(file=file, width=200), FakeClock()) as view:
        view.look()

    said = file.getvalue()
    assert "20 asked" in said
    assert "14 edge, 4 cloud, 0 fallback" in said
    assert "versions 1, 2; queue depth 5" in said


def test_a_closed_view_is_silent() -> None:
    file = io.StringIO()
    view = LiveView(Scene(), Console(file=file), FakeClock())

    with view:
        view.close()
        view.look()

    assert file.getvalue() == ""
