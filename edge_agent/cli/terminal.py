"""What the commands share: their settings, and failures that are one line."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer
from pydantic import ValidationError

from broker.codec import explain
from edge_agent.settings import AgentSettings

StateDir = Annotated[
    Path | None,
    typer.Option(help="The agent's folder: outbox, models, control socket."),
]
AsJson = Annotated[bool, typer.Option("--json", help="For a script.")]


class UserError(Exception):
    """Said in one line, without a traceback."""


def read_settings(**given: Any) -> AgentSettings:  # noqa: ANN401 - what typer read
    """The settings of the environment, with what the command line says above them.

    Raises:
        UserError: a setting is not as it must be.
    """
    chosen = {name: value for name, value in given.items() if value not in (None, [])}
    try:
        return AgentSettings(**chosen)
    except ValidationError as error:
        raise UserError(
            f"settings: {explain(error)} "
            "(options, or OVERSPILL_AGENT_… in the environment)"
        ) from error
