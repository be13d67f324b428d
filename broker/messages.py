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
MAX_TENSORS: Final = 32
MAX_RANK: Final = 8

Id = Annotated[str, StringConstraints(pattern=ID_PATTERN)]
ModelVersion = Annotated[str, StringConstraints(pattern=VERSION_PATTERN)]
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
    """An agent asks the pool for a part of a model update."""

    want: Literal["desired", "seal", "chunk"]
    model: Id | None = None
    version: ModelVersion | None = None
    index: MonotonicCount = 0


class Blob(Message):
    """The answer to a `Get`, whose fields it repeats so that any order will do."""

    want: Literal["desired", "seal", "chunk"]
    model: Id | None = None
    version: ModelVersion | None = None
    index: MonotonicCount = 0
    status: Literal["ok", "not_found", "failed"] = "ok"
    reason: ShortText | None = None
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


class SlotReport(Message):
    """What one model's slots hold on an agent, and how its last update went."""

    model: Id
    active: ModelVersion | None = None
    previous: ModelVersion | None = None
    staged: ModelVersion | None = None
    state: Literal["idle", "pulling", "testing", "swapped", "refused"] = "idle"
    reason: ShortText | None = None
    generation: MonotonicCount = 0
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


class DesiredModel(Message):
    """One model that an agent should serve."""

    model: Id
    version: ModelVersion
    generation: MonotonicCount = 0


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
