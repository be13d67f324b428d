"""An example as its file holds it: what was asked, what both models said. Pure.

One MessagePack map, whole by itself. `inputs` is packed apart, and the SHA-256 of those
bytes is the example's name; whoever reads one checks it.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from hashlib import blake2b, sha256
from typing import Any, Final

import msgpack
from pydantic import Field, ValidationError

from broker.codec import MAX_ENVELOPE_BYTES, WireError, explain, unpack
from broker.messages import (
    MAX_TENSORS,
    EdgeOpinion,
    Id,
    Medium,
    Message,
    ModelVersion,
    MonotonicCount,
    Reason,
    Request,
    Result,
    ShortText,
    Tensor,
)
from cloud_worker.core.examples import Agreement, Entry, Worth

FORMAT: Final = 1
# A request and its result, each of which travelled in an envelope.
MAX_RECORD_BYTES: Final = 2 * MAX_ENVELOPE_BYTES


class Unreadable(Exception):
    """A file is no example, or not the one that its name says."""


class Inputs(Message):
    """What was asked, as it was sent: one of the two."""

    tensors: dict[str, Tensor] | None = None
    medium: Medium | None = None


class CloudAnswer(Message):
    """What the cloud model said."""

    version: ModelVersion
    label: ShortText | None = None
    confidence: float | None = None
    outputs: dict[str, Tensor] = Field(default_factory=dict, max_length=MAX_TENSORS)


class Example(Message):
    """An example that was read.

    `device` is hashed. `at_ms` is Unix time. `margin` is the cloud's, 0..1. `batched`
    says that the first axis of each tensor, as it was sent, is a batch of one.
    """

    model: Id
    inputs: Inputs
    reason: Reason = Field(strict=False)
    edge: EdgeOpinion | None = None
    cloud: CloudAnswer
    margin: float
    device: ShortText
    at_ms: MonotonicCount
    batched: bool = False

    @property
    def agreement(self) -> Agreement:
        """Whether the edge had said the same."""
        said = None if self.edge is None else self.edge.label
        return Agreement.of(said, self.cloud.label)


@dataclass(frozen=True, slots=True)
class Record:
    """An example that is ready to be written: as quotas see it, and its file."""

    example: Example
    entry: Entry
    data: bytes


def pack_inputs(request: Request) -> bytes:
    """The inputs of a request: the same bytes for the same inputs."""
    if request.medium is not None:
        medium = {"media_type": request.medium.media_type, "data": request.medium.data}
        return _packed({"medium": medium})
    tensors = request.tensors or {}
    return _packed({"tensors": {name: _map(tensors[name]) for name in sorted(tensors)}})


def record(
    request: Request,
    result: Result,
    *,
    margin: float,
    device: str,
    at_ms: int,
    batched: bool,
) -> Record:
    """An example made of a request and the answer to it.

    Args:
        request: as it was sent.
        result: ok, of a model that has a version.
        margin: the cloud's.
        device: hashed.
        at_ms: Unix time.
        batched: the first axis of each tensor, as sent, is a batch of one.
    """
    if result.version is None:
        raise AssertionError("an answer names the version that gave it")
    example = Example(
        model=request.model,
        inputs=Inputs(tensors=request.tensors, medium=request.medium),
        reason=request.reason,
        edge=request.edge,
        cloud=CloudAnswer(
            version=result.version,
            label=result.label,
            confidence=result.confidence,
            outputs=result.outputs,
        ),
        margin=margin,
        device=device,
        at_ms=at_ms,
        batched=batched,
    )
    inputs = pack_inputs(request)
    data = _packed(
        {**example.model_dump(mode="python"), "format": FORMAT, "inputs": inputs}
    )
    digest = sha256(inputs).hexdigest()
    return Record(example, entry_of(example, digest, len(data)), data)


def read_record(data: bytes, digest: str) -> Example:
    """The example in a file.

    Raises:
        Unreadable: it is none, or its inputs are not those that its name says.
    """
    try:
        # Its outputs may be larger than a request: the limits of the wire are each's own.
        body = msgpack.unpackb(data, max_bin_len=len(data), max_ext_len=0)
        if not isinstance(body, dict) or body.get("format") != FORMAT:
            raise Unreadable("it is no example of this format")
        packed = body.get("inputs")
        if not isinstance(packed, bytes) or sha256(packed).hexdigest() != digest:
            raise Unreadable("its inputs are not those that its name says")
        return Example.model_validate({**body, "inputs": unpack(packed)})
    except (WireError, ValueError, msgpack.UnpackException) as error:
        why = explain(error) if isinstance(error, ValidationError) else str(error)
        raise Unreadable(f"it is no example: {why}") from error


def entry_of(example: Example, digest: str, size_bytes: int, count: int = 1) -> Entry:
    """What the quotas need to know of an example that was read."""
    worth = Worth(example.agreement, example.margin, example.at_ms, digest)
    return Entry(example.cloud.label, example.reason.value, size_bytes, worth, count)


def hashed_device(key: bytes, agent: str, device: str) -> str:
    """A device's name that says nothing to who lacks the key; 16 hexadecimal digits."""
    return blake2b(f"{agent}/{device}".encode(), key=key, digest_size=8).hexdigest()


def _map(tensor: Tensor) -> Mapping[str, Any]:
    return {"dtype": tensor.dtype, "shape": list(tensor.shape), "data": tensor.data}


def _packed(value: object) -> bytes:
    packed: bytes = msgpack.packb(value)
    return packed
