"""Alembic's entry: migrates the connection that `schema` hands over, in its transaction."""

from __future__ import annotations

from alembic import context

from fleet.adapters.state.tables import METADATA

context.configure(
    connection=context.config.attributes["connection"], target_metadata=METADATA
)
with context.begin_transaction():
    context.run_migrations()
