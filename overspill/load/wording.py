"""What a load says to the pool or to an agent, and how it reads what comes back."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Final

import msgpack

from broker.codec import decode, encode, unpack
from broker.messages import Reason, Request, Result, Status
from overspill.load.account import End, Ending
from overspill.load.mix import Planned

_ENDS: Final = {
    Status.OK: End.ANSWERED,
    Status.FAILED: End.FAILED,
    Status.EXPIRED: End.EXPIRED,
}
_ANSWERS: Final = {
    "answered": End.ANSWERED,
    "failed": End.FAILED,
    "expired": End.EXPIRED,
    "refused": End.REFUSED,
}


def request_id(run: str, number: int) -> str:
    """The id of a request: another run's would be an old request sent again."""
    return f"{run}-{number}"


def envelope(run: str, together: Sequence[Planned], *, began_wall_ms: int) -> bytes:
    """Requests as an agent sends them to the pool.

    Args:
        run: what makes the ids of this run its own.
        together: of one model.
        began_wall_ms: Unix time at offset 0.
    """
    return encode(*(_request(run, each, began_wall_ms) for each in together))


def _request(run: str, planned: Planned, began_wall_ms: int) -> Request:
    until_s = planned.offset_s + planned.deadline_s
    payload = planned.payload
    fields: dict[str, Any] = {
        "id": request_id(run, planned.number),
        "device": f"load-{planned.sender}",
        "model": planned.model,
        "reason": Reason.FORCED,
        "expires_at_ms": began_wall_ms + round(until_s * 1000.0),
        "priority": planned.priority,
        "seq": planned.number,
    }
    if payload.medium is not None:
        return Request(**fields, medium=payload.medium)
    return Request(**fields, tensors=dict(payload.tensors or {}))


def read_results(run: str, payload: bytes) -> list[Ending]:
    """The results of this run in an envelope of results; others are left out.

    Raises:
        WireError: it is no such envelope.
    """
    endings = []
    for result in decode(payload, Result).items:
        number = _number(run, result.id)
        if number is not None:
            endings.append(
                Ending(
                    number,
                    _ENDS[result.status],
                    reason=result.reason,
                    batch_size=result.batch_size,
                )
            )
    return endings


def device_message(run: str, planned: Planned, *, spill: bool) -> bytes:
    """A request as a device sends it to its agent, in MessagePack."""
    fields: dict[str, Any] = {
        "id": request_id(run, planned.number),
        "deadline_ms": planned.deadline_s * 1000.0,
        "class": planned.priority.value,
    }
    if spill:
        fields["spill"] = True
    payload = planned.payload
    if payload.medium is not None:
        fields["image"] = payload.medium.data
    else:
        fields["inputs"] = {
            name: {"dtype": each.dtype, "shape": each.shape, "data": each.data}
            for name, each in (payload.tensors or {}).items()
        }
    packed: bytes = msgpack.packb(fields)
    return packed


def read_answer(run: str, payload: bytes) -> Ending | None:
    """The final answer in a message to a device; None when it is none of this run.

    Raises:
        WireError: it is not MessagePack, as everything that answers us is.
    """
    fields = unpack(payload)
    if not isinstance(fields, dict) or not fields.get("final"):
        return None
    number = _number(run, str(fields.get("id")))
    end = _ANSWERS.get(str(fields.get("status")))
    if number is None or end is None:
        return None
    return Ending(
        number, end, reason=_text(fields, "reason"), source=_text(fields, "source")
    )


def _text(fields: dict[str, Any], name: str) -> str | None:
    value = fields.get(name)
    return value if isinstance(value, str) else None


def _number(run: str, id_: str) -> int | None:
    head, _, tail = id_.rpartition("-")
    return int(tail) if head == run and tail.isdecimal() else None
