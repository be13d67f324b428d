"""Which RabbitMQ a private node runs: this system's, one that is named, or a chroot's.

A chroot holds another release of the system, and so another RabbitMQ. The folder of
the node is mounted inside at its own path, in a mount namespace that ends with the
process: nothing is left mounted. That needs root.
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from broker.node_files import (
    SCRIPT_FOLDERS,
    RabbitMissing,
    find_epmd,
    find_server,
    version_of,
)

SERVER_VARIABLE: Final = "OVERSPILL_RABBITMQ_SERVER"
CHROOT_VARIABLE: Final = "OVERSPILL_RABBITMQ_CHROOT"

# Each line gives way to the next program, so the process keeps the id it started with.
_ENTER: Final = """set -e
root=$1 folder=$2
shift 2
mkdir -p "$root$folder"
mount --bind "$folder" "$root$folder"
mount -t proc proc "$root/proc"
exec chroot "$root" "$@"
"""


@dataclass(frozen=True, slots=True)
class Server:
    """An installed RabbitMQ.

    Attributes:
        script: its `rabbitmq-server`, as this system sees it.
        root: the chroot that it is installed in; None for this system.
    """

    script: Path
    root: Path | None = None

    @property
    def version(self) -> tuple[int, ...]:
        """Major and minor, as its path tells them."""
        return version_of(self.script)

    def command(self, program: str, *arguments: str, folder: Path) -> list[str]:
        """How to run one of its programs for the node in `folder`.

        Args:
            program: `rabbitmq-server`, `rabbitmqctl`, `rabbitmq-queues` or `epmd`.
            arguments: its own.
            folder: the node's, which the program sees at the same path.

        Raises:
            RabbitMissing: the program is not there.
        """
        if self.root is None:
            beside = str(self.script.parent / program)
            return [find_epmd() if program == "epmd" else beside, *arguments]
        unshare = shutil.which("unshare")
        if unshare is None or os.geteuid() != 0:
            raise RabbitMissing(
                f"the RabbitMQ in {self.root} needs root and unshare(1) to be entered: "
                "run this as root, or use the RabbitMQ of this system"
            )
        beside = str(Path("/") / (self.script.parent / program).relative_to(self.root))
        inside = "/usr/bin/epmd" if program == "epmd" else beside
        enter = [unshare, "--mount", "--propagation", "private", "sh", "-c", _ENTER]
        return [*enter, "sh", str(self.root), str(folder), inside, *arguments]


def server_in(root: Path) -> Server:
    """The RabbitMQ that is installed in a chroot.

    Raises:
        RabbitMissing: there is none.
    """
    root = root.resolve()
    for folder in SCRIPT_FOLDERS:
        script = root / folder.lstrip("/") / "rabbitmq-server"
        if script.exists():
            return Server(script.resolve(), root)
    raise RabbitMissing(
        f"there is no RabbitMQ in {root}: make one with "
        f"`python -m tests.faults.trixie {root}`"
    )


def chosen_server(variables: Mapping[str, str] | None = None) -> Server:
    """The RabbitMQ that the environment names, else the one of this system.

    Args:
        variables: `OVERSPILL_RABBITMQ_SERVER` is the path of a `rabbitmq-server`,
            `OVERSPILL_RABBITMQ_CHROOT` the folder of a chroot; this process's
            environment when None.

    Raises:
        RabbitMissing: it is not there.
    """
    variables = os.environ if variables is None else variables
    if root := variables.get(CHROOT_VARIABLE):
        return server_in(Path(root))
    if script := variables.get(SERVER_VARIABLE):
        if not Path(script).exists():
            raise RabbitMissing(f"{SERVER_VARIABLE} names {script}, which is not there")
        return Server(Path(script).resolve())
    return Server(find_server())
