"""Finished steps as files: a build that was interrupted goes on after the last one."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from builder.core.refusal import BuildRefused


class Workspace:
    """A folder of steps, each named by what it is and a digest of what it is made of."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder

    def file(
        self, name: str, suffix: str, key: str, make: Callable[[Path], None]
    ) -> tuple[Path, bool]:
        """A step that is one file.

        Args:
            name: of the step, for people.
            suffix: with its dot.
            key: from `core.steps.step_key`.
            make: writes the file it is given; called when there is none yet.

        Returns:
            The file, and whether it was made now.

        Raises:
            BuildRefused: the folder cannot be written.
        """
        path = self._folder / f"{name}-{key}{suffix}"
        if path.exists():
            return path, False
        half = path.with_name(f"half-{path.name}")
        try:
            self._folder.mkdir(parents=True, exist_ok=True)
            make(half)
            half.replace(path)
        except OSError as error:
            raise BuildRefused(f"cannot write {path}: {error.strerror}") from error
        return path, True

    def arrays(
        self, name: str, key: str, make: Callable[[], Mapping[str, NDArray[Any]]]
    ) -> dict[str, NDArray[Any]]:
        """A step that is some arrays by name."""

        def write(path: Path) -> None:
            with path.open("wb") as file:
                np.savez(file, allow_pickle=False, **make())

        path, _ = self.file(name, ".npz", key, write)
        with np.load(path) as file:
            return {each: file[each] for each in file.files}


def write_json(path: Path, content: Mapping[str, Any]) -> None:
    """Write readable JSON; NaN and infinity are a fault of ours."""
    text = json.dumps(content, indent=2, allow_nan=False)
    path.write_text(text + "\n", encoding="utf-8")


def sha256(path: Path) -> str:
    """Of a file, in hexadecimal."""
    return hashlib.sha256(path.read_bytes()).hexdigest()


def array_digest(array: NDArray[Any]) -> str:
    """Of an array's numbers, in hexadecimal."""
    return hashlib.blake2b(
        np.ascontiguousarray(array).tobytes(), digest_size=16
    ).hexdigest()
