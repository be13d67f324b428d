"""Every knob of the fleet's programs, in one place. Environment: `OVERSPILL_FLEET_*`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

from pydantic import Field, SecretStr, field_validator
from pydantic_settings import BaseSettings, SettingsConfigDict


def default_home() -> Path:
    """Where the fleet's state lies when nobody says otherwise."""
    return Path.home() / ".local" / "share" / "overspill" / "fleet"


def beside(home: Path) -> Path:
    """Not in the home, so that who restores an old copy of it does not restore this."""
    return home.with_name(f"{home.name}.audit-head")


class FleetSettings(BaseSettings):
    """What the daemon and the operators' commands need to know."""

    model_config = SettingsConfigDict(
        env_prefix="OVERSPILL_FLEET_", frozen=True, extra="ignore"
    )

    home: Path = Field(
        default_factory=default_home,
        description="folder of fleet.db, registry/ and trust/; workers serve registry/",
    )
    database: str = Field(
        default_factory=lambda known: str(known["home"] / "fleet.db"),
        repr=False,
        description="the fleet's state: a path for SQLite, or "
        "postgresql://user:password@host:port/name; fleet.db in the home by default",
    )
    registry: str = Field(
        default_factory=lambda known: str(known["home"] / "registry"),
        description="what workers serve: a folder, or s3://bucket/prefix; registry/ in "
        "the home by default",
    )
    audit_head: Path = Field(
        default_factory=lambda known: beside(known["home"]),
        description="where the audit log's head is kept outside of the database; "
        "beside the home by default",
    )
    actor: str | None = Field(
        default=None,
        max_length=200,
        description="who the audit log says it was; by default the user of the "
        "operating system and the machine",
    )
    passphrase: SecretStr | None = Field(
        default=None,
        description="opens the fleet's encrypted keys; asked for on a terminal when "
        "it is not set",
    )
    passphrase_file: Path | None = Field(
        default=None, description="a file (0600) that holds the passphrase"
    )
    amqp_url: str | None = Field(
        default=None,
        repr=False,
        description="amqp://user:password@host:port/vhost of RabbitMQ; without it "
        "agents learn of a rollout at their next poll",
    )
    hint_timeout_s: Annotated[float, Field(gt=0)] = Field(
        default=3.0, description="how long `rollout start` tries to reach RabbitMQ"
    )
    publish_timeout_s: Annotated[float, Field(gt=0)] = Field(
        default=5.0, description="how long the daemon waits for one confirm"
    )
    silent_after_s: Annotated[float, Field(gt=0)] = Field(
        default=90.0, description="an agent not heard of for so long is silent"
    )
    telemetry_prefetch: Annotated[int, Field(ge=1, le=10_000)] = Field(
        default=200, description="reports held at once, and committed together"
    )
    drain_s: Annotated[float, Field(ge=0)] = Field(
        default=5.0, description="how long SIGTERM waits for reports already taken"
    )
    database_timeout_s: Annotated[float, Field(gt=0)] = Field(
        default=10.0, description="how long to wait while another process writes"
    )
    log_level: str = Field(default="info", description="debug, info, warning or error")

    @field_validator("home", "audit_head")
    @classmethod
    def _at_home(cls, path: Path) -> Path:
        # A unit file or a .env has no shell to read the tilde.
        return path.expanduser()

    @property
    def trust(self) -> Path:
        """Keys, drafts, and what this machine has seen of the fleet's trust."""
        return self.home / "trust"
