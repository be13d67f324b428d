"""`overspill demo`, as a person runs it: a private RabbitMQ, workers, agents, devices."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

pytestmark = pytest.mark.acceptance

IMAGES = 200
DEMO = [sys.executable, "-m", "overspill", "demo"]
# A whole system starts, streams and ends; on a busy machine TensorFlow alone takes 20 s.
DEMO_TIMEOUT_S = 400


@pytest.fixture(scope="module")
def place() -> Iterator[Path]:
    """Where the temporary folders of one demo go; short, for the agents' sockets."""
    folder = Path(tempfile.mkdtemp(prefix="od"))
    yield folder
    shutil.rmtree(folder)


@pytest.fixture(scope="module")
def ran(place: Path) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [
            *DEMO,
            *("--images", str(IMAGES)),
            *("--json", str(place / "demo.json")),
            *("--plot", str(place / "demo.png")),
        ],
        env=marked(place),
        capture_output=True,
        text=True,
        timeout=DEMO_TIMEOUT_S - 10,
        check=False,
    )


@pytest.fixture(scope="module")
def figures(ran: subprocess.CompletedProcess[str], place: Path) -> dict[str, Any]:
    assert ran.returncode == 0, ran.stdout + ran.stderr
    written: dict[str, Any] = json.loads((place / "demo.json").read_text())
    return written


def marked(place: Path) -> dict[str, str]:
    """An environment by which every process of a demo can be found again."""
    return {**os.environ, "TMPDIR": str(place)}


def processes_of(place: Path) -> list[str]:
    """The command lines of living processes whose environment names `place`."""
    found = []
    for process in Path("/proc").glob("[0-9]*"):
        try:
            if str(place).encode() in (process / "environ").read_bytes():
                command = (process / "cmdline").read_bytes()
                found.append(command.replace(b"\0", b" ").decode())
        except OSError:
            continue  # It ended meanwhile, or is not ours to look at.
    return found


@pytest.mark.timeout(DEMO_TIMEOUT_S)
def test_nothing_is_lost_and_nothing_answered_twice(figures: dict[str, Any]) -> None:
    assert (figures["lost"], figures["duplicated"]) == (0, 0)
    assert figures["cloud_pass"] == {
        "requests": IMAGES,
        "answered": IMAGES,
        "lost": 0,
        "duplicated": 0,
    }


@pytest.mark.timeout(DEMO_TIMEOUT_S)
def test_every_request_has_its_one_fate(figures: dict[str, Any]) -> None:
    fates = ("answered_edge", "answered_cloud", "answered_fallback")
    others = ("failed", "expired", "refused", "lost")

    assert sum(figures[name] for name in (*fates, *others)) == figures["requests"]
    assert figures["requests"] >= 2 * IMAGES
    assert figures["answered_edge"] > 0
    assert figures["answered_cloud"] > 0


@pytest.mark.timeout(DEMO_TIMEOUT_S)
def test_the_cascade_beats_the_edge_by_more_than_two_points(
    figures: dict[str, Any],
) -> None:
    assert figures["cascade_accuracy"] > figures["edge_only_accuracy"] + 0.02
    tiny = figures["phases"][0]
    assert tiny["edge_versions"] == ["1"]
    assert tiny["cascade_accuracy"] > tiny["edge_only_accuracy"] + 0.02
    assert figures["cloud_only_accuracy"] > figures["edge_only_accuracy"]
    assert 0.02 < figures["spill_rate"] < 0.5


@pytest.mark.timeout(DEMO_TIMEOUT_S)
def test_a_bad_version_is_stopped_in_its_first_wave_and_goes_back(
    figures: dict[str, Any],
) -> None:
    bad = figures["stopped"]
    assert (bad["version"], bad["state"]) == ("2-mislabelled", "rolled_back")
    assert (len(bad["told"]), bad["waves"], bad["updated"]) == (1, 1, [])
    assert 0 < bad["stopped_after_s"] <= bad["seconds"]
    assert (bad["lost"], bad["unanswered"], bad["duplicated"]) == (0, 0, 0)
    # The devices of the others were served as ever.
    assert bad["exposed_accuracy"] < bad["spared_accuracy"]


@pytest.mark.timeout(DEMO_TIMEOUT_S)
def test_the_push_reaches_every_agent_and_drops_nothing(
    figures: dict[str, Any],
) -> None:
    push = figures["push"]
    assert (push["from"], push["to"]) == ("1", "2")
    assert (push["agents_updated"], push["dropped_during_swap"]) == (3, 0)
    assert push["seconds"] > 0
    # Traffic went on while it was pushed, and the new version answers after it.
    first, swap, second = figures["phases"]
    assert swap["requests"] > 0
    assert (first["requests"], second["requests"]) == (IMAGES, IMAGES)
    assert second["edge_versions"] == ["2"]
    assert second["edge_only_accuracy"] > first["edge_only_accuracy"]


