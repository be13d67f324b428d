"""What an operator reads in a dead letter, names, and sends again."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import msgpack
import pytest
from hypothesis import given
from hypothesis import strategies as st

from broker.codec import MAX_ENVELOPE_BYTES, decode, encode, seal_envelope
from broker.dead_letters import POISON, RETRIED, Death, Mishap, headers_of
from broker.messages import Medium, Reason, Request, Tensor
from fleet.core.letters import (
    BadChoice,
    Choice,
    Filter,
    Letter,
    read_duration_s,
    read_letter,
    renewed,
)

NOW_MS = 1_800_000_000_000
KEY = "e1.agent-1.up.req.fashion.hi"
POISONED = headers_of(
    Death(
        POISON,
        "it died",
        at_ms=NOW_MS - 60_000,
        model="fashion",
        version="3",
        worker="w-1",
        history=(Mishap(NOW_MS - 61_000, 8, True, "it died"),),
        answered=True,
    )
)


def request(id_: str = "r-1", device: str = "cam1", **changes: Any) -> Request:
    fields: dict[str, Any] = {
        "id": id_,
        "device": device,
        "model": "fashion",
        "reason": Reason.HARD,
        "expires_at_ms": NOW_MS - 1,
        "tensors": {"x": Tensor(dtype="uint8", shape=[1, 4], data=b"1234")},
    }
    return Request(**{**fields, **changes})


def letter(*items: Request, headers: Mapping[str, Any] = POISONED) -> Letter:
    return read_letter(KEY, encode(*items), headers)


def test_a_letter_says_who_what_and_why() -> None:
    read = letter(request(), headers={**POISONED, RETRIED: 2})
    assert (read.agent, read.model, read.priority) == ("agent-1", "fashion", "hi")
    assert read.name == "agent-1/cam1/r-1"
    assert read.retried == 2
    assert (read.death.cause, read.death.reason) == ("poison", "it died")
    assert read.death.history[0].requests == 8
    (content,) = read.contents
    assert content.inputs == {"x": "uint8 [1, 4], 4 bytes"}
    assert content.reason == "hard"
    assert (read.fault, read.first_bytes) == (None, None)


def test_an_image_is_shown_by_its_size() -> None:
    medium = Medium(media_type="image/png", data=bytes(7))
    read = letter(request(tensors=None, medium=medium))
    assert read.contents[0].inputs == {"image/png": "7 bytes"}


def test_an_envelope_of_several_is_named_by_its_first() -> None:
    read = letter(request("r-1"), request("r-2"), request("r-3"))
    assert read.name == "agent-1/cam1/r-1 and 2 more"


@given(st.binary(max_size=200), st.text(max_size=50))
def test_noise_has_a_name_a_fault_and_first_bytes(body: bytes, key: str) -> None:
    read = read_letter(key, body, {})
    assert read.digest in read.name
    assert Choice.read(read.digest).holds(read)
    assert read.fault
    assert read.first_bytes == body[:64].hex()


@pytest.mark.parametrize(
    ("wanted", "passes"),
    [
        (Filter(), True),
        (Filter(model="fashion"), True),
        (Filter(model="boots"), False),
        (Filter(agent="agent-1", device="cam1"), True),
        (Filter(agent="agent-2"), False),
        (Filter(device="cam2"), False),
        (Filter(reason="IT died"), True),
        (Filter(reason="poison"), True),
        (Filter(reason="full"), False),
        (Filter(older_s=60), True),
        (Filter(older_s=61), False),
    ],
)
def test_letters_are_chosen_by_what_they_say(wanted: Filter, passes: bool) -> None:
    assert wanted.passes(letter(request()), NOW_MS) is passes


def test_what_died_at_no_known_time_is_not_old() -> None:
    assert not Filter(older_s=1).passes(read_letter(KEY, b"", {}), NOW_MS)


@pytest.mark.parametrize(
    ("text", "holds"),
    [
        ("r-1", True),
        ("cam1/r-1", True),
        ("agent-1/cam1/r-1", True),
        ("r-2", False),
        ("cam2/r-1", False),
        ("agent-2/cam1/r-1", False),
    ],
)
def test_a_request_is_named_by_as_much_as_it_takes(text: str, holds: bool) -> None:
    assert Choice.read(text).holds(letter(request())) is holds


@pytest.mark.parametrize("text", ["", "/", "a//b", "a/b/c/d", "r-1/"])
def test_what_names_no_request_is_refused(text: str) -> None:
    with pytest.raises(BadChoice, match="names no request"):
        Choice.read(text)


def test_an_id_of_two_devices_must_be_told_apart() -> None:
    both = [letter(request()), letter(request(device="cam2"))]
    with pytest.raises(BadChoice, match=r"agent-1/cam1/r-1, agent-1/cam2/r-1"):
        Choice.read("r-1").check_one(both)
    Choice.read("cam2/r-1").check_one(both[1:])


def test_the_same_request_that_died_twice_is_one() -> None:
    Choice.read("r-1").check_one([letter(request()), letter(request(attempt=1))])


def test_a_request_that_is_not_there_is_said_to_be_missing() -> None:
    with pytest.raises(BadChoice, match="no dead letter holds request 'r-9'"):
        Choice.read("r-9").check_one([])


def test_a_new_attempt_gets_a_new_deadline_only_when_it_needs_one() -> None:
    later = request("r-2", expires_at_ms=NOW_MS + 5, attempt=3)
    body = renewed(encode(request(), later), now_ms=NOW_MS, within_s=60)
    first, second = decode(body, Request).items
    assert (first.expires_at_ms, first.attempt) == (NOW_MS + 60_000, 1)
    assert (second.expires_at_ms, second.attempt) == (NOW_MS + 5, 4)
    assert first.tensors == request().tensors


def test_what_cannot_be_read_travels_on_beside_what_can() -> None:
    item = msgpack.unpackb(encode(request()))["items"][0]
    poor = msgpack.packb({"id": "poor"})
    body = renewed(seal_envelope(Request, [poor, item]), now_ms=NOW_MS, within_s=60)
    assert msgpack.unpackb(body)["items"][0] == poor
    assert [each.id for each in decode(body, Request).items] == ["r-1"]


@pytest.mark.parametrize(
    "body", [b"", b"\xc1", seal_envelope(Request, [b"\xc1"]), msgpack.packb([])]
)
def test_noise_cannot_be_sent_again(body: bytes) -> None:
    with pytest.raises(BadChoice, match="no request"):
        renewed(body, now_ms=NOW_MS, within_s=60)


def sized(size_bytes: int) -> bytes:
    data = bytes(size_bytes)
    return encode(
        request(tensors={"x": Tensor(dtype="uint8", shape=[size_bytes], data=data)})
    )


def test_an_envelope_that_a_new_attempt_makes_too_large_is_not_sent() -> None:
    about = MAX_ENVELOPE_BYTES - 1000
    whole = sized(about + MAX_ENVELOPE_BYTES - len(sized(about)))
    assert len(whole) == MAX_ENVELOPE_BYTES
    with pytest.raises(BadChoice, match="over the limit"):
        renewed(whole, now_ms=NOW_MS, within_s=60)


@pytest.mark.parametrize(
    ("text", "seconds"),
    [("90", 90), ("90s", 90), ("1.5min", 90), ("2h", 7200), ("7d", 604_800)],
)
def test_lengths_of_time_are_read(text: str, seconds: float) -> None:
    assert read_duration_s(text) == seconds


@pytest.mark.parametrize("text", ["", "s", "-1s", "1w", "1 h", "nan"])
def test_what_is_no_length_of_time_is_refused(text: str) -> None:
    with pytest.raises(BadChoice, match="no length of time"):
        read_duration_s(text)


def test_a_length_of_time_is_bounded() -> None:
    with pytest.raises(BadChoice, match="longer than a year"):
        read_duration_s("9" * 40 + "d")
