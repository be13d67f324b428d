"""Labels, retired devices, epochs, staged rollouts, and the record of who did what."""

from __future__ import annotations

from typing import Any, Final

import sqlalchemy as sa
from alembic import op

revision = "0002"
down_revision = "0001"

STATES: Final = {"in_progress": "running"}
# As they are at this revision; `tables` may know more by now.
DEVICES: Final = sa.table("devices", sa.column("agent"))
ROLLOUTS: Final = sa.table(
    "rollouts",
    sa.column("generation"),
    sa.column("model"),
    sa.column("version"),
    sa.column("targets", sa.JSON(none_as_null=True)),
    sa.column("started_at_ms"),
    sa.column("state"),
    sa.column("terms", sa.JSON),
)
RESULTS: Final = sa.table(
    "results",
    sa.column("generation"),
    sa.column("agent"),
    sa.column("state"),
    sa.column("since_ms"),
    sa.column("told_at_ms"),
)


def upgrade() -> None:
    """Add the tables and columns of staged, signed rollouts."""
    _devices()
    _rollouts()
    _carry_over()
    op.create_table(
        "audit",
        sa.Column("sequence", sa.BigInteger, primary_key=True, autoincrement=False),
        sa.Column("at_ms", sa.BigInteger, nullable=False),
        sa.Column("who", sa.String, nullable=False),
        sa.Column("what", sa.String, nullable=False),
        sa.Column("subject", sa.String, nullable=False),
        sa.Column("details", sa.String, nullable=False),
        sa.Column("previous", sa.String, nullable=False),
        sa.Column("digest", sa.String, nullable=False),
    )
    if op.get_bind().dialect.name == "sqlite":
        # For programs from before there were migrations: they refuse it by number.
        op.execute("PRAGMA user_version = 2")


def _devices() -> None:
    op.create_table(
        "labels",
        sa.Column("agent", sa.String, primary_key=True),
        sa.Column("key", sa.String, primary_key=True),
        sa.Column("value", sa.String, nullable=False),
    )
    op.create_table(
        "retired",
        sa.Column("agent", sa.String, primary_key=True),
        sa.Column("at_ms", sa.BigInteger, nullable=False),
        sa.Column("who", sa.String, nullable=False),
        sa.Column("reason", sa.String, nullable=False),
    )
    op.create_table(
        "desired",
        sa.Column("agent", sa.String, primary_key=True),
        sa.Column("generation", sa.BigInteger, nullable=False),
        sa.Column("sha256", sa.String, nullable=False),
        sa.Column("models", sa.JSON, nullable=False),
    )


def _rollouts() -> None:
    _add("versions", "epoch", sa.BigInteger, "0")
    # Signed with the key of before, which no agent asks for any more.
    _add("versions", "state", sa.String, "draft")
    _add("versions", "requires", sa.JSON, "{}")
    with op.batch_alter_table("versions") as versions:
        versions.drop_column("key_id")
    _add("rollouts", "epoch", sa.BigInteger, "0")
    _add("rollouts", "terms", sa.JSON, "{}")
    _add("rollouts", "course", sa.JSON, "{}")
    _add("results", "told_at_ms", sa.BigInteger, "0")
    _add("results", "wave", sa.BigInteger, "0")
    _add("results", "mark", sa.BigInteger, "0")
    _add("results", "shadow", sa.Boolean, sa.false())
    op.add_column("results", sa.Column("before", sa.String, nullable=True))
    _add("results", "before_epoch", sa.BigInteger, "0")
    op.create_table(
        "rollout_events",
        sa.Column("generation", sa.BigInteger, primary_key=True, autoincrement=False),
        sa.Column("sequence", sa.BigInteger, primary_key=True, autoincrement=False),
        sa.Column("at_ms", sa.BigInteger, nullable=False),
        sa.Column("kind", sa.String, nullable=False),
        sa.Column("details", sa.JSON, nullable=False),
    )


def _add(
    table: str,
    name: str,
    kind: type[sa.types.TypeEngine[Any]],
    was: str | sa.ColumnElement[bool],
) -> None:
    """A column that rows of before have `was` in."""
    op.add_column(table, sa.Column(name, kind, nullable=False, server_default=was))


def _carry_over() -> None:
    """Rollouts of before had told every agent they reached, and had no other terms."""
    bind = op.get_bind()
    devices = [agent for (agent,) in bind.execute(sa.select(DEVICES.c.agent))]
    told = {
        (generation, agent)
        for generation, agent in bind.execute(
            sa.select(RESULTS.c.generation, RESULTS.c.agent)
        )
    }
    for row in bind.execute(sa.select(ROLLOUTS)).mappings().all():
        generation, at_ms, targets = (
            row["generation"],
            row["started_at_ms"],
            row["targets"],
        )
        terms = {
            name: row[name]
            for name in ("generation", "model", "version", "started_at_ms", "targets")
        }
        bind.execute(
            sa.update(ROLLOUTS)
            .where(ROLLOUTS.c.generation == generation)
            .values(terms=terms, state=STATES.get(row["state"], row["state"]))
        )
        bind.execute(
            sa.update(RESULTS)
            .where(RESULTS.c.generation == generation)
            .values(told_at_ms=at_ms)
        )
        reached = devices if targets is None else targets
        new = [agent for agent in reached if (generation, agent) not in told]
        if new:
            bind.execute(
                sa.insert(RESULTS),
                [
                    {
                        "generation": generation,
                        "agent": agent,
                        "state": "pending",
                        "since_ms": at_ms,
                        "told_at_ms": at_ms,
                    }
                    for agent in new
                ],
            )
