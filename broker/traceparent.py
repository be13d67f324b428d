"""The name of a span as messages carry it. Source: https://www.w3.org/TR/trace-context/."""

from __future__ import annotations

import re
from typing import Final

_TRACEPARENT: Final = re.compile(
    r"(?!ff)[0-9a-f]{2}-(?!0{32})[0-9a-f]{32}-(?!0{16})[0-9a-f]{16}-[0-9a-f]{2}"
)
_SAMPLED: Final = 1


def read_traceparent(value: object) -> str | None:
    """A `traceparent` as its sender wrote it, or None for what is none.

    By the specification what is none begins a trace anew; it never costs the request.
    """
    if isinstance(value, str) and _TRACEPARENT.fullmatch(value):
        return value
    return None


def sampled(value: str | None) -> bool:
    """Whether the sender keeps the spans of this trace."""
    return read_traceparent(value) is not None and bool(int(value[-2:], 16) & _SAMPLED)  # type: ignore[index] # it was read
