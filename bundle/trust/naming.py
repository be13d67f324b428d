"""Read what a model's role names: seals of bundles by epoch, and of cloud folders."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Final

from tuf.api.metadata import TargetFile

CLOUD: Final = "cloud"


@dataclass(frozen=True, slots=True)
class Named:
    """One target.

    Attributes:
        target: what TUF calls it.
        version: of the model.
        epoch: of the bundle; None for a folder of the cloud's models.
        back: whether it is the way back that came with another version.
        sha256: of the seal's file.
        size_bytes: of the seal's file.
    """

    target: str
    version: str
    epoch: int | None
    back: bool
    sha256: str
    size_bytes: int


def named(targets: Mapping[str, TargetFile]) -> list[Named]:
    """What is named, folders first and then by epoch."""
    found = [_read(target, file) for target, file in targets.items()]
    return sorted(found, key=lambda each: (each.epoch or 0, each.target))


def _read(target: str, file: TargetFile) -> Named:
    folder, _, name = target.rpartition("/")
    stem = name.removesuffix(".json")
    epoch = None
    version = stem
    if not folder.startswith(f"{CLOUD}/"):
        version, _, number = stem.rpartition(".")
        epoch = int(number)
    custom = file.unrecognized_fields.get("custom") or {}
    return Named(
        target,
        version,
        epoch,
        bool(custom.get("back")),
        file.hashes["sha256"],
        file.length,
    )
