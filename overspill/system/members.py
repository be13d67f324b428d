"""The processes a system is made of, each with its settings; none is started here."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Final

from overspill.example import Example
from overspill.program import Program, environment, python
from overspill.system.places import AgentPlace

WORKER_DRAIN_S: Final = 5.0
REPORT_EVERY_S: Final = 5.0


def worker(
    name: str, *, log: Path, url: str, example: Example, registry: Path, pool: int
) -> Program:
    """A member of the pool.

    Args:
        name: its id.
        log: where it writes; it says there when it consumes.
        url: of RabbitMQ.
        example: whose models it serves.
        registry: whose files it gives to agents.
        pool: how many share this machine.
    """
    return Program(
        name,
        python("cloud_worker", "run"),
        log=log,
        variables=environment(
            OVERSPILL_WORKER_WORKER_ID=name,
            OVERSPILL_WORKER_AMQP_URL=url,
            OVERSPILL_WORKER_MODELS=str(example.repository),
            OVERSPILL_WORKER_REGISTRY=str(registry),
            OVERSPILL_WORKER_INTRA_THREADS=str(max(1, (os.cpu_count() or 1) // pool)),
            OVERSPILL_WORKER_INTER_THREADS="1",
            OVERSPILL_WORKER_DRAIN_S=str(WORKER_DRAIN_S),
            TF_CPP_MIN_LOG_LEVEL="2",
        ),
        stop_within_s=WORKER_DRAIN_S + 5.0,
    )


def agent(  # noqa: PLR0913 - what it is given
    place: AgentPlace,
    *,
    log: Path,
    url: str,
    bundle: Path,
    trusted_root: Path,
    registry: Path,
    audit_share: float | None,
) -> Program:
    """An agent.

    Args:
        place: which.
        log: where it writes.
        url: of RabbitMQ, as MQTT.
        bundle: the version it has from the start.
        trusted_root: the fleet's root of trust.
        registry: a copy that shows who signed the bundle.
        audit_share: of what it is sure of, how much it lets the cloud check; as agents
            do it when None.
    """
    settings = (
        {"OVERSPILL_AGENT_EMBEDDED_PORT": str(place.port)}
        if place.embedded
        else {"OVERSPILL_AGENT_LOCAL_URL": place.url}
    )
    if audit_share is not None:
        settings["OVERSPILL_AGENT_AUDIT_SHARE"] = str(audit_share)
    return Program(
        place.agent,
        python("edge_agent", "run"),
        log=log,
        variables=environment(
            OVERSPILL_AGENT_AGENT_ID=place.agent,
            OVERSPILL_AGENT_STATE_DIR=str(place.state_dir),
            OVERSPILL_AGENT_CLOUD_URL=url,
            OVERSPILL_AGENT_BUNDLES=str(bundle),
            OVERSPILL_AGENT_TRUSTED_ROOT=str(trusted_root),
            OVERSPILL_AGENT_PROVISIONED_REGISTRY=str(registry),
            OVERSPILL_AGENT_REPORT_EVERY_S=str(REPORT_EVERY_S),
            **settings,
        ),
    )


def fleet(*, log: Path, variables: Mapping[str, str]) -> Program:
    """The operators' daemon.

    Args:
        log: where it writes.
        variables: the settings of the operator's commands, which are its own.
    """
    return Program(
        "fleet",
        python("overspill", "fleet", "run"),
        log=log,
        variables=environment(**variables),
    )
