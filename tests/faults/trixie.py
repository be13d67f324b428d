"""`python -m tests.faults.trixie DIR`: Debian 13, whose RabbitMQ is a 4.x, in a chroot.

Only root may make one. It takes about a minute and 500 MB; `rm -r DIR` removes it.
Then `make faults ARGS="--chroot DIR"` and, for any test, OVERSPILL_RABBITMQ_CHROOT=DIR.
"""

from __future__ import annotations

import argparse
import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Final

from broker.node_files import RabbitMissing
from broker.node_server import server_in

MIRROR: Final = "http://deb.debian.org/debian"
TIMEOUT_S: Final = 1800.0


def main() -> int:
    """Make the chroot, unless it is there, and say which RabbitMQ it holds."""
    options = argparse.ArgumentParser(description=__doc__)
    options.add_argument("folder", type=Path)
    options.add_argument("--mirror", default=MIRROR)
    chosen = options.parse_args()
    if why := _why_not():
        sys.stderr.write(f"trixie: {why}\n")
        return 1
    try:
        server = server_in(chosen.folder)
    except RabbitMissing:
        command = ["debootstrap", "--variant=minbase", "--include=rabbitmq-server"]
        command += ["trixie", str(chosen.folder), chosen.mirror]
        # Packages that start a service must not: nothing of it is ours to run.
        variables = {**os.environ, "RUNLEVEL": "1"}
        subprocess.run(command, check=True, timeout=TIMEOUT_S, env=variables)
        server = server_in(chosen.folder)
    version = ".".join(map(str, server.version))
    sys.stdout.write(f"RabbitMQ {version} is in {chosen.folder}\n")
    return 0


def _why_not() -> str | None:
    if os.geteuid() != 0:
        return "only root may make a chroot"
    if shutil.which("debootstrap") is None:
        return "run `apt-get install debootstrap` first"
    return None


if __name__ == "__main__":
    sys.exit(main())
