"""How the threads of a daemon share the interpreter."""

from __future__ import annotations

import sys
from typing import Final

# A thread that wants the interpreter waits for so long before it asks the one that has
# it. Python's 5 ms is as long as a commit: the outbox's thread would write only while
# the event loop has nothing to do, and accepts come a fifth slower.
SWITCH_INTERVAL_S: Final = 0.0001


def share_interpreter() -> None:
    """Let a thread that waits, such as the outbox's, have its turn soon."""
    sys.setswitchinterval(SWITCH_INTERVAL_S)
