"""One text for one value, so that its digest means something."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any


def canonical(value: Mapping[str, Any]) -> bytes:
    """The one JSON text of `value`: sorted keys, no spaces, ASCII, no NaN."""
    return json.dumps(
        value,
        sort_keys=True,
        separators=(",", ":"),
        ensure_ascii=True,
        allow_nan=False,
    ).encode("ascii")
