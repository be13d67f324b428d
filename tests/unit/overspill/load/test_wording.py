from __future__ import annotations

import msgpack
import pytest

from broker.codec import WireError, decode, encode
from broker.messages import Medium, Priority, Request, Result, Status, Tensor
from edge_agent.core.payload import parse
from overspill.load.account import End, Ending
from overspill.load.mix import Payload, Planned
from overspill.load.wording import (
    device_message,
    envelope,
    read_answer,
    read_results,
)

TENSOR = Tensor(dtype="float32", shape=[1, 2], data=bytes(8))
ARRAYS = Payload("a", tensors={"x": TENSOR})
IMAGE = Payload("i", medium=Medium(media_type="image/png", data=b"\x89PNG\r\n\x1a\n"))


def planned(number: int, payload: Payload = ARRAYS) -> Planned:
    return Planned(number, 1.5, 3, "m", Priority.HI, 0.25, payload)


def test_requests_expire_their_deadline_after_the_intended_time() -> None:
    sent = envelope("load-1", [planned(0), planned(1, IMAGE)], began_wall_ms=1_000)

    first, second = decode(sent, Request).items
    assert (first.id, first.device, first.model) == ("load-1-0", "load-3", "m")
    assert first.expires_at_ms == 1_000 + 1_500 + 250
    assert first.tensors == {"x": TENSOR}
    assert second.medium == IMAGE.medium


@pytest.mark.parametrize("payload", [ARRAYS, IMAGE])
def test_an_agent_understands_what_a_device_of_ours_sends(payload: Payload) -> None:
    message = device_message("load-1", planned(7, payload), spill=True)

    read = parse("load-1-3", "m", message)

    assert (read.id, read.deadline_ms, read.forced) == ("load-1-7", 250.0, True)
    assert read.priority is Priority.HI
    assert (read.medium is None) == (payload.medium is None)


def test_only_the_results_of_this_run_are_read() -> None:
    def result(id_: str, status: Status, reason: str | None = None) -> Result:
        return Result(id=id_, device="d", model="m", status=status, reason=reason)

    heard = encode(
        result("load-1-4", Status.OK),
        result("load-2-5", Status.OK),
        result("load-1-x", Status.OK),
        result("load-1-6", Status.FAILED, "overloaded: …"),
    )

    assert read_results("load-1", heard) == [
        Ending(4, End.ANSWERED),
        Ending(6, End.FAILED, "overloaded: …"),
    ]


def test_an_answer_counts_when_it_is_final() -> None:
    def answer(**fields: object) -> bytes:
        packed: bytes = msgpack.packb({"id": "load-1-4", **fields})
        return packed

    accepted = answer(status="accepted", final=False)
    final = answer(status="answered", final=True, source="edge")

    assert read_answer("load-1", accepted) is None
    assert read_answer("load-1", final) == Ending(4, End.ANSWERED, source="edge")
    assert read_answer("load-2", final) is None


def test_what_is_no_answer_is_said_to_be_none() -> None:
    with pytest.raises(WireError):
        read_answer("load-1", b"\xc1")
