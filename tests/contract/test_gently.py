"""A lowered priority that anybody can give back, on the real kernel."""

from __future__ import annotations

import os
import subprocess
import sys
import threading
from pathlib import Path

import pytest

from cloud_worker.adapters.frames import ModelSource
from cloud_worker.adapters.gently import (
    AUTOGROUP,
    NICENESS,
    in_nice_thread,
    small_share,
)
from cloud_worker.adapters.runners import Runners

OURS = Path(__file__).parent / "worker_models"


def niceness() -> int:
    return os.getpriority(os.PRIO_PROCESS, threading.get_native_id())


def test_work_in_a_nice_thread_is_nice_and_its_caller_is_not() -> None:
    before = niceness()
    assert in_nice_thread(niceness) == max(NICENESS, before)
    assert niceness() == before


def test_idle_work_is_idle_and_its_caller_is_not() -> None:
    before = os.sched_getscheduler(0)
    assert in_nice_thread(lambda: os.sched_getscheduler(0), idle=True) == os.SCHED_IDLE
    assert os.sched_getscheduler(0) == before


@pytest.mark.skipif(len(os.sched_getaffinity(0)) < 2, reason="one processor")
def test_half_of_the_processors_are_left_to_others_and_given_back() -> None:
    before = os.sched_getaffinity(0)
    others: list[set[int]] = []
    go, ready = threading.Event(), threading.Event()

    def other() -> None:
        ready.set()
        go.wait(10)
        others.append(os.sched_getaffinity(0))

    thread = threading.Thread(target=other)
    thread.start()
    ready.wait(10)
    with small_share():
        during = os.sched_getaffinity(0)
        go.set()
        thread.join()
    assert others == [during]
    assert during < before
    assert len(during) == len(before) - len(before) // 2
    assert os.sched_getaffinity(0) == before


def test_what_the_work_raises_reaches_the_caller() -> None:
    def fail() -> None:
        raise ValueError("as it must")

    with pytest.raises(ValueError, match="as it must"):
        in_nice_thread(fail)


# A process that nobody started a session for, as in some containers, has no group.
LOWERED_AND_GIVEN_BACK = """
import sys
from cloud_worker.adapters.gently import AUTOGROUP, small_share
print(AUTOGROUP.read_text().strip())
with small_share():
    print(AUTOGROUP.read_text().strip())
print(AUTOGROUP.read_text().strip())
"""


@pytest.mark.skipif(not AUTOGROUP.exists(), reason="a kernel without autogroups")
def test_the_share_of_a_process_is_lowered_and_given_back() -> None:
    lines = subprocess.run(
        [sys.executable, "-c", LOWERED_AND_GIVEN_BACK],
        check=True,
        text=True,
        stdout=subprocess.PIPE,
        start_new_session=True,
        timeout=60,
    ).stdout.splitlines()
    before, during, after = (line.partition(" nice ")[2] for line in lines)
    if not before:
        pytest.skip("the kernel's autogroups are switched off")
    assert (before, during, after) == ("0", str(NICENESS), "0")


def processors(pid: int | None) -> set[int]:
    """Where the threads of a process may run."""
    tasks = Path(f"/proc/{pid}/task").iterdir()
    return {each for task in tasks for each in os.sched_getaffinity(int(task.name))}


def priorities(pid: int | None) -> tuple[list[int], str]:
    """The niceness of each thread of a process, and of its share if it has one."""
    process = Path(f"/proc/{pid}")
    nices = [
        int((each / "stat").read_text().rpartition(")")[2].split()[16])
        for each in (process / "task").iterdir()
    ]
    share = process / "autogroup"
    # Empty for a process that has no group of its own.
    niceness = share.read_text().rpartition(" nice ")[2] if share.exists() else ""
    return nices, niceness.strip()


@pytest.mark.timeout(180)
async def test_a_model_that_was_loaded_gently_serves_at_the_usual_priority() -> None:
    source = ModelSource("line", "1", "saved_model", OURS / "line_saved" / "1", 2)
    async with Runners() as runners:
        spec = await runners.load(source, gently=True)
        assert [size for size, _ in spec.costs_ms] == [1, 2]
        nices, share = priorities(runners.pid(source.key))
        runs_on = processors(runners.pid(source.key))
    # Those that compute; the few others were left by the import and the loading.
    assert nices.count(niceness()) > len(nices) / 2
    assert share in {"", "0"}
    assert runs_on == os.sched_getaffinity(0)
