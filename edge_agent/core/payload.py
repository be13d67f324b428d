"""What a device sends, and how it is answered. Bounds every length before it allocates.

A payload is the bare bytes of a PNG or a JPEG, or a map in JSON or MessagePack:

    {"id"?: text, "inputs": {name: array} | "image": bytes,
     "deadline_ms"?: number, "class"?: "hi" | "norm" | "bulk", "spill"?: true,
     "capture"?: false, "traceparent"?: text}

An array is a nested list, or `{"dtype", "shape", "data"}` with little-endian bytes.
Bytes are base64 in JSON. Numbers in lists become bool, int64 or float32. Unknown
fields are ignored. Whatever the bytes, the only error is `BadRequest`.
"""

from __future__ import annotations

import base64
import binascii
import json
import math
from collections.abc import Mapping
from dataclasses import dataclass
from enum import StrEnum
from typing import Any, Final

import msgpack
from pydantic import ValidationError

from broker.codec import explain
from broker.messages import MAX_TENSORS, Medium, Priority, Tensor
from broker.topics import BadId, check_id
from broker.traceparent import read_traceparent
from edge_agent.core.answers import Answer, Array
from edge_agent.core.arrays import (
    NotAnArray,
    as_json,
    as_map,
    check_finite,
    from_list,
    from_wire_tensor,
    to_wire_tensor,
)

MAX_DEADLINE_MS: Final = 30 * 24 * 3600 * 1000.0
MAX_NAME: Final = 128
_MAGIC: Final = {b"\x89PNG\r\n\x1a\n": "image/png", b"\xff\xd8\xff": "image/jpeg"}
_JSON_STARTS: Final = (b"{", b"[", b'"', b" ", b"\t", b"\r", b"\n")


class Encoding(StrEnum):
    """How a device speaks; it is answered the same way (an image in JSON)."""

    JSON = "json"
    MSGPACK = "msgpack"
    IMAGE = "image"


class BadRequest(ValueError):
    """The device sent something that is not a request; it must mend it.

    Attributes:
        reason: one sentence for whoever programs the device.
        id: the request's id, when that much was legible.
        encoding: how to answer.
    """

    def __init__(
        self, reason: str, id_: str | None = None, encoding: Encoding = Encoding.JSON
    ) -> None:
        super().__init__(reason)
        self.reason = reason
        self.id = id_
        self.encoding = encoding


@dataclass(frozen=True, slots=True)
class PayloadLimits:
    """What one device message may hold.

    Attributes:
        max_payload_bytes: of the message as it arrived.
        max_list_items: numbers and lists in all nested lists together; larger
            arrays travel as `{"dtype", "shape", "data"}`.
    """

    max_payload_bytes: int = 8 * 1024 * 1024
    max_list_items: int = 1_000_000


@dataclass(frozen=True, slots=True, eq=False)
class DeviceRequest:
    """One request as its device made it.

    Attributes:
        id: None when the device left it to the agent.
        device: who asks.
        model: which model is asked.
        encoding: how to answer.
        tensors: the named inputs; None when it carries an image.
        medium: media type and bytes of its image; None when it carries tensors.
        deadline_ms: from arrival; None when the device set none.
        priority: its class.
        forced: the device asked for the cloud.
        payload_bytes: length of the message as it arrived.
        traceparent: the span that it is a part of; None when it belongs to no trace.
        capture: False forbids the pool to keep it as an example.
    """

    id: str | None
    device: str
    model: str
    encoding: Encoding
    tensors: Mapping[str, Array] | None
    medium: tuple[str, bytes] | None
    deadline_ms: float | None
    priority: Priority
    forced: bool
    payload_bytes: int
    traceparent: str | None = None
    capture: bool = True


def parse(
    device: str, model: str, payload: bytes, *, limits: PayloadLimits | None = None
) -> DeviceRequest:
    """Read one message of `infer/{device}/{model}`.

    Raises:
        BadRequest: it is not a request, or the names are not valid ids.
    """
    bounds = limits or PayloadLimits()
    encoding = detect_encoding(payload)
    fields: dict[str, Any] = {}
    try:
        check_id("device", device)
        check_id("model", model)
        fields = _read(payload, encoding, bounds)
        tensors, medium = _content(fields)
        return DeviceRequest(
            id=_id(fields),
            device=device,
            model=model,
            encoding=encoding,
            tensors=tensors,
            medium=medium,
            deadline_ms=_deadline_ms(fields),
            priority=_priority(fields),
            forced=_flag(fields, "spill", unsaid=False),
            payload_bytes=len(payload),
            traceparent=read_traceparent(fields.get("traceparent")),
            capture=_flag(fields, "capture", unsaid=True),
        )
    except BadId as error:
        raise BadRequest(str(error), _legible_id(fields), encoding) from error
    except BadRequest as error:
        raise BadRequest(error.reason, _legible_id(fields), encoding) from error


