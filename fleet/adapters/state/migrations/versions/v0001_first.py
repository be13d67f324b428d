"""Devices, versions, rollouts and results, as before there were migrations."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0001"
down_revision = None


def upgrade() -> None:
    """Make the first tables."""
    op.create_table(
        "devices",
        sa.Column("agent", sa.String, primary_key=True),
        sa.Column("first_seen_ms", sa.BigInteger, nullable=False),
        sa.Column("last_seen_ms", sa.BigInteger, nullable=False),
        sa.Column("reports", sa.BigInteger, nullable=False),
        sa.Column("slots", sa.JSON, nullable=False),
        sa.Column("counters", sa.JSON, nullable=False),
        sa.Column("facts", sa.JSON, nullable=False),
    )
    op.create_table(
        "versions",
        sa.Column("model", sa.String, primary_key=True),
        sa.Column("version", sa.String, primary_key=True),
        sa.Column("sha256", sa.String, nullable=False),
        sa.Column("size_bytes", sa.BigInteger, nullable=False),
        sa.Column("key_id", sa.String, nullable=False),
        sa.Column("published_at_ms", sa.BigInteger, nullable=False),
    )
    op.create_table(
        "rollouts",
        sa.Column("generation", sa.BigInteger, primary_key=True, autoincrement=False),
        sa.Column("model", sa.String, nullable=False),
        sa.Column("version", sa.String, nullable=False),
        sa.Column("targets", sa.JSON, nullable=True),
        sa.Column("started_at_ms", sa.BigInteger, nullable=False),
        sa.Column("state", sa.String, nullable=False),
        sa.Column("state_since_ms", sa.BigInteger, nullable=False),
    )
    op.create_table(
        "results",
        sa.Column("generation", sa.BigInteger, primary_key=True, autoincrement=False),
        sa.Column("agent", sa.String, primary_key=True),
        sa.Column("state", sa.String, nullable=False),
        sa.Column("version", sa.String, nullable=True),
        sa.Column("reason", sa.String, nullable=True),
        sa.Column("since_ms", sa.BigInteger, nullable=False),
    )
