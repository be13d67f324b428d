"""How a daemon runs its interpreter: threads that share it, garbage looked for seldom."""

from __future__ import annotations

import gc
import sys
from typing import Final

# A thread that wants the interpreter waits for so long before it asks the one that has
# it. Python's 5 ms is as long as a commit: the outbox's thread would write only while
# the event loop has nothing to do, and accepts come a fifth slower.
SWITCH_INTERVAL_S: Final = 0.0001


def share_interpreter() -> None:
    """Let a thread that waits, such as the outbox's, have its turn soon."""
    sys.setswitchinterval(SWITCH_INTERVAL_S)


# Python looks at the youngest objects for garbage after 700 more of them, which is what
# twenty requests are made of, and all of those are freed without it.
COLLECT_AFTER: Final = 20_000


def do_not_collect() -> None:
    """Look for no garbage until `collect_seldom`.

    For a process that is loading: nearly all that it makes stays, and a search stops
    it for longer each time, and may keep a processor from who is answering meanwhile.
    """
    gc.disable()


def collect_seldom() -> None:
    """Look for garbage less often, and never again among what there is now.

    For a daemon that is ready: its modules, models and settings stay until it ends, and
    to look through all of them takes as long as a batch does.
    """
    gc.collect()
    gc.freeze()
    gc.set_threshold(COLLECT_AFTER)
    gc.enable()
