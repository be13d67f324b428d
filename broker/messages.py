"""What is said on the wire. Frozen values, validated on the way in, with no I/O.

Every message is version 1 of its kind. Fields may be added later with a default;
a receiver ignores those it does not know. Ids never hold a dot or a slash, because
topics are routing keys and either would change where a message goes.
"""

from __future__ import annotations

from enum import StrEnum
from math import prod
from typing import Annotated, Final, Literal, Self

from pydantic import BaseModel, ConfigDict, Field, StringConstraints, model_validator

ID_PATTERN: Final = r"^[a-z0-9][a-z0-9_-]{0,63}$"
VERSION_PATTERN: Final = r"^[a-z0-9][a-z0-9._-]{0,63}$"
REGISTRY_PATH_PATTERN: Final = (
    r"^[A-Za-z0-9_-][A-Za-z0-9._-]*(/[A-Za-z0-9_-][A-Za-z0-9._-]*){0,5}$"
)
READ_BYTES: Final = 128 * 1024
MAX_READ_BYTES: Final = 1024 * 1024
MAX_TENSORS: Final = 32
MAX_RANK: Final = 8

Id = Annotated[str, StringConstraints(pattern=ID_PATTERN)]
ModelVersion = Annotated[str, StringConstraints(pattern=VERSION_PATTERN)]
RegistryPath = Annotated[
    str, StringConstraints(pattern=REGISTRY_PATH_PATTERN, max_length=300)
]
ShortText = Annotated[str, StringConstraints(max_length=1024)]
MonotonicCount = Annotated[int, Field(ge=0, le=2**63 - 1)]
Milliseconds = Annotated[float, Field(ge=0)]

ITEM_BYTES: Final[dict[str, int]] = {
    "bool": 1,
    "int8": 1,
    "uint8": 1,
    "int16": 2,
    "uint16": 2,
    "float16": 2,
    "int32": 4,
    "uint32": 4,
    "float32": 4,
    "int64": 8,
    "uint64": 8,
    "float64": 8,
}


class Reason(StrEnum):
    """Why a request was spilled."""

    HARD = "hard"
    OVERSIZED = "oversized"
    NO_LOCAL_MODEL = "no_local_model"
    FORCED = "forced"
    AUDIT = "audit"


class Priority(StrEnum):
    """The class of a request: one queue each, because quorum queues have no priority."""

    HI = "hi"
    NORM = "norm"
    BULK = "bulk"


class Status(StrEnum):
    """How the pool ended a request."""

    OK = "ok"
    FAILED = "failed"
    EXPIRED = "expired"


class Message(BaseModel):
    """A frozen value of the wire; unknown fields are ignored."""

    model_config = ConfigDict(frozen=True, extra="ignore", strict=True)


class Tensor(Message):
    """One numeric array: `data` holds `prod(shape)` little-endian items of `dtype`."""

    dtype: str
    shape: Annotated[list[int], Field(max_length=MAX_RANK)]
    data: bytes

    @model_validator(mode="after")
    def _length_agrees(self) -> Self:
        size = ITEM_BYTES.get(self.dtype)
        if size is None:
            raise ValueError(f"dtype {self.dtype!r} is not one of {sorted(ITEM_BYTES)}")
        if self.shape and min(self.shape) < 0:
            raise ValueError(f"shape {self.shape} has a negative side")
        want = prod(self.shape) * size
        if want != len(self.data):
            raise ValueError(
                f"shape {self.shape} of {self.dtype} needs {want} bytes, "
                f"got {len(self.data)}"
            )
        return self


class Medium(Message):
    """One encoded medium, such as an `image/png`, that the model's recipe decodes."""

    media_type: Annotated[str, StringConstraints(max_length=127)]
    data: bytes


class EdgeOpinion(Message):
    """What the edge model itself said of a request that it spilled."""

    label: ShortText | None = None
    confidence: float | None = None
    version: ModelVersion