@pytest.mark.timeout(DEMO_TIMEOUT_S)
def test_each_version_has_its_target_and_what_was_realised(
    ran: subprocess.CompletedProcess[str], figures: dict[str, Any]
) -> None:
    first, swap, second = figures["phases"]
    assert (first["target"]["kind"], second["target"]["kind"]) == ("spill", "excess")
    assert swap["target"] is swap["realised"] is None
    for phase in (first, second):
        assert phase["target"]["text"] in ran.stdout
        realised = phase["realised"]
        by_devices = realised["devices"]
        assert by_devices["low"] <= by_devices["value"] <= by_devices["high"]
        assert [each["agent"] for each in realised["agents"]] == [
            "agent-1",
            "agent-2",
            "agent-3",
        ]
        for each in realised["agents"]:
            assert each["standing"] in {"kept", "at_risk"}
            assert each["low"] <= each["value"] <= each["high"]
    # Devices and agents count the same spills.
    spilled = sum(
        each["value"] * each["requests"] for each in first["realised"]["agents"]
    )
    assert spilled == pytest.approx(IMAGES * first["spill_rate"], abs=1.0)


@pytest.mark.timeout(DEMO_TIMEOUT_S)
def test_overload_costs_accuracy_and_neither_time_nor_a_request(
    ran: subprocess.CompletedProcess[str], figures: dict[str, Any]
) -> None:
    overload = figures["overload"]
    before, during = overload["before"], overload["during"]
    assert overload["crowd"]["rate_per_s"] > overload["crowd"]["capacity_per_s"]
    assert (during["lost"], during["duplicated"]) == (0, 0)
    assert during["p99_ms"] <= 1000 * overload["deadline_s"]
    # The edge answered what it would have spilled, and said why.
    assert during["held_back"] > 0
    assert during["spill_rate"] < before["spill_rate"]
    lowered = [each for each in overload["changes"] if "a spill waits" in each["why"]]
    assert lowered
    assert "threshold in force 0.75 → " in ran.stdout
    assert overload["queue_empty_after_s"] is not None


@pytest.mark.timeout(DEMO_TIMEOUT_S)
def test_a_person_is_told_what_it_means_and_shown_a_picture(
    ran: subprocess.CompletedProcess[str], figures: dict[str, Any], place: Path
) -> None:
    assert "0 were lost and 0 answered twice" in ran.stdout
    assert str(place / "demo.png") in ran.stdout
    assert (place / "demo.png").read_bytes().startswith(b"\x89PNG")
    assert figures["plot"] == str(place / "demo.png")
    for source in ("edge_ms", "cloud_ms"):
        assert 0 < figures[source]["p50"] <= figures[source]["p99"]


@pytest.mark.timeout(DEMO_TIMEOUT_S)
def test_a_demo_leaves_no_process_and_no_folder(
    figures: dict[str, Any], place: Path
) -> None:
    assert processes_of(place) == []
    assert figures["ok"]
    assert {each.name for each in place.iterdir()} == {"demo.json", "demo.png"}


@pytest.mark.timeout(180)  # real processes start and end
@pytest.mark.parametrize("presses", [1, 2])
def test_ctrl_c_while_it_starts_leaves_nothing(short_tmp: Path, presses: int) -> None:
    with subprocess.Popen(
        DEMO,
        cwd=short_tmp,
        env=marked(short_tmp),
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    ) as demo:
        # Itself, RabbitMQ's two, Mosquitto and two workers.
        until(lambda: len(processes_of(short_tmp)) >= 6)
        for _ in range(presses):
            demo.send_signal(signal.SIGINT)
            time.sleep(0.05)  # two presses, and not one that the kernel has merged
        out, err = demo.communicate(timeout=90)

    assert demo.returncode == 130
    assert out == ""
    assert err.splitlines()[-1] == "interrupted: every process was stopped"
    assert "Traceback" not in err
    assert processes_of(short_tmp) == []
    assert list(short_tmp.iterdir()) == []


@pytest.mark.parametrize(
    ("arguments", "complaint"),
    [
        (["--json", "/nowhere/demo.json"], "cannot be written"),
        (["--folder", "."], "is not empty"),
        (["--images", "5"], "Invalid value"),
    ],
)
def test_what_cannot_work_is_said_before_anything_starts(
    short_tmp: Path, arguments: list[str], complaint: str
) -> None:
    (short_tmp / "something").touch()

    ran = subprocess.run(
        [*DEMO, *arguments],
        cwd=short_tmp,
        capture_output=True,
        text=True,
        timeout=50,
        check=False,
    )

    assert ran.returncode in {1, 2}
    assert complaint in ran.stderr
    assert "Traceback" not in ran.stderr


def until(true: Any, timeout_s: float = 60.0) -> None:
    give_up = time.monotonic() + timeout_s
    while not true():
        assert time.monotonic() < give_up, "it did not come to that in time"
        time.sleep(0.05)
