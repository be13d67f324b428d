"""A spill as an agent accepts it, for tests of what becomes of it."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from broker.messages import Priority, Reason
from edge_agent.core.delivery import Channel, Spill


def open_spill(id_: str, *, now_ms: float, left_ms: float, **more: Any) -> Spill:
    """One that was just accepted and is due at once.

    Args:
        id_: of its request.
        now_ms: when it was accepted.
        left_ms: until its deadline.
        more: what is to be otherwise.
    """
    usual = Spill(
        device="cam1",
        id=id_,
        model="fashion",
        priority=Priority.NORM,
        reason=Reason.HARD,
        channel=Channel.MQTT,
        encoding="json",
        request=b"packed",
        accepted_ms=now_ms,
        deadline_ms=now_ms + left_ms,
        due_ms=now_ms,
    )
    return replace(usual, **more)