class Request(Message):
    """One thing to infer. Exactly one of `tensors` and `medium` is set.

    `expires_at_ms` is Unix time in the pool's clock, as the agent has learned it.
    `capture` False forbids the pool to keep it as an example; nothing on the wire
    allows it.
    """

    id: Id
    device: Id
    model: Id
    reason: Reason = Field(strict=False)
    expires_at_ms: MonotonicCount
    tensors: Annotated[dict[str, Tensor], Field(max_length=MAX_TENSORS)] | None = None
    medium: Medium | None = None
    priority: Priority = Field(default=Priority.NORM, strict=False)
    seq: MonotonicCount = 0
    attempt: MonotonicCount = 0
    edge: EdgeOpinion | None = None
    traceparent: Annotated[str, StringConstraints(max_length=128)] | None = None
    capture: bool | None = None

    @model_validator(mode="after")
    def _one_input(self) -> Self:
        if (self.tensors is None) == (self.medium is None):
            raise ValueError("a request carries either tensors or one medium")
        return self


class Timings(Message):
    """Where the time went in the pool, in milliseconds."""

    queue_ms: Milliseconds = 0.0
    batch_ms: Milliseconds = 0.0
    infer_ms: Milliseconds = 0.0


class Result(Message):
    """The pool's word on one request; `id` and `device` are the request's own.

    `retry_after_s` stands beside `failed` when there was no room for the request in
    its time: then the same may be asked again. `left_ms` stands beside `expired` when
    the request had so much time left, which is less than its model needs.
    """

    id: Id
    device: Id
    model: Id
    status: Status = Field(strict=False)
    version: ModelVersion | None = None
    worker: ShortText = ""
    outputs: Annotated[dict[str, Tensor], Field(max_length=MAX_TENSORS)] = Field(
        default_factory=dict
    )
    label: ShortText | None = None
    confidence: float | None = None
    reason: ShortText | None = None
    timings: Timings = Field(default_factory=Timings)
    batch_size: MonotonicCount = 0
    server_time_ms: MonotonicCount = 0
    pool_wait_ms: Milliseconds = 0.0
    retry_after_s: Annotated[float, Field(ge=0)] | None = None
    left_ms: Milliseconds = 0.0


class Get(Message):
    """An agent asks the pool for `length` bytes of a registry's file from `offset` on.

    Paths are those of `bundle.layout`. With `shared` the answer may come on the topic
    that all agents of a wave hear; `listening_ms` says for how long the asker has.
    """

    want: Literal["file"]
    path: RegistryPath
    offset: MonotonicCount = 0
    length: Annotated[int, Field(ge=1, le=MAX_READ_BYTES)] = READ_BYTES
    shared: bool = False
    listening_ms: MonotonicCount | None = None


class Blob(Message):
    """The answer to a `Get`, whose path and offset it repeats so that any order will do.

    `total_bytes` is the size of the whole file. A `busy` pool says when to ask again.
    """

    want: Literal["file"]
    path: RegistryPath
    offset: MonotonicCount = 0
    total_bytes: MonotonicCount = 0
    status: Literal["ok", "not_found", "failed", "busy"] = "ok"
    reason: ShortText | None = None
    retry_after_s: Annotated[float, Field(ge=0)] | None = None
    data: bytes = b""


class CascadeReport(Message):
    """How the threshold of the active version stands, and what came of its promise.

    `threshold` is the one in force, None while nothing is spilled for being hard;
    `share` is of what `calibrated` spills. `value` lies in `low` to `high` with the
    target's confidence; they and `standing` are None where there is no target.
    """

    threshold: float | None = None
    calibrated: float = 0.0
    share: float = 1.0
    why: ShortText = ""
    target: ShortText | None = None
    standing: Literal["kept", "at_risk", "broken"] | None = None
    value: float | None = None
    low: float | None = None
    high: float | None = None
    drift: bool = False


class HealthReport(Message):
    """What one version did on an agent since it serves, or since its shadow runs.

    `requests` were put to it; `errors` of them it failed; `spilled` went to the cloud;
    of `compared` with the cloud's answer it `agreed` on so many. `chosen` and
    `chosen_agreed` are those of them that were audited: drawn by chance, so that their
    share is without bias. A shadow was compared `with_active` too, with the answers of
    the version that serves. Latencies are of its own run, in milliseconds.
    """

    for_s: Annotated[float, Field(ge=0)] = 0.0
    requests: MonotonicCount = 0
    errors: MonotonicCount = 0
    spilled: MonotonicCount = 0
    compared: MonotonicCount = 0
    agreed: MonotonicCount = 0
    chosen: MonotonicCount = 0
    chosen_agreed: MonotonicCount = 0
    with_active: MonotonicCount = 0
    with_active_agreed: MonotonicCount = 0
    p50_ms: Milliseconds | None = None
    p99_ms: Milliseconds | None = None


