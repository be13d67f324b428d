"""`overspill model`: build versions, publish them, list them."""

from __future__ import annotations

from builder.cli.build import build
from fleet.cli.model import app

__all__ = ["app"]

app.command()(build)
