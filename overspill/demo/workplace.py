"""The folder of one run: made new, and gone afterwards unless somebody wants it."""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

PREFIX = "ovs-"


class FolderInUse(Exception):
    """The folder holds something already."""


@dataclass(slots=True)
class Workplace:
    """Where a run writes; set `keep` to find it afterwards."""

    folder: Path
    keep: bool


@contextmanager
def workplace(folder: Path | None, *, keep: bool) -> Iterator[Workplace]:
    """A folder for one run.

    Args:
        folder: it is kept; None for a temporary one with a path that is short enough
            for sockets.
        keep: keep the temporary one too. A run that fails is always kept, for its
            logs; one that is interrupted is not.

    Raises:
        FolderInUse: `folder` is not empty.
    """
    if folder is not None:
        folder.mkdir(parents=True, exist_ok=True)
        if any(folder.iterdir()):
            raise FolderInUse(
                f"{folder} is not empty, and a demo starts from nothing: name another "
                "folder, or leave --folder out"
            )
    here = Path(tempfile.mkdtemp(prefix=PREFIX)) if folder is None else folder
    place = Workplace(here.absolute(), keep or folder is not None)
    try:
        yield place
    except Exception as error:
        place.keep = True
        error.add_note(f"what it wrote is kept in {place.folder}")
        raise
    finally:
        if not place.keep:
            shutil.rmtree(place.folder, ignore_errors=True)
