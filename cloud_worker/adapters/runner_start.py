"""Where a model's process starts: with its priority, before what takes long to import.

`python -m cloud_worker.adapters.runner_start --fd N` is started by `runner.py` and by
nobody else. It ends with its parent and ignores signals, because the parent drains
first.
"""

from __future__ import annotations

import argparse
import contextlib
import ctypes
import os
import signal
import socket
import sys
from collections.abc import Sequence
from types import ModuleType
from typing import Final

from cloud_worker.adapters.gently import Gentle, in_nice_thread, small_share
from lifecycle.interpreter import do_not_collect

PR_SET_PDEATHSIG: Final = 1


def _end_with_parent(parent: int) -> None:
    """A hung model does not outlive the consumer that would have killed it."""
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGKILL)
    if os.getppid() != parent:
        raise SystemExit(1)


def main(arguments: Sequence[str] | None = None) -> None:
    """Serve on the socket that was inherited as file descriptor `--fd`."""
    parser = argparse.ArgumentParser(description=main.__doc__)
    parser.add_argument("--fd", type=int, required=True)
    parser.add_argument("--tray", type=int, action="append", required=True)
    parser.add_argument("--parent", type=int, required=True)
    parser.add_argument("--gently", action="store_true", help="others serve meanwhile")
    options = parser.parse_args(arguments)
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, signal.SIG_IGN)
    _end_with_parent(options.parent)
    do_not_collect()
    # Closed by the end of the process only, or the parent would hear of the end before
    # it has read why.
    connection = socket.socket(fileno=options.fd)
    with contextlib.ExitStack() as until_loaded:
        gentle = None
        if options.gently:
            # Within a share that is its own, an idle thread is not starved.
            idle = until_loaded.enter_context(small_share())
            gentle = Gentle(idle, until_loaded.close)
            child = in_nice_thread(_import, idle=idle)
        else:
            child = _import()
        child.serve(connection, options.tray, gentle)


def _import() -> ModuleType:
    from cloud_worker.adapters import runner_child  # noqa: PLC0415 - see the docstring

    return runner_child


if __name__ == "__main__":
    main()
