"""The registry's sources in the order that an operator chose."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Literal

from bundle.source import Source
from edge_agent.adapters.https_source import HttpsSource


def sources_of(
    order: Sequence[Literal["mqtt", "https"]],
    mqtt: Source,
    *,
    registry_url: str | None,
    ca_file: Path | None,
    timeout_s: float,
    connections: int,
) -> tuple[Source, ...]:
    """Whom to ask for updates, the preferred first.

    Args:
        order: the kinds of source, each at most once.
        mqtt: the pool, over the uplink's link.
        registry_url: the same files over HTTPS; None: nowhere.
        ca_file: who may sign that server's certificate; None: the system's own.
        timeout_s: for one range over HTTPS.
        connections: to that server at once.

    Raises:
        BadRegistryUrl: `registry_url` names no registry.
        OSError: `ca_file` cannot be read.
    """
    found: list[Source] = []
    for name in dict.fromkeys(order):
        if name == "mqtt":
            found.append(mqtt)
        elif registry_url is not None:
            found.append(
                HttpsSource(
                    registry_url,
                    ca_file=ca_file,
                    timeout_s=timeout_s,
                    connections=connections,
                )
            )
    # An order that leaves nothing to ask is a slip of the pen.
    return tuple(found) or (mqtt,)
