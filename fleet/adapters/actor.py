"""Who runs this program, as the audit log says it."""

from __future__ import annotations

import getpass
import os
import socket


def person() -> str:
    """The user of the operating system and the machine, as `user@host`.

    Under sudo it is who called it: `user@host (as root)`.
    """
    try:
        user = getpass.getuser()
    except (KeyError, OSError):  # Such as in a container, where the number has no name.
        user = f"uid-{os.getuid()}"
    called = os.environ.get("SUDO_USER")
    where = socket.gethostname()
    if called and called != user:
        return f"{called}@{where} (as {user})"
    return f"{user}@{where}"
