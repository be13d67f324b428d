"""Versions that were published, and when this fleet first did."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from enum import StrEnum
from typing import Any

from sqlalchemy import Connection, delete, select

from fleet.adapters.state.tables import VERSIONS, upsert


class VersionState(StrEnum):
    """Whether agents would take a version."""

    DRAFT = "draft"
    """Stored, and not signed by enough keys yet."""
    SIGNED = "signed"


@dataclass(frozen=True, slots=True)
class PublishedVersion:
    """A version in the registry; `sha256` names its blob.

    `epoch` is the one it was published in; 0 is from before there were epochs.
    `requires` is what an agent must have (`bundle.manifest.Requires`, as JSON).
    """

    model: str
    version: str
    sha256: str
    size_bytes: int
    published_at_ms: int
    epoch: int = 0
    state: VersionState = VersionState.SIGNED
    requires: Mapping[str, Any] = field(default_factory=dict)


class VersionPages:
    """The part of a `Ledger` about versions."""

    def __init__(self, connection: Connection) -> None:
        self._connection = connection

    def versions(self) -> list[PublishedVersion]:
        """Every version, by model and then in the order of publishing."""
        rows = self._connection.execute(
            select(VERSIONS).order_by(
                VERSIONS.c.model, VERSIONS.c.published_at_ms, VERSIONS.c.version
            )
        )
        return [
            PublishedVersion(**{**row, "state": VersionState(row["state"])})
            for row in rows.mappings()
        ]

    def keep_version(self, version: PublishedVersion) -> None:
        """Write a published version; its first time of publishing stays."""
        upsert(self._connection, VERSIONS, [asdict(version)], keep=["published_at_ms"])

    def drop_version(self, model: str, version: str) -> None:
        """Forget a version, such as a draft that is not to be."""
        self._connection.execute(
            delete(VERSIONS).where(
                VERSIONS.c.model == model, VERSIONS.c.version == version
            )
        )