class SlotReport(Message):
    """What one model's slots hold on an agent, and how its last update went.

    `waiting`: an update is put off (`reason`: window, budget, disk, a busy pool);
    `probation`: the new version serves, and may still return; `returned`: it did, to
    the previous one; `shadow`: it runs beside the active one and only reports. `floor`
    is the lowest epoch that the agent still takes. `health` is of the staged, shadowing
    or active version, `before` of the one that it replaces.
    """

    model: Id
    active: ModelVersion | None = None
    previous: ModelVersion | None = None
    staged: ModelVersion | None = None
    state: Literal[
        "idle",
        "waiting",
        "pulling",
        "testing",
        "shadow",
        "probation",
        "swapped",
        "returned",
        "refused",
    ] = "idle"
    reason: ShortText | None = None
    generation: MonotonicCount = 0
    epoch: MonotonicCount = 0
    floor: MonotonicCount = 0
    pulled_bytes: MonotonicCount = 0
    total_bytes: MonotonicCount = 0
    health: HealthReport | None = None
    before: HealthReport | None = None
    cascade: CascadeReport | None = None


class Report(Message):
    """An agent's reported state, health and counters."""

    agent: Id
    at_ms: MonotonicCount
    slots: Annotated[list[SlotReport], Field(max_length=256)] = Field(
        default_factory=list
    )
    counters: Annotated[dict[str, int], Field(max_length=256)] = Field(
        default_factory=dict
    )
    facts: Annotated[dict[str, ShortText], Field(max_length=64)] = Field(
        default_factory=dict
    )


class Window(Message):
    """When an agent may change a model, in the device's own time.

    From `start_minute` of each of `days` (0 is Monday) for `minutes`, over midnight
    too. No days: every day.
    """

    days: Annotated[list[Annotated[int, Field(ge=0, le=6)]], Field(max_length=7)] = (
        Field(default_factory=list)
    )
    start_minute: Annotated[int, Field(ge=0, le=1439)] = 0
    minutes: Annotated[int, Field(ge=1, le=1440)] = 1440


class UpdatePolicy(Message):
    """How an agent carries out one update.

    A new version is on probation for `probation_s` and until it has served
    `probation_requests`, and returns by itself when its share of errors is above
    `max_error_share`, its agreement with the cloud is `max_agreement_drop` below that
    of the previous one (both judged by intervals), its median latency is above
    `max_slowdown` times the previous one's, or it ends the process. `shared`: chunks
    may be heard on the topic that the whole wave hears.
    """

    probation_s: Annotated[float, Field(ge=0)] = 0.0
    probation_requests: MonotonicCount = 0
    max_error_share: Annotated[float, Field(ge=0, le=1)] = 0.02
    max_agreement_drop: Annotated[float, Field(ge=0, le=1)] = 0.05
    max_slowdown: Annotated[float, Field(ge=1)] = 3.0
    window: Window | None = None
    bytes_per_s: Annotated[int, Field(ge=1)] | None = None
    bytes_per_day: Annotated[int, Field(ge=1)] | None = None
    shared: bool = False


class DesiredModel(Message):
    """One model that an agent should serve, or with `shadow` only run beside."""

    model: Id
    version: ModelVersion
    generation: MonotonicCount = 0
    epoch: MonotonicCount = 0
    shadow: bool = False
    policy: UpdatePolicy = Field(default_factory=UpdatePolicy)


class Desired(Message):
    """All that an agent should serve; travels inside a `Blob` as an envelope."""

    agent: Id
    models: Annotated[list[DesiredModel], Field(max_length=256)] = Field(
        default_factory=list
    )


class Command(Message):
    """A hint from the fleet; losing one costs time, never correctness."""

    action: Literal["desired_changed", "cancel"]
    ids: Annotated[list[Id], Field(max_length=1024)] = Field(default_factory=list)