def detect_encoding(payload: bytes) -> Encoding:
    """How a payload is written, by its first bytes; unreadable ones count as JSON."""
    if media_type(payload) is not None:
        return Encoding.IMAGE
    first = payload[:1]
    # A MessagePack map starts with 0x80..0x8f, 0xde or 0xdf, which no JSON does.
    if first and (0x80 <= first[0] <= 0x8F or first[0] in (0xDE, 0xDF)):
        return Encoding.MSGPACK
    return Encoding.JSON


def render(answer: Answer, encoding: Encoding) -> bytes:
    """An answer in the encoding of its request; JSON for an image.

    Every field is there but `retry_after_s` and `outputs`, which stand only where the
    answer has them: outputs in JSON as nested lists when they are short and finite, and
    as `{"dtype", "shape", "data"}` otherwise and in MessagePack.
    """
    fields: dict[str, Any] = {
        "id": answer.id,
        "device": answer.device,
        "status": answer.status.value,
        "source": answer.source.value if answer.source else None,
        "final": answer.final,
        "label": answer.label,
        "confidence": _finite(answer.confidence),
        "model": answer.model,
        "version": answer.version,
        "reason": answer.reason,
        "ms": _finite(answer.ms),
    }
    if answer.retry_after_s is not None:
        fields["retry_after_s"] = answer.retry_after_s
    binary = encoding is Encoding.MSGPACK
    if answer.outputs is not None:
        show = as_map if binary else as_json
        fields["outputs"] = {name: show(each) for name, each in answer.outputs.items()}
    if binary:
        packed: bytes = msgpack.packb(fields, unicode_errors="replace")
        return packed
    return json.dumps(fields, allow_nan=False, separators=(",", ":")).encode()


def media_type(data: bytes) -> str | None:
    """`image/png` or `image/jpeg` by the first bytes; None for anything else."""
    return next(
        (kind for magic, kind in _MAGIC.items() if data.startswith(magic)), None
    )


def to_wire_inputs(
    request: DeviceRequest,
) -> tuple[dict[str, Tensor] | None, Medium | None]:
    """The inputs of a request as they travel to the pool; exactly one is not None."""
    if request.medium is not None:
        kind, data = request.medium
        return None, Medium(media_type=kind, data=data)
    tensors = request.tensors or {}
    return {name: to_wire_tensor(array) for name, array in tensors.items()}, None


def from_wire_outputs(outputs: Mapping[str, Tensor]) -> dict[str, Array]:
    """The pool's outputs as arrays, read-only."""
    return {name: from_wire_tensor(tensor) for name, tensor in outputs.items()}


def _read(payload: bytes, encoding: Encoding, limits: PayloadLimits) -> dict[str, Any]:
    if len(payload) > limits.max_payload_bytes:
        raise BadRequest(
            f"payload of {len(payload)} bytes is over the limit of "
            f"{limits.max_payload_bytes}"
        )
    match encoding:
        case Encoding.IMAGE:
            return {"image": payload}
        case Encoding.JSON:
            return _read_json(payload, limits)
        case Encoding.MSGPACK:
            return _read_msgpack(payload, limits)


def _read_json(payload: bytes, limits: PayloadLimits) -> dict[str, Any]:
    if not payload.startswith(_JSON_STARTS):
        raise BadRequest("payload is none of JSON, MessagePack, PNG and JPEG")
    # Counted before anything is built: each makes at least one Python object.
    parts = sum(payload.count(each) for each in (b",", b"[", b"{"))
    if parts > limits.max_list_items:
        raise _too_many_items(limits)
    try:
        body = json.loads(payload.decode(), parse_constant=_refuse_constant)
    except UnicodeDecodeError as error:
        raise BadRequest(f"JSON is not UTF-8 at byte {error.start}") from error
    except RecursionError as error:
        raise BadRequest("JSON is nested too deeply") from error
    except BadRequest:
        raise
    except ValueError as error:
        raise BadRequest(f"not JSON: {_one_line(error)}") from error
    return _must_be_map(body)


