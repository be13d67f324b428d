"""Every knob of a worker, in one place; the environment and the command line set them."""

from __future__ import annotations

import os
import re
import socket
from pathlib import Path
from typing import Annotated

from pydantic import Field, StringConstraints, field_validator
from pydantic_settings import BaseSettings, NoDecode, SettingsConfigDict

from broker.messages import ID_PATTERN, Id
from bundle.open_tree import open_tree


def _own_id() -> str:
    host = re.sub(r"[^a-z0-9_-]", "-", socket.gethostname().lower()).strip("-_")
    return f"{host[:50] or 'worker'}-{os.getpid()}"


class WorkerSettings(BaseSettings):
    """How one member of the pool works. Environment: `OVERSPILL_WORKER_` and the name."""

    model_config = SettingsConfigDict(
        env_prefix="OVERSPILL_WORKER_", frozen=True, extra="ignore"
    )

    worker_id: Annotated[str, StringConstraints(pattern=ID_PATTERN)] = Field(
        default_factory=_own_id,
        description="Named in every result; the host and process id unless given.",
    )
    amqp_url: str = Field(
        default="amqp://guest:guest@localhost:5672/",
        description="The RabbitMQ of this pool and its vhost; several hosts of a "
        "cluster with commas between.",
    )
    models: Path = Field(
        default=Path("models"), description="The repository: NAME/VERSION/ folders."
    )
    only: Annotated[tuple[Id, ...], NoDecode] = Field(
        default=(),
        description="The models to serve, with commas between; none: all of them.",
    )
    watch_s: float = Field(
        default=2.0,
        gt=0,
        description="How often the repository is looked at; a version counts when it "
        "has not changed for that long, or was renamed into place.",
    )
    models_memory_mb: int | None = Field(
        default=None,
        ge=1,
        description="Resident MiB of all loaded models above which those unused for "
        "the longest time are unloaded until they are asked for. None: no limit.",
    )
    registry: str | Path | None = Field(
        default=None,
        description="The fleet's registry, a folder or s3://bucket/prefix; None: serve "
        "no model updates.",
    )
    trusted_root: Path | None = Field(
        default=None,
        description="The fleet's root.json: versions that its keys have not signed "
        "(overspill model publish --cloud) are not loaded. Needs the registry. None: "
        "whatever lies in the repository is loaded, which is for development.",
    )
    trust_dir: Path | None = Field(
        default=None,
        description="Where it is remembered what was seen signed, so that nothing older "
        "is believed; None: a folder that is forgotten at the end.",
    )

    examples: Path | None = Field(
        default=None,
        description="Where answered requests are kept as examples for retraining, "
        "of models that may be; workers may share it. None: nothing is kept.",
    )
    capture: bool | None = Field(
        default=None,
        description="None: keep what model.json allows; true: also where it does not "
        "say; false: nothing.",
    )
    examples_max: int = Field(
        default=20_000, ge=1, description="Examples kept of one model."
    )
    examples_max_mb: int = Field(
        default=512, ge=1, description="MiB of examples kept of one model."
    )
    examples_class_share: float = Field(
        default=0.25,
        gt=0,
        le=1,
        description="Of both, what one class may take, by the cloud's answer.",
    )
    examples_reason_share: float = Field(
        default=0.75, gt=0, le=1, description="Of both, what one reason may take."
    )
    examples_reserve_mb: int = Field(
        default=512,
        ge=0,
        description="MiB of the disk that examples leave free.",
    )

    @field_validator("registry")
    @classmethod
    def _can_be_opened(cls, place: str | Path | None) -> str | Path | None:
        if place is not None:
            open_tree(place)
        return place

    @field_validator("trusted_root")
    @classmethod
    def _is_there(cls, path: Path | None) -> Path | None:
        if path is not None and not path.expanduser().is_file():
            raise ValueError(f"there is no {path}: copy the fleet's trust/root.json")
        return None if path is None else path.expanduser()

    @field_validator("only", mode="before")
    @classmethod
    def _split(cls, value: object) -> object:
        if isinstance(value, str):
            return tuple(filter(None, (each.strip() for each in value.split(","))))
        return value

    max_batch: int = Field(
        default=64,
        ge=1,
        le=4096,
        description="Rows in one batch, where model.json does not say.",
    )
    max_batch_bytes: int = Field(
        default=64 * 1024 * 1024,
        ge=1,
        description="Inputs of one batch; a single request always fits.",
    )
    prefetch: int | None = Field(
        default=None,
        ge=1,
        le=65535,
        description="Unacknowledged envelopes per queue; None: twice the max batch, and "
        "what is served during a round trip to RabbitMQ.",
    )
    max_held: int = Field(
        default=4096,
        ge=1,
        description="Decoded requests held at once; more envelopes stay encoded.",
    )
    drain_s: float = Field(
        default=20.0,
        ge=0,
        description="After SIGTERM: time to finish what is held; the rest goes back.",
    )
    batch_timeout_s: float = Field(
        default=5.0,
        gt=0,
        description="The least time a batch gets before the model counts as hung.",
    )
    load_timeout_s: float = Field(
        default=180.0,
        gt=0,
        description="Loading and warming up one model; thrice as long while "
        "others are served, to whom the processor is left.",
    )
    intra_threads: int = Field(
        default=0, ge=0, description="Threads inside one operation; 0: the runtime's."
    )
    inter_threads: int = Field(
        default=0, ge=0, description="Operations at once; 0: the runtime's choice."
    )
    at_once: int = Field(
        default=1,
        ge=1,
        le=8,
        description="Batches that one TensorFlow or ONNX model runs side by side.",
    )
    xla: bool = Field(
        default=False,
        description="Compile TensorFlow models with XLA for each padded batch size.",
    )
    mixed_precision: bool = Field(
        default=False,
        description="Let TensorFlow compute in float16 (accelerators) or bfloat16 "
        "(processors that have it) where it finds that safe.",
    )
    runner_memory_mb: int | None = Field(
        default=None,
        ge=1,
        description="Resident MiB of a model's process above which it is replaced; "
        "at one and a half times as much it is killed. None: no limit.",
    )
    max_deaths: int = Field(
        default=5,
        ge=1,
        description="A model whose process died so often in a row without finishing a "
        "batch is given up: its requests are answered failed.",
    )
    retry_failed_s: float = Field(
        default=60.0, gt=0, description="How often a given-up model is tried again."
    )
    inline_below_ms: float = Field(
        default=0.5,
        ge=0,
        description="LiteRT models whose largest batch is quicker than this run in the "
        "consumer, without the hop to a process of their own; 0: none do.",
    )
    decode_threads: int = Field(
        default=2, ge=1, le=64, description="Encoded images decoded at once."
    )
    max_pixels: int = Field(
        default=50_000_000, ge=1, description="Of one encoded image; more is refused."
    )
    publish_timeout_s: float = Field(
        default=10.0, gt=0, description="Until RabbitMQ confirms a result."
    )
    http_port: int | None = Field(
        default=None,
        ge=0,
        le=65535,
        description="/healthz, /readyz and /metrics; 0: a free port, which is logged; "
        "None: none of them. 9464 is the custom.",
    )
    http_host: str = Field(
        default="127.0.0.1",
        description="Where they listen; 0.0.0.0 in a container. They have no password.",
    )
    traces: str | None = Field(
        default=None,
        description="Where spans go, OTLP over HTTP: http://collector:4318/v1/traces; "
        "None: none are made.",
    )
