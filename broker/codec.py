"""Messages to bytes and back. Bounds every length before it allocates anything.

An envelope is a MessagePack map `{"v": 1, "kind": "req", "items": [bytes, ...]}`;
each item is itself MessagePack. Packed items join into an envelope without being
packed again, and one malformed item never costs its neighbours.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final, Generic, TypeVar

import msgpack
from pydantic import ValidationError

from broker.messages import (
    Blob,
    Command,
    Desired,
    Get,
    Message,
    Report,
    Request,
    Result,
)

WIRE_VERSION: Final = 1
MAX_ENVELOPE_BYTES: Final = 16 * 1024 * 1024
MAX_ITEMS: Final = 1024
MAX_KEYS: Final = 256
MAX_TEXT_BYTES: Final = 64 * 1024
# Lists and maps in one item or envelope. An empty list is one byte on the wire and
# 64 in memory: without this, 16 MB of them take 1 GB and seconds.
MAX_PARTS: Final = 1024
SHORT_BYTES: Final = 8 * 1024

KINDS: Final[dict[type[Message], str]] = {
    Request: "req",
    Result: "res",
    Get: "get",
    Blob: "blob",
    Report: "tel",
    Command: "cmd",
    Desired: "desired",
}

M = TypeVar("M", bound=Message)


class WireError(ValueError):
    """The peer sent something that is not a message of this wire."""


class UnknownVersion(WireError):
    """The peer speaks a version of the wire that this program does not."""


@dataclass(frozen=True, slots=True)
class BadItem:
    """An item that could not be read: where, why, and its id when that was legible."""

    index: int
    reason: str
    id: str | None = None
    device: str | None = None


@dataclass(frozen=True, slots=True)
class Envelope(Generic[M]):
    """An opened envelope: the good items in order, and the bad ones."""

    items: tuple[M, ...]
    bad: tuple[BadItem, ...] = ()


def _refuse_ext(code: int, _data: bytes) -> Any:  # noqa: ANN401 - msgpack's hook type
    raise WireError(f"MessagePack extension type {code} is not part of the wire")


class _PartCounter:
    """Bounds the lists and maps of one value, each of which costs memory of its own."""

    def __init__(self) -> None:
        self._parts = 0

    def __call__(self, part: Any) -> Any:  # noqa: ANN401 - msgpack's hook type
        self._parts += 1
        if self._parts > MAX_PARTS:
            raise WireError(f"more than {MAX_PARTS} lists and maps in one value")
        return part


def unpack(payload: bytes, *, max_bytes: int = MAX_ENVELOPE_BYTES) -> Any:  # noqa: ANN401
    """Read one MessagePack value of at most `max_bytes`.

    Raises:
        WireError: too long, truncated, trailing bytes, too many lists and maps, or
            not MessagePack.
    """
    if len(payload) > max_bytes:
        raise WireError(f"{len(payload)} bytes is over the limit of {max_bytes}")
    # A short payload cannot hold enough parts to matter, and counting costs a call each.
    count = None if len(payload) <= SHORT_BYTES else _PartCounter()
    try:
        return msgpack.unpackb(
            payload,
            raw=False,
            strict_map_key=True,
            ext_hook=_refuse_ext,
            list_hook=count,
            object_hook=count,
            max_str_len=MAX_TEXT_BYTES,
            max_bin_len=max_bytes,
            max_array_len=max(MAX_ITEMS, MAX_KEYS),
            max_map_len=MAX_KEYS,
            max_ext_len=0,
        )
    except WireError:
        raise
    except (ValueError, TypeError, msgpack.UnpackException) as error:
        raise WireError(
            f"not MessagePack of this wire: {_first_line(error)}"
        ) from error


def pack(message: Message) -> bytes:
    """One message as a packed item: the fields that were set, the rest by default."""
    return msgpack.packb(_fields(message), default=_fields)  # type: ignore[no-any-return]


def pack_fields(fields: Mapping[str, object]) -> bytes:
    """The fields of a message as a packed item; the caller knows that they are right."""
    return msgpack.packb(fields)  # type: ignore[no-any-return]


def repack(packed: bytes, changes: Mapping[str, object]) -> bytes:
    """A packed message of this program's own with some of its fields changed.

    The message was checked when it was made, so it is not checked again.

    Raises:
        WireError: it is no packed message any more.
    """
    fields = unpack(packed)
    if not isinstance(fields, dict):
        raise WireError("a packed message is a map")
    return msgpack.packb({**fields, **changes})  # type: ignore[no-any-return]


def _fields(message: object) -> dict[str, Any]:
    # By hand: pydantic's own dump costs three times as much on a spill's path.
    if not isinstance(message, Message):
        raise TypeError(f"{type(message).__name__} is not part of the wire")
    named = message.__pydantic_fields_set__
    return {name: value for name, value in message.__dict__.items() if name in named}


def seal_envelope(kind: type[Message], packed: Sequence[bytes]) -> bytes:
    """Join packed items of one kind into an envelope."""
    if not 0 < len(packed) <= MAX_ITEMS:
        raise ValueError(f"an envelope holds 1 to {MAX_ITEMS} items, not {len(packed)}")
    return msgpack.packb(  # type: ignore[no-any-return]
        {"v": WIRE_VERSION, "kind": KINDS[kind], "items": list(packed)}
    )


def encode(*messages: Message) -> bytes:
    """Messages of one kind as an envelope."""
    return seal_envelope(type(messages[0]), [pack(each) for each in messages])


def decode(payload: bytes, kind: type[M]) -> Envelope[M]:
    """Open an envelope that must hold `kind`.

    Raises:
        UnknownVersion: the envelope names a version this program does not speak.
        WireError: it is not an envelope of that kind at all. A single bad item
            does not raise; it is returned in `Envelope.bad`.
    """
    body = unpack(payload)
    if not isinstance(body, dict):
        raise WireError(f"an envelope is a map, got {type(body).__name__}")
    version = body.get("v")
    if version != WIRE_VERSION:
        raise UnknownVersion(
            f"envelope version {_shown(version)} is unknown; "
            f"this program speaks version {WIRE_VERSION}"
        )
    if body.get("kind") != KINDS[kind]:
        raise WireError(
            f"expected an envelope of {KINDS[kind]!r}, got {_shown(body.get('kind'))}"
        )
    packed = body.get("items")
    if not isinstance(packed, list) or not packed:
        raise WireError("an envelope holds a list of at least one item")
    good: list[M] = []
    bad: list[BadItem] = []
    for index, item in enumerate(packed):
        read = _read_item(index, item, kind)
        if isinstance(read, BadItem):
            bad.append(read)
        else:
            good.append(read)
    return Envelope(tuple(good), tuple(bad))


def _read_item(index: int, item: object, kind: type[M]) -> M | BadItem:
    if not isinstance(item, bytes):
        return BadItem(index, f"an item is bytes, got {type(item).__name__}")
    try:
        fields = unpack(item)
    except WireError as error:
        return BadItem(index, str(error))
    try:
        return kind.model_validate(fields)
    except ValidationError as error:
        return BadItem(
            index,
            explain(error),
            _legible(fields, "id"),
            _legible(fields, "device"),
        )


def explain(error: ValidationError) -> str:
    """The first fault of a validation in one line: where, what."""
    fault = error.errors(include_url=False, include_input=False)[0]
    where = ".".join(str(part) for part in fault["loc"]) or "message"
    more = error.error_count() - 1
    return f"{where}: {fault['msg']}" + (f" (and {more} more)" if more else "")


def _legible(fields: object, key: str) -> str | None:
    value = fields.get(key) if isinstance(fields, dict) else None
    return value if isinstance(value, str) and 0 < len(value) <= 64 else None


def _shown(value: object) -> str:
    return repr(value)[:40]


def _first_line(error: BaseException) -> str:
    return (str(error) or type(error).__name__).splitlines()[0][:200]
