"""Files and folders that appear whole or not at all, also after a power cut.

Everything is written beside its destination under a name that starts with a dot,
synced, and renamed. What a crash leaves behind starts with a dot too, so readers
who skip such names never see half a file.
"""

from __future__ import annotations

import os
import secrets
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import BinaryIO, Final

PART_SUFFIX: Final = ".part"


def part_beside(path: Path) -> Path:
    """A fresh temporary name in the folder of `path`, on the same file system."""
    return path.with_name(f".{path.name}.{secrets.token_hex(6)}{PART_SUFFIX}")


def sync_folder(folder: Path) -> None:
    """Make the names in `folder` survive a power cut."""
    descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


@contextmanager
def replacing(
    path: Path, *, mode: int = 0o644, durable: bool = True
) -> Iterator[BinaryIO]:
    """Open a file that takes the place of `path` when the block ends without error.

    Args:
        path: where the file will be; its folder must exist.
        mode: permissions, lessened by the umask. The file has them from its first
            byte on, so a secret is never readable by others in between.
        durable: whether it must survive a power cut. Without, readers still see the
            old bytes or the new, and nobody waits for the disk: for what is made
            again from elsewhere.

    Raises:
        OSError: the disk is full, or the folder cannot be written.
    """
    part = part_beside(path)
    descriptor = os.open(part, os.O_WRONLY | os.O_CREAT | os.O_EXCL, mode)
    try:
        with os.fdopen(descriptor, "wb") as file:
            yield file
            if durable:
                file.flush()
                os.fsync(file.fileno())
        part.replace(path)
    except BaseException:
        with suppress(OSError):
            part.unlink()
        raise
    if durable:
        sync_folder(path.parent)


def write_file(
    path: Path, data: bytes, *, mode: int = 0o644, durable: bool = True
) -> None:
    """Write `data` to `path` so that a reader sees the old bytes or the new.

    Raises:
        OSError: the disk is full, or the folder cannot be written.
    """
    with replacing(path, mode=mode, durable=durable) as file:
        file.write(data)
