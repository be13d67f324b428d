"""Find whom to answer in what cannot be decoded as requests."""

from __future__ import annotations

import re
from typing import Final

from broker.codec import MAX_ITEMS, WireError, unpack
from broker.messages import ID_PATTERN
from cloud_worker.core.results import Subject

UNKNOWN_DEVICE: Final = "unknown"
_ID: Final = re.compile(ID_PATTERN.removesuffix("$") + r"\Z")


def legible_subject(id_: object, device: object, model: str) -> Subject | None:
    """Whom a bad item was from, if its id can be read; the device may be unknown."""
    if not _is_id(id_):
        return None
    return Subject(str(id_), str(device) if _is_id(device) else UNKNOWN_DEVICE, model)


def legible_subjects(body: bytes, model: str) -> list[Subject]:
    """Whoever can be told of an envelope that is not one of ours, perhaps nobody.

    Reads the ids of items in an envelope of another version or kind, and of a bare
    request without an envelope.
    """
    try:
        fields = unpack(body)
    except WireError:
        return []
    if not isinstance(fields, dict):
        return []
    items = fields.get("items")
    found = [_subject(fields, model)]
    if isinstance(items, list):
        found.extend(_packed_subject(each, model) for each in items[:MAX_ITEMS])
    return [each for each in found if each is not None]


def _packed_subject(item: object, model: str) -> Subject | None:
    if isinstance(item, bytes):
        try:
            item = unpack(item)
        except WireError:
            return None
    return _subject(item, model)


def _subject(fields: object, model: str) -> Subject | None:
    if not isinstance(fields, dict):
        return None
    return legible_subject(fields.get("id"), fields.get("device"), model)


def _is_id(value: object) -> bool:
    return isinstance(value, str) and _ID.match(value) is not None