def _read_msgpack(payload: bytes, limits: PayloadLimits) -> dict[str, Any]:
    held = 0

    def count(part: Any) -> Any:  # noqa: ANN401 - msgpack's hook type
        nonlocal held
        held += 1 + len(part)
        if held > limits.max_list_items:
            raise _too_many_items(limits)
        return part

    try:
        body = msgpack.unpackb(
            payload,
            raw=False,
            strict_map_key=True,
            list_hook=count,
            object_hook=count,
            max_str_len=64 * 1024,
            max_bin_len=len(payload),
            max_array_len=limits.max_list_items,
            max_map_len=256,
            max_ext_len=0,
        )
    except BadRequest:
        raise
    except (ValueError, TypeError, msgpack.UnpackException) as error:
        raise BadRequest(f"not MessagePack: {_one_line(error)}") from error
    return _must_be_map(body)


def _must_be_map(body: object) -> dict[str, Any]:
    if not isinstance(body, dict):
        raise BadRequest(
            f"a request is a map with 'inputs' or 'image', got {type(body).__name__}"
        )
    return body


def _content(
    fields: dict[str, Any],
) -> tuple[dict[str, Array] | None, tuple[str, bytes] | None]:
    inputs, image = fields.get("inputs"), fields.get("image")
    if (inputs is None) == (image is None):
        raise BadRequest("a request carries either 'inputs' or 'image'")
    if image is not None:
        data = _bytes("image", image)
        kind = media_type(data)
        if kind is None:
            raise BadRequest("'image' is neither a PNG nor a JPEG")
        return None, (kind, data)
    if not isinstance(inputs, dict) or not 0 < len(inputs) <= MAX_TENSORS:
        raise BadRequest(f"'inputs' is a map of 1 to {MAX_TENSORS} named arrays")
    return {_name(name): _array(name, each) for name, each in inputs.items()}, None


def _array(name: str, value: object) -> Array:
    try:
        if isinstance(value, dict):
            tensor = Tensor.model_validate(
                {**value, "data": _bytes("data", value.get("data"))}
            )
            array = from_wire_tensor(tensor)
        else:
            array = from_list(value)
        check_finite(array)
    except ValidationError as error:
        raise BadRequest(f"input {name!r}: {explain(error)}") from error
    except (BadRequest, NotAnArray) as error:
        raise BadRequest(f"input {name!r}: {error}") from error
    return array


def _bytes(what: str, value: object) -> bytes:
    if isinstance(value, bytes):
        return value
    if not isinstance(value, str):
        raise BadRequest(
            f"{what!r} must be bytes (base64 in JSON), got {type(value).__name__}"
        )
    try:
        return base64.b64decode(value, validate=True)
    except (binascii.Error, ValueError) as error:
        raise BadRequest(f"{what!r} is not base64: {_one_line(error)}") from error


def _name(name: str) -> str:
    if not 0 < len(name) <= MAX_NAME or not name.isprintable():
        raise BadRequest(
            f"input name {name[:40]!r} must be 1 to {MAX_NAME} printable characters"
        )
    return name


def _id(fields: dict[str, Any]) -> str | None:
    value = fields.get("id")
    if value is None:
        return None
    if not isinstance(value, str):
        raise BadRequest(f"'id' is text, got {type(value).__name__}")
    return check_id("id", value)


def _legible_id(fields: dict[str, Any]) -> str | None:
    try:
        return _id(fields)
    except (BadRequest, BadId):
        return None


def _deadline_ms(fields: dict[str, Any]) -> float | None:
    value = fields.get("deadline_ms")
    if value is None:
        return None
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise BadRequest(f"'deadline_ms' is a number, got {type(value).__name__}")
    if not 0 < value <= MAX_DEADLINE_MS:
        raise BadRequest(f"'deadline_ms' is over 0 and at most {MAX_DEADLINE_MS:.0f}")
    return float(value)


def _priority(fields: dict[str, Any]) -> Priority:
    value = fields.get("class", Priority.NORM.value)
    try:
        return Priority(value)
    except ValueError as error:
        known = ", ".join(Priority)
        raise BadRequest(f"'class' is one of {known}, got {value!r:.40}") from error


def _flag(fields: dict[str, Any], name: str, *, unsaid: bool) -> bool:
    value = fields.get(name, unsaid)
    if not isinstance(value, bool):
        raise BadRequest(f"{name!r} is true or false, got {type(value).__name__}")
    return value


def _finite(value: float | None) -> float | None:
    return value if value is not None and math.isfinite(value) else None


def _refuse_constant(name: str) -> None:
    raise BadRequest(f"JSON holds {name}, which is not a number")


def _too_many_items(limits: PayloadLimits) -> BadRequest:
    return BadRequest(
        f"lists of more than {limits.max_list_items} items; "
        "send large arrays as {dtype, shape, data}"
    )


def _one_line(error: BaseException) -> str:
    return (str(error) or type(error).__name__).splitlines()[0][:200]
