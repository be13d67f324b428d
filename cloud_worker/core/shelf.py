"""What the repository holds of each model, as its files lie there."""

from __future__ import annotations

from dataclasses import dataclass

from typing_extensions import override

from cloud_worker.core.policy import LATEST, Policy


@dataclass(frozen=True, slots=True, order=True)
class Key:
    """One version of one model."""

    name: str
    version: str

    @override
    def __str__(self) -> str:
        return f"{self.name}/{self.version}"

    @classmethod
    def read(cls, text: str) -> Key:
        """The key of "name/version"."""
        return cls(*text.split("/"))


@dataclass(frozen=True, slots=True)
class Stored:
    """A version as it lies in the repository; `files` differs when a file does."""

    version: str
    files: str
    size_bytes: int


@dataclass(frozen=True, slots=True)
class Shelf:
    """What the repository holds of one model: its versions, newest first."""

    versions: tuple[Stored, ...]
    policy: Policy = LATEST
