"""What an operator's commands ask of the running daemon, over its control socket."""

from __future__ import annotations

import base64
import binascii
from collections.abc import Awaitable, Callable
from typing import Any, Final

from edge_agent.adapters.outbox import OutboxFailed
from edge_agent.core.answers import Answer
from edge_agent.core.delivery import Key
from edge_agent.core.payload import (
    BadRequest,
    DeviceRequest,
    Encoding,
    PayloadLimits,
    parse,
    render,
)
from edge_agent.status import AgentStatus

CONTROL_ID: Final = "operator"


class Operator:
    """Answers control requests, each with a JSON object."""

    def __init__(
        self,
        *,
        status: AgentStatus,
        infer: Callable[[DeviceRequest], Awaitable[Answer]],
        cancel: Callable[[Key], Awaitable[bool]],
        drift_seen: Callable[[str], bool],
        limits: PayloadLimits,
    ) -> None:
        self._status = status
        self._infer = infer
        self._cancel = cancel
        self._drift_seen = drift_seen
        self._limits = limits

    async def reply_to(self, request: dict[str, Any]) -> dict[str, Any]:
        """The reply; what went wrong is under `error`."""
        try:
            return await self._do(request)
        except OutboxFailed as error:
            return {"error": str(error)}

    async def _do(self, request: dict[str, Any]) -> dict[str, Any]:
        match request:
            case {"do": "status"}:
                return await self._status.now()
            case {"do": "infer", "model": str() as model, "payload": str() as text}:
                return await self._ask(model, text)
            case {"do": "drift_seen", "model": str() as model}:
                return {"begun": self._drift_seen(model)}
            case {"do": "cancel", "device": str() as device, "id": str() as id_}:
                return {"cancelled": await self._cancel((device, id_))}
            case _:
                return {"error": f"unknown control request {str(request)[:80]}"}

    async def _ask(self, model: str, text: str) -> dict[str, Any]:
        try:
            payload = base64.b64decode(text, validate=True)
            asked = parse(CONTROL_ID, model, payload, limits=self._limits)
        except (binascii.Error, BadRequest) as error:
            return {"error": str(error)}
        answer = await self._infer(asked)
        return {"answer": render(answer, Encoding.JSON).decode()}
