"""An agent's results are found without reading all that ever came of all rollouts."""

from __future__ import annotations

from alembic import op

revision = "0003"
down_revision = "0002"


def upgrade() -> None:
    """Add the index."""
    op.create_index("results_by_agent", "results", ["agent"])
