"""The roles of the fleet's metadata: their names, thresholds, lives and sizes."""

from __future__ import annotations

import json
from collections.abc import Mapping
from datetime import UTC, datetime, timedelta
from typing import Final

ROOT: Final = "root"
TARGETS: Final = "targets"
SNAPSHOT: Final = "snapshot"
TIMESTAMP: Final = "timestamp"
OFFLINE: Final = (ROOT, TARGETS)
ONLINE: Final = (SNAPSHOT, TIMESTAMP)
TOP: Final = (ROOT, TIMESTAMP, SNAPSHOT, TARGETS)

OFFLINE_KEYS: Final = 3
OFFLINE_THRESHOLD: Final = 2

DAY_S: Final = 86_400.0
LIFE_S: Final[Mapping[str, float]] = {
    ROOT: 2 * 365 * DAY_S,
    TARGETS: 365 * DAY_S,
    SNAPSHOT: 30 * DAY_S,
    TIMESTAMP: 7 * DAY_S,
}
# The daemon renews when so much of a life is left: it may be down for days.
RENEW_AT: Final = 0.5

# What a client allocates for a file at most. A timestamp is 0.4 KB; a role of a model
# with a hundred seals is 15 KB, a snapshot of a thousand models 40 KB.
MAX_BYTES: Final[Mapping[str, int]] = {
    ROOT: 64 * 1024,
    TIMESTAMP: 8 * 1024,
    SNAPSHOT: 256 * 1024,
    TARGETS: 1024 * 1024,
}
MAX_ROTATIONS: Final = 64

SIGNED_AT: Final = "signed_at_s"
"""Our own field in what is signed: when, in whole seconds since 1970."""

LAST_EPOCH: Final = "last_epoch"
"""Our own field in a model's role: the highest epoch that it ever named."""

_MODEL: Final = "model."


def model_role(model: str) -> str:
    """The delegated role of a model. No model's name holds a dot, so none clashes."""
    return f"{_MODEL}{model}"


def model_of(role: str) -> str | None:
    """The model of a delegated role; None for a top-level one."""
    return role.removeprefix(_MODEL) if role.startswith(_MODEL) else None


def model_paths(model: str) -> list[str]:
    """The targets that a model's role may name: seals of bundles and of folders."""
    return [f"{model}/*", f"cloud/{model}/*"]


def kind(role: str) -> str:
    """The top-level role that has the same life, keys and threshold."""
    return TARGETS if model_of(role) is not None else role


def expiry(role: str, signed_at_s: float) -> datetime:
    """When what is signed then expires, in whole seconds."""
    at = datetime.fromtimestamp(int(signed_at_s), UTC)
    return at + timedelta(seconds=LIFE_S[kind(role)])


def file_name(role: str, version: int) -> str:
    """The metadata file of a role's version."""
    return f"{role}.json" if role == TIMESTAMP else f"{version}.{role}.json"


def signed_at_s(metadata: bytes) -> float:
    """When **verified** metadata says it was signed; 0 when it does not say.

    A time after its own expiry is no time at all.
    """
    signed = json.loads(metadata)["signed"]
    at = signed.get(SIGNED_AT)
    if not isinstance(at, int) or isinstance(at, bool) or at < 0:
        return 0.0
    expires = datetime.fromisoformat(signed["expires"])
    return float(at) if at <= expires.timestamp() else 0.0
