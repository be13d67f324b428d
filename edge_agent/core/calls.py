"""What a program that embeds the agent asks for, checked as a device's payload is."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TypeAlias

import numpy as np

from broker import topics
from broker.messages import Priority
from edge_agent.core.answers import Answer, Array
from edge_agent.core.arrays import NotAnArray, check_finite
from edge_agent.core.payload import (
    MAX_DEADLINE_MS,
    DeviceRequest,
    Encoding,
    media_type,
)

Inputs: TypeAlias = bytes | Array | Mapping[str, Array]
"""The bytes of a PNG or JPEG, the array of a model's only input, or all by name."""


@dataclass(frozen=True, slots=True)
class Call:
    """The arguments of `Agent.infer`, with nothing left out but the id.

    Attributes:
        only_input: what a bare array is the input of.
    """

    model: str
    inputs: Inputs
    only_input: str
    id: str | None
    device: str
    deadline_s: float | None
    priority: Priority
    forced: bool
    traceparent: str | None
    capture: bool = True


def read_call(call: Call, *, max_payload_bytes: int) -> DeviceRequest | Answer:
    """The request that a call makes, or its refusal and why."""
    tensors, medium = _as_inputs(call)
    try:
        _check(call, tensors)
    except (topics.BadId, NotAnArray) as error:
        return _refused(call, str(error))
    if medium is not None and medium[0] is None:
        return _refused(call, "not a PNG or JPEG image")
    deadline_s = call.deadline_s
    if deadline_s is not None and not 0 < deadline_s <= MAX_DEADLINE_MS / 1000.0:
        return _refused(call, f"a deadline of {deadline_s} s cannot be kept")
    size = _size_of(tensors, medium)
    if size > max_payload_bytes:
        return _refused(call, f"{size} bytes are over the limit of {max_payload_bytes}")
    return DeviceRequest(
        id=call.id,
        device=call.device,
        model=call.model,
        encoding=Encoding.MSGPACK,
        tensors=tensors,
        medium=None if medium is None else (medium[0] or "", medium[1]),
        deadline_ms=None if deadline_s is None else deadline_s * 1000.0,
        priority=call.priority,
        forced=call.forced,
        payload_bytes=size,
        traceparent=call.traceparent,
        capture=call.capture,
    )


def _as_inputs(
    call: Call,
) -> tuple[dict[str, Array] | None, tuple[str | None, bytes] | None]:
    match call.inputs:
        case bytes() as image:
            return None, (media_type(image), image)
        case np.ndarray() as array:
            return {call.only_input: array}, None
        case several:
            return {name: np.asarray(each) for name, each in several.items()}, None


def _check(call: Call, tensors: Mapping[str, Array] | None) -> None:
    topics.check_id("model", call.model)
    topics.check_id("device", call.device)
    if call.id is not None:
        topics.check_id("request", call.id)
    for array in (tensors or {}).values():
        check_finite(array)


def _refused(call: Call, reason: str) -> Answer:
    return Answer.refused(call.id, call.device, call.model, reason=reason)


def _size_of(
    tensors: Mapping[str, Array] | None, medium: tuple[str | None, bytes] | None
) -> int:
    if medium is not None:
        return len(medium[1])
    return sum(each.nbytes for each in (tensors or {}).values())
