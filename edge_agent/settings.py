"""Every knob of the agent, in one place: arguments, then OVERSPILL_AGENT_*, then defaults."""

from __future__ import annotations

import os
import re
import socket
from pathlib import Path
from typing import Annotated, Final, Literal

from pydantic import Field, StringConstraints, field_validator
from pydantic_settings import BaseSettings, NoDecode, SettingsConfigDict

from broker.codec import MAX_ENVELOPE_BYTES
from broker.messages import ID_PATTERN
from broker.topics import check_id
from cascade.allowance import bytes_allowance, parse_share

EVERY_MODEL: Final = "*"


def _name_of_this_machine() -> str:
    name = re.sub(r"[^a-z0-9_-]+", "-", socket.gethostname().lower()).strip("-_")
    return name[:64] or "agent"


class AgentSettings(BaseSettings):
    """How one agent runs. `None` for a URL means: without that side."""

    model_config = SettingsConfigDict(
        env_prefix="OVERSPILL_AGENT_",
        extra="forbid",
        # `NAME=` in a file that a person fills in means: not set.
        env_ignore_empty=True,
        allow_inf_nan=False,
    )

    agent_id: Annotated[str, StringConstraints(pattern=ID_PATTERN)] = Field(
        default_factory=_name_of_this_machine,
        description="this agent's identity, at the broker too",
    )
    state_dir: Path = Field(
        default_factory=lambda: Path.home() / ".local" / "state" / "overspill-agent",
        description="outbox, model slots and control socket",
    )

    cloud_url: str | None = Field(
        None,
        repr=False,
        description="the cloud's broker, mqtt://user:password@host:port; "
        "several of a cluster with commas between: @a:1883,b:1883",
    )
    cloud_ca_file: Path | None = Field(None, description="CA of an mqtts:// cloud_url")
    keepalive_s: Annotated[int, Field(ge=2, le=3600)] = 10
    uplink_window: Annotated[int, Field(ge=1, le=200)] = Field(
        20, description="publishes to the cloud that may wait for their PUBACK"
    )
    envelope_items: Annotated[int, Field(ge=1, le=1024)] = Field(
        32, description="stored requests that may share one publish"
    )
    envelope_bytes: Annotated[int, Field(ge=1024, le=8 * 1024**2)] = 256 * 1024

    local_url: str | None = Field(
        None,
        repr=False,
        description="the devices' broker; without one the agent embeds its own",
    )
    local: bool = Field(True, description="serve devices over MQTT at all")
    embedded_host: str = "127.0.0.1"
    embedded_port: Annotated[int, Field(ge=1, le=65535)] = 1883
    ingress_limit: Annotated[int, Field(ge=1)] = Field(
        256, description="device requests in hand; above it they are refused"
    )
    # A spilled payload travels in one envelope, beside what else that holds.
    max_payload_bytes: Annotated[
        int, Field(ge=1024, le=MAX_ENVELOPE_BYTES - 64 * 1024)
    ] = Field(8 * 1024**2, description="above it a device's payload is refused")

    bundles: Annotated[list[Path], NoDecode] = Field(
        default_factory=list, description="bundles to serve from the first start"
    )
    trusted_root: Path | None = Field(
        None,
        description="the root.json that came with the device: who may sign models. "
        "Unset, the agent takes no updates",
    )
    provisioned_registry: Path | None = Field(
        None,
        description="a copy of the registry's metadata and targets that came with the "
        "device: who signed `bundles`. Needed with a trusted_root",
    )
    unsigned_bundles: bool = Field(
        False,
        description="take `bundles` as they are, although there is a trusted_root",
    )
    board: Annotated[str, StringConstraints(pattern=ID_PATTERN)] | None = Field(
        None, description="the kind of device, as bundles may ask for it"
    )
    utc_offset_min: Annotated[int, Field(ge=-840, le=840)] | None = Field(
        None,
        description="minutes from UTC to the device's own time, in which maintenance "
        "windows are; unset: as the system says",
    )
    threads: Annotated[int, Field(ge=1, le=64)] = 1
    infer_queue: Annotated[int, Field(ge=1)] = Field(
        64, description="inferences waiting for one model; above it they are refused"
    )
    trial_timeout_s: Annotated[float, Field(gt=0)] = 60.0
    trial_memory_mb: Annotated[int, Field(ge=64)] = 1024

    default_deadline_s: Annotated[float, Field(gt=0, le=7 * 86400)] = 60.0
    resend_after_s: Annotated[float, Field(gt=0)] = Field(
        10.0, description="without a result after this, a spill is sent again"
    )
    resend_most_s: Annotated[float, Field(gt=0)] = 120.0
    group_commit_ms: Annotated[float, Field(ge=0, le=1000)] = Field(
        20.0, description="how long accepted spills wait to share one fsync"
    )
    outbox_max_rows: Annotated[int, Field(ge=1)] = 1_000_000
    outbox_max_bytes: Annotated[int, Field(ge=1024)] = 1024**3
    device_max_rows: Annotated[int, Field(ge=1)] = Field(
        100_000, description="spills that one device may have waiting"
    )
    device_max_bytes: Annotated[int, Field(ge=1024)] = Field(
        256 * 1024**2, description="bytes that one device may have waiting"
    )
    disk_reserve_bytes: Annotated[int, Field(ge=0)] = Field(
        64 * 1024**2, description="refuse spills when the disk has less than this free"
    )
    keep_outcomes_s: Annotated[float, Field(gt=0)] = Field(
        24 * 3600.0, description="how long a told outcome answers a resent id"
    )
    keep_untold_s: Annotated[float, Field(gt=0)] = Field(
        7 * 86400.0, description="after this an answer nobody took is undelivered"
    )

    spill_budget: str | None = Field(
        None,
        description="bytes that may go to the cloud, such as 50MB/day; as it runs "
        "low, less is spilled as hard",
    )
    spill_quota: str | None = Field(
        None, description="of a model's requests, how many may spill as hard: 15%"
    )
    audit_share: Annotated[float, Field(ge=0, le=0.5)] = Field(
        0.01,
        description="of confident requests, how many are sent to the cloud as well, "
        "to see whether the target is kept; only for bundles with a calibration",
    )
    drift_false_alarm: Annotated[float, Field(gt=0, lt=1)] = Field(
        0.01, description="the chance of a drift alarm without drift, a model version"
    )
    promise_period_s: Annotated[float, Field(gt=0)] = Field(
        86400.0, description="how long a target's account runs before it begins anew"
    )
    forbid_capture: Annotated[list[str], NoDecode] = Field(
        default_factory=list,
        description="models of whose spills the cloud may keep no examples, with commas "
        "between; *: of none",
    )
    answers: Literal["wait", "provisional"] | None = Field(
        None,
        description="provisional: a device hears the edge's answer at once when its "
        "request spills, and the final one later; unset: as each bundle says",
    )

    http_port: Annotated[int, Field(ge=0, le=65535)] | None = Field(
        None,
        description="/healthz, /readyz and /metrics; 0: a free port, which is logged; "
        "unset: none of them. 9465 is the custom",
    )
    http_host: str = Field(
        "127.0.0.1", description="where they listen; they have no password"
    )
    traces: str | None = Field(
        None,
        description="where spans go, OTLP over HTTP: http://collector:4318/v1/traces; "
        "unset: none are made",
    )

    report_every_s: Annotated[float, Field(gt=0)] = 30.0
    poll_desired_every_s: Annotated[float, Field(gt=0)] = 60.0
    look_spread_s: Annotated[float, Field(ge=0)] = Field(
        3.0,
        description="when the link comes back, the agent looks for updates within "
        "this, at a moment drawn by chance",
    )
    pull_window: Annotated[int, Field(ge=1, le=64)] = 4
    pull_timeout_s: Annotated[float, Field(gt=0)] = 10.0
    pull_jitter_s: Annotated[float, Field(ge=0, le=3600)] = Field(
        1.0,
        description="a pull begins at a moment within this, drawn by chance, so that "
        "a fleet does not ask at once",
    )
    pull_sources: Annotated[tuple[Literal["mqtt", "https"], ...], NoDecode] = Field(
        ("mqtt", "https"),
        min_length=1,
        description="where updates are pulled from, the preferred first, with commas "
        "between; https only with a registry_url",
    )
    registry_url: str | None = Field(
        None,
        description="the registry's files over HTTPS, https://host/path; unset: only "
        "over MQTT",
    )
    registry_ca_file: Path | None = Field(
        None, description="CA of the registry_url; unset: the system's"
    )

    @field_validator("spill_budget")
    @classmethod
    def _is_a_budget(cls, text: str | None) -> str | None:
        if text is not None:
            bytes_allowance(text)
        return text

    @field_validator("spill_quota")
    @classmethod
    def _is_a_share(cls, text: str | None) -> str | None:
        if text is not None:
            parse_share(text)
        return text

    @field_validator("bundles", mode="before")
    @classmethod
    def _split_paths(cls, value: object) -> object:
        """Paths in the environment are separated as in PATH."""
        if not isinstance(value, str):
            return value
        return [path for path in value.split(os.pathsep) if path]

    @field_validator("forbid_capture", "pull_sources", mode="before")
    @classmethod
    def _split_names(cls, value: object) -> object:
        if not isinstance(value, str):
            return value
        return [name.strip() for name in value.split(",") if name.strip()]

    @field_validator("forbid_capture")
    @classmethod
    def _are_models(cls, names: list[str]) -> list[str]:
        for name in names:
            # A slip of the pen here would let pictures be kept.
            if name != EVERY_MODEL:
                check_id("model", name)
        return names

    @field_validator(
        "state_dir",
        "cloud_ca_file",
        "trusted_root",
        "provisioned_registry",
        "registry_ca_file",
    )
    @classmethod
    def _at_home(cls, path: Path | None) -> Path | None:
        # A unit file or a .env has no shell to read the tilde.
        return None if path is None else path.expanduser()

    @field_validator("bundles")
    @classmethod
    def _all_at_home(cls, paths: list[Path]) -> list[Path]:
        return [path.expanduser() for path in paths]

    @property
    def outbox_path(self) -> Path:
        """The outbox's file."""
        return self.state_dir / "outbox.db"

    @property
    def control_socket(self) -> Path:
        """Where `overspill-agent status` and `infer` reach the daemon."""
        return self.state_dir / "control.sock"
