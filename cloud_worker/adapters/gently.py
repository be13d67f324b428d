"""Load a model without taking the processor from those that serve, and give it back.

A thread that has lowered its priority may not raise it again without privileges. Three
things may be lowered and given back by anybody:

* the share of the whole process where the kernel groups processes by session
  (`/proc/self/autogroup`), as it does outside of containers;
* the processors it runs on, so that the others find one free at once;
* the priority of a thread that ends when the work is done, as long as it starts none
  that stay.
"""

from __future__ import annotations

import contextlib
import os
import sys
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Final, TypeVar

NICENESS: Final = 19
AUTOGROUP: Final = Path("/proc/self/autogroup")
# The kernel takes a change ten times a second.
TRIES: Final = 10
PAUSE_S: Final = 0.05

T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class Gentle:
    """A load within a `small_share`.

    Attributes:
        idle: whether its threads may be idle ones; see `in_nice_thread`.
        end: gives back what was lowered.
    """

    idle: bool
    end: Callable[[], None]


@contextlib.contextmanager
def small_share() -> Iterator[bool]:
    """Leave half of the processors meanwhile, and the other half to other sessions.

    Gives whether the kernel knows sessions, and has taken the lower share of this one.
    """
    before = _share()
    lowered = before is not None and before < NICENESS and _set_share(NICENESS)
    processors = os.sched_getaffinity(0) if sys.platform == "linux" else set()
    _run_on(set(sorted(processors)[len(processors) // 2 :]))
    try:
        yield lowered
    finally:
        _run_on(processors)
        if lowered:
            _set_share(before or 0)


def in_nice_thread(work: Callable[[], T], *, idle: bool = False) -> T:
    """Do `work` in a thread of low priority; threads that it starts have it, too.

    Args:
        work: what to do.
        idle: give way at once to whatever else wants the processor. On a processor
            that is never free, such a thread may get nothing.
    """
    results: list[T] = []
    failures: list[BaseException] = []

    def run() -> None:
        thread = threading.get_native_id()
        with contextlib.suppress(OSError):
            niceness = max(NICENESS, os.getpriority(os.PRIO_PROCESS, thread))
            os.setpriority(os.PRIO_PROCESS, thread, niceness)
            if idle:
                os.sched_setscheduler(thread, os.SCHED_IDLE, os.sched_param(0))
        try:
            results.append(work())
        except BaseException as error:  # noqa: BLE001 - raised again below
            failures.append(error)

    thread = threading.Thread(target=run, name="nice")
    thread.start()
    thread.join()
    if failures:
        raise failures[0]
    return results[0]


def _run_on(processors: set[int]) -> None:
    """Let every thread there is run on these; none: as they are."""
    if sys.platform != "linux" or not processors:
        return
    for thread in Path("/proc/self/task").iterdir():
        # One that has ended by now runs nowhere.
        with contextlib.suppress(OSError):
            os.sched_setaffinity(int(thread.name), processors)


def _share() -> int | None:
    """The niceness of this process's group; None where there are no groups."""
    try:
        return int(AUTOGROUP.read_text().split()[-1])
    except (OSError, ValueError, IndexError):
        return None


def _set_share(niceness: int) -> bool:
    for _ in range(TRIES):
        try:
            AUTOGROUP.write_text(str(niceness))
        except BlockingIOError:
            time.sleep(PAUSE_S)
        except OSError:
            return False
        else:
            return True
    return False
