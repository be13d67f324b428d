"""Where a fleet's database can be in tests: the same tests run on every kind."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.postgres import PrivatePostgres

KINDS = ("sqlite", "postgresql")


def fresh_place(kind: str, request: pytest.FixtureRequest, folder: Path) -> str:
    """A path or URL at which there is no fleet's database yet."""
    if kind == "sqlite":
        return str(folder / "f.db")
    server: PrivatePostgres = request.getfixturevalue("postgres")
    return server.fresh()
