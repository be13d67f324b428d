"""Decide what goes on its way again, and what of a dead request is kept."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Final

from broker.codec import WireError, seal_envelope, unpack
from broker.messages import Request
from cloud_worker.core.results import Subject

REPUBLISHED: Final = "x-overspill-republished"
MAX_REPUBLISHED: Final = 3


def times_republished(headers: Mapping[str, Any]) -> int:
    """How often the pool has sent an unrouted message on its way again."""
    count = headers.get(REPUBLISHED, 0)
    return count if isinstance(count, int) and count >= 0 else MAX_REPUBLISHED


def own_envelope(body: bytes, subject: Subject) -> bytes | None:
    """The one request of an envelope in an envelope of its own, as it was sent.

    None when it cannot be found in it.
    """
    try:
        items = unpack(body)["items"]
    except (WireError, KeyError, TypeError):
        return None
    for packed in items:
        if _is_of(packed, subject):
            return body if len(items) == 1 else seal_envelope(Request, [packed])
    return None


def _is_of(packed: bytes, subject: Subject) -> bool:
    try:
        fields = unpack(packed)
        return bool((fields["id"], fields["device"]) == (subject.id, subject.device))
    except (WireError, KeyError, TypeError):
        return False  # a neighbour that is no request
