"""What a device did and heard, one line of JSON each, written by it and read by us.

Times are milliseconds of the machine's monotonic clock, which every process shares.
"""

from __future__ import annotations

import json
from collections.abc import Iterable
from dataclasses import asdict, dataclass, field
from typing import Final

SENT: Final = "sent"
REPLY: Final = "reply"


@dataclass(frozen=True, slots=True)
class Sent:
    """A request that a device published; `attempt` is 1 unless it was sent again."""

    id: str
    index: int
    truth: int
    stage: str
    at_ms: float
    attempt: int = 1


@dataclass(frozen=True, slots=True)
class Reply:
    """One message that a device heard about a request; fields as on the wire."""

    id: str
    at_ms: float
    status: str
    final: bool
    source: str | None = None
    label: str | None = None
    version: str | None = None
    reason: str | None = None


@dataclass(slots=True)
class Asked:
    """One request and all that was heard of it."""

    device: str
    id: str
    index: int
    truth: int
    stage: str
    at_ms: float
    attempts: int = 1
    replies: list[Reply] = field(default_factory=list)

    @property
    def finals(self) -> list[Reply]:
        """Every reply that claimed to be the last."""
        return [reply for reply in self.replies if reply.final]

    @property
    def outcome(self) -> Reply | None:
        """The reply that ended it; None when it was lost."""
        return self.finals[0] if self.finals else None


def as_line(event: Sent | Reply) -> str:
    """One event as it is written."""
    kind = SENT if isinstance(event, Sent) else REPLY
    return json.dumps({"what": kind, **asdict(event)}, separators=(",", ":"))


def read(device: str, lines: Iterable[str]) -> list[Asked]:
    """A device's requests in the order in which it first sent them.

    A line that was cut off by the end of its writer is left out, and so is a reply
    to something that was never sent.
    """
    asked: dict[str, Asked] = {}
    for line in lines:
        try:
            fields = json.loads(line)
        except ValueError:
            continue
        kind = fields.pop("what")
        if kind == REPLY:
            reply = Reply(**fields)
            if reply.id in asked:
                asked[reply.id].replies.append(reply)
            continue
        sent = Sent(**fields)
        if sent.id in asked:
            asked[sent.id].attempts = sent.attempt
        else:
            asked[sent.id] = Asked(
                device, sent.id, sent.index, sent.truth, sent.stage, sent.at_ms
            )
    return list(asked.values())
