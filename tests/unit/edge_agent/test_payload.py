from __future__ import annotations

import base64
import json
import struct
from typing import Any

import msgpack
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from broker.messages import ITEM_BYTES, Priority
from edge_agent.core.answers import Answer, AnswerStatus, Source
from edge_agent.core.arrays import LIST_ITEMS_IN_JSON, NotAnArray, to_wire_tensor
from edge_agent.core.payload import (
    BadRequest,
    DeviceRequest,
    Encoding,
    PayloadLimits,
    from_wire_outputs,
    parse,
    render,
    to_wire_inputs,
)

PNG = b"\x89PNG\r\n\x1a\n" + b"rest"
JPEG = b"\xff\xd8\xff\xe0" + b"rest"
X = {"inputs": {"x": [1, 2]}}


def read(body: object, **limits: int) -> DeviceRequest:
    payload = body if isinstance(body, bytes) else json.dumps(body).encode()
    return parse("cam1", "fashion", payload, limits=PayloadLimits(**limits))


def refusal(body: object, **limits: int) -> BadRequest:
    with pytest.raises(BadRequest) as caught:
        read(body, **limits)
    assert caught.value.reason
    assert "\n" not in caught.value.reason
    caught.value.reason.encode()
    return caught.value


def both(body: dict[str, Any]) -> tuple[bytes, bytes]:
    """The same request in JSON and in MessagePack."""

    def as_json(value: object) -> str:
        assert isinstance(value, bytes)
        return base64.b64encode(value).decode()

    return json.dumps(body, default=as_json).encode(), msgpack.packb(body)


# --- what is taken ------------------------------------------------------------------


@pytest.mark.parametrize(
    ("payload", "kind"), [(PNG, "image/png"), (JPEG, "image/jpeg")]
)
def test_the_bare_bytes_of_an_image_are_a_request(payload: bytes, kind: str) -> None:
    request = read(payload)
    assert request.encoding is Encoding.IMAGE
    assert request.medium == (kind, payload)
    assert request.tensors is None
    assert request.id is None
    assert request.priority is Priority.NORM
    assert request.payload_bytes == len(payload)


def test_every_field_is_read_alike_from_json_and_messagepack() -> None:
    body = {
        "id": "req-1",
        "inputs": {"x": [[1.5, 2.0]]},
        "deadline_ms": 250,
        "class": "hi",
        "spill": True,
        "capture": False,
        "unknown": {"later": [1, 2, {"a": None}]},
    }
    for payload, encoding in zip(
        both(body), (Encoding.JSON, Encoding.MSGPACK), strict=True
    ):
        request = read(payload)
        assert request.encoding is encoding
        assert (request.id, request.device, request.model) == (
            "req-1",
            "cam1",
            "fashion",
        )
        assert request.deadline_ms == 250.0
        assert request.priority is Priority.HI
        assert request.forced
        assert not request.capture
        assert request.tensors is not None
        assert request.tensors["x"].tolist() == [[1.5, 2.0]]
        assert request.tensors["x"].dtype == np.float32


def test_an_image_in_a_map_is_the_same_image() -> None:
    for payload in both({"id": "a", "image": PNG}):
        assert read(payload).medium == ("image/png", PNG)


@pytest.mark.parametrize(
    ("value", "dtype"),
    [
        (3, np.int64),
        ([[1, 2], [3, 4]], np.int64),
        ([1, 2.5], np.float32),
        ([True, False], np.bool_),
        ([[[]]], np.float32),
    ],
)
def test_lists_become_bools_ints_or_floats(value: object, dtype: type) -> None:
    tensors = read({"inputs": {"x": value}}).tensors
    assert tensors is not None
    assert tensors["x"].dtype == dtype
    assert tensors["x"].tolist() == value


def test_white_space_before_json_is_allowed() -> None:
    assert read(b" \r\n\t" + json.dumps(X).encode()).encoding is Encoding.JSON


arrays = hnp.arrays(
    st.sampled_from(sorted(ITEM_BYTES)).map(np.dtype),
    hnp.array_shapes(min_dims=0, max_dims=4, min_side=0, max_side=4),
)


def same(a: np.ndarray, b: np.ndarray) -> bool:
    return a.dtype == b.dtype and a.shape == b.shape and a.tobytes() == b.tobytes()


@given(arrays)
def test_typed_arrays_arrive_bit_for_bit_and_travel_on_the_same(
    array: np.ndarray,
) -> None:
    finite = array.dtype.kind != "f" or bool(np.isfinite(array).all())
    typed = {
        "dtype": array.dtype.name,
        "shape": list(array.shape),
        "data": array.tobytes(),
    }
    for payload in both({"inputs": {"x": typed}}):
        if not finite:
            assert "NaN or infinity" in refusal(payload).reason
            continue
        request = read(payload)
        assert request.tensors is not None
        assert same(request.tensors["x"], array)
        wire, medium = to_wire_inputs(request)
        assert medium is None
        assert wire is not None
        assert same(from_wire_outputs(wire)["x"], array)


def test_an_image_travels_as_it_came() -> None:
    tensors, medium = to_wire_inputs(read(JPEG))
    assert tensors is None
    assert medium is not None
    assert (medium.media_type, medium.data) == ("image/jpeg", JPEG)


def test_big_endian_and_strided_arrays_travel_as_little_endian_rows() -> None:
    array = np.arange(6, dtype=">i4").reshape(2, 3).T
    back = from_wire_outputs({"x": to_wire_tensor(array)})["x"]
    assert back.tolist() == [[0, 3], [1, 4], [2, 5]]


def test_a_byte_that_is_no_bool_is_read_as_true() -> None:
    typed = {"dtype": "bool", "shape": [3], "data": b"\x00\x01\x07"}
    tensors = read(msgpack.packb({"inputs": {"x": typed}})).tensors
    assert tensors is not None
    assert tensors["x"].tolist() == [False, True, True]
    assert tensors["x"].tobytes() == b"\x00\x01\x01"


@pytest.mark.parametrize(
    "array", [np.array(["a"]), np.array([1 + 2j]), np.zeros((1,) * 9)]
)
def test_what_is_not_numbers_of_the_wire_cannot_travel(array: np.ndarray) -> None:
    with pytest.raises(NotAnArray, match="cannot travel"):
        to_wire_tensor(array)


# --- what is refused ----------------------------------------------------------------


@pytest.mark.parametrize(
    ("body", "said"),
    [
        (b"", "none of JSON, MessagePack, PNG and JPEG"),
        (b"hello", "none of JSON"),
        (b"GIF89a", "none of JSON"),
        (b"{", "not JSON"),
        (b'{"inputs": {"x": [1]}} trailing', "not JSON"),
        (b'{"inputs": {"x": "\xff"}}', "not UTF-8 at byte 18"),
        (b'{"inputs": {"x": [NaN]}}', "NaN, which is not a number"),
        (b'{"inputs": {"x": [-Infinity]}}', "-Infinity"),
        (b'{"deadline_ms": Infinity, "inputs": {"x": [1]}}', "Infinity"),
        (b"[" * 100_000, "nested too deeply|not JSON"),
        (b'{"a":' * 100_000, "nested too deeply|not JSON"),
        (b'{"inputs": {"x": ' + b"9" * 5000 + b"}}", "not JSON"),
        (b'{"inputs": {"x": 1e999}}', "beyond float32"),
        (b'{"inputs": {"x": [1e39]}}', "beyond float32"),
        (b'{"inputs": {"x": [123456789012345678901234567890]}}', "at most 64 bits"),
        (b"[1, 2]", "a map with 'inputs' or 'image', got list"),
        (b'"text"', "got str"),
        ({}, "either 'inputs' or 'image'"),
        ({**X, "image": "aGk="}, "either 'inputs' or 'image'"),
        ({"inputs": {}}, "1 to 32 named arrays"),
        ({"inputs": [1, 2]}, "1 to 32 named arrays"),
        ({"inputs": {f"x{n}": 1 for n in range(33)}}, "1 to 32 named arrays"),
        ({"inputs": {"": [1]}}, "printable"),
        ({"inputs": {"a\nb": [1]}}, "printable"),
        ({"inputs": {"\ud800": [1]}}, "printable"),
        ({"inputs": {"n" * 129: [1]}}, "printable"),
        ({"inputs": {"x": [[1, 2], [3]]}}, "input 'x': lists are ragged"),
        ({"inputs": {"x": [[1, 2], 3]}}, "ragged"),
        ({"inputs": {"x": [[[[[[[[[1]]]]]]]]]}}, "nested deeper than 8"),
        ({"inputs": {"x": "text"}}, "something else than numbers"),
        ({"inputs": {"x": ["1", "2"]}}, "something else than numbers"),
        ({"inputs": {"x": [1, None]}}, "something else than numbers"),
        ({"inputs": {"x": None}}, "something else than numbers"),
        ({"inputs": {"x": [{}]}}, "something else than numbers"),
        ({"inputs": {"x": {}}}, "'data' must be bytes"),
        ({"inputs": {"x": {"data": "AAAA"}}}, "dtype"),
        ({"image": 5}, "'image' must be bytes"),
        ({"image": "not base64!"}, "'image' is not base64"),
        ({"image": "aGk"}, "'image' is not base64"),
        ({"image": "aGk="}, "neither a PNG nor a JPEG"),
        ({"image": "é"}, "'image' is not base64"),
        ({**X, "id": 7}, "'id' is text"),
        ({**X, "id": "a.b"}, "no dots, no slashes"),
        ({**X, "id": "a/b"}, "no dots, no slashes"),
        ({**X, "id": "A"}, "not a valid id"),
        ({**X, "id": ""}, "not a valid id"),
        ({**X, "id": "a\n"}, "not a valid id"),
        ({**X, "id": "a" * 65}, "not a valid id"),
        ({**X, "deadline_ms": 0}, "'deadline_ms' is over 0"),
        ({**X, "deadline_ms": -1}, "'deadline_ms' is over 0"),
        ({**X, "deadline_ms": 1e300}, "'deadline_ms' is over 0"),
        ({**X, "deadline_ms": True}, "'deadline_ms' is a number"),
        ({**X, "deadline_ms": "5"}, "'deadline_ms' is a number"),
        ({**X, "class": "urgent"}, "'class' is one of hi, norm, bulk"),
        ({**X, "class": ["hi"]}, "'class' is one of"),
        ({**X, "spill": "yes"}, "'spill' is true or false"),
        ({**X, "capture": "no"}, "'capture' is true or false"),
    ],
)
def test_a_wrong_request_is_refused_in_words(body: object, said: str) -> None:
    error = refusal(body)
    assert any(each in error.reason for each in said.split("|")), error.reason
    assert error.encoding is Encoding.JSON


@pytest.mark.parametrize(
    ("typed", "said"),
    [
        ({"dtype": "float32", "shape": [2], "data": b"\0" * 7}, "needs 8 bytes, got 7"),
        ({"dtype": "float32", "shape": [2**62, 2**62], "data": b""}, "needs"),
        ({"dtype": "float32", "shape": [-1], "data": b""}, "negative"),
        ({"dtype": "float32", "shape": [1] * 9, "data": b"\0" * 4}, "shape"),
        ({"dtype": "float32", "shape": ["1"], "data": b"\0" * 4}, "shape"),
        ({"dtype": "float32", "shape": [1.0], "data": b"\0" * 4}, "shape"),
        ({"dtype": "float32", "shape": 4, "data": b"\0" * 16}, "shape"),
        (
            {"dtype": "object", "shape": [1], "data": b"\0" * 8},
            "'object' is not one of",
        ),
        ({"dtype": ">f4", "shape": [1], "data": b"\0" * 4}, "is not one of"),
        ({"dtype": 1, "shape": [1], "data": b"\0"}, "dtype"),
        ({"dtype": "float32", "shape": [1], "data": struct.pack("<f", np.nan)}, "NaN"),
        ({"dtype": "float64", "shape": [1], "data": struct.pack("<d", np.inf)}, "NaN"),
    ],
)
def test_a_wrong_typed_array_is_refused_by_its_name(
    typed: dict[str, Any], said: str
) -> None:
    for payload in both({"id": "ok", "inputs": {"depth": typed}}):
        error = refusal(payload)
        assert "input 'depth'" in error.reason
        assert said in error.reason
        assert error.id == "ok"


@pytest.mark.parametrize(
    ("payload", "said"),
    [
        (b"\x81", "not MessagePack"),
        (msgpack.packb({"inputs": {"x": [1.0] * 100}})[:-3], "not MessagePack"),
        (msgpack.packb({"id": "a"}) + b"\x00", "not MessagePack"),
        (msgpack.packb({1: 2}), "not MessagePack"),
        (msgpack.packb({"a": msgpack.ExtType(1, b"x")}), "not MessagePack"),
        (b"\x81\xa1a" + b"\x91" * 100_000, "not MessagePack"),
        (b"\xdf\xff\xff\xff\xff", "not MessagePack"),
        (b"\x81\xa1a\xdd\xff\xff\xff\xff", "not MessagePack"),
        (b"\x81\xa1a\xc6\xff\xff\xff\xff", "not MessagePack"),
        (b"\x81\xa1a\xa1\xff", "not MessagePack"),
        (msgpack.packb({"inputs": {"x": [float("nan")]}}), "NaN"),
        (msgpack.packb({"inputs": {"x": b"bytes"}}), "something else than numbers"),
        (msgpack.packb({"inputs": {"x": [2**64 - 1]}}), "something else than numbers"),
    ],
)
def test_wrong_messagepack_is_refused_and_answered_in_messagepack(
    payload: bytes, said: str
) -> None:
    error = refusal(payload)
    assert said in error.reason
    assert error.encoding is Encoding.MSGPACK


@pytest.mark.parametrize(("device", "model"), [("a.b", "m"), ("a", "m/n"), ("", "m")])
def test_names_that_would_change_the_routing_are_refused(
    device: str, model: str
) -> None:
    with pytest.raises(BadRequest, match="no dots, no slashes"):
        parse(device, model, json.dumps(X).encode())


def test_the_id_of_a_refused_request_is_told_when_it_was_legible() -> None:
    assert refusal({"id": "req-1", "inputs": 5}).id == "req-1"
    assert refusal({"id": "no.good", "inputs": 5}).id is None


@pytest.mark.parametrize(
    "payload", [PNG + b"x" * 100, json.dumps(X).encode() + b" " * 99]
)
def test_a_payload_over_the_limit_is_refused_unread(payload: bytes) -> None:
    assert "over the limit of 50" in refusal(payload, max_payload_bytes=50).reason


def test_lists_over_the_limit_are_refused_before_they_are_built() -> None:
    flat = {"inputs": {"x": [0] * 200}}
    nested: dict[str, Any] = {"inputs": {"x": [[] for _ in range(200)]}}
    maps = {"later": [{} for _ in range(200)], **X}
    for body in (flat, nested, maps):
        for payload in both(body):
            assert read(payload, max_list_items=1000).tensors is not None
            assert "100" in refusal(payload, max_list_items=100).reason


@given(st.binary(max_size=300), st.sampled_from([b"", b"{", b"\x82", b"\xdf\x00", PNG]))
def test_no_bytes_raise_anything_but_a_bad_request(tail: bytes, start: bytes) -> None:
    try:
        request = read(start + tail)
    except BadRequest as error:
        render(Answer.refused(error.id, "d", "m", reason=error.reason), error.encoding)
    else:
        assert (request.tensors is None) != (request.medium is None)


nonsense = st.recursive(
    st.none()
    | st.booleans()
    | st.integers(-(2**63), 2**64 - 1)
    | st.floats()
    | st.text(max_size=5)
    | st.binary(max_size=5),
    lambda inner: (
        st.lists(inner, max_size=4)
        | st.dictionaries(st.text(max_size=5), inner, max_size=4)
    ),
    max_leaves=12,
)
FIELDS = ["id", "inputs", "image", "deadline_ms", "class", "spill"]
TYPED = ["dtype", "shape", "data"]


@given(
    st.dictionaries(
        st.sampled_from(FIELDS),
        nonsense
        | st.dictionaries(
            st.text(max_size=3),
            nonsense | st.dictionaries(st.sampled_from(TYPED), nonsense),
        ),
    )
)
def test_no_map_of_nonsense_raises_anything_but_a_bad_request(
    body: dict[str, Any],
) -> None:
    try:
        request = read(msgpack.packb(body))
    except BadRequest as error:
        error.reason.encode()
    else:
        to_wire_inputs(request)


# --- answers ------------------------------------------------------------------------


ANSWER = Answer(
    "req-1",
    "cam1",
    AnswerStatus.ANSWERED,
    source=Source.EDGE,
    label="Shirt",
    confidence=0.75,
    model="fashion",
    version="2",
    ms=1.5,
    outputs={"logits": np.array([[0.5, -1.0]], np.float32)},
)


@pytest.mark.parametrize("encoding", [Encoding.JSON, Encoding.IMAGE])
def test_an_answer_in_json_is_one_line_with_every_field(encoding: Encoding) -> None:
    rendered = render(ANSWER, encoding)
    assert b"\n" not in rendered
    assert json.loads(rendered) == {
        "id": "req-1",
        "device": "cam1",
        "status": "answered",
        "source": "edge",
        "final": True,
        "label": "Shirt",
        "confidence": 0.75,
        "model": "fashion",
        "version": "2",
        "reason": None,
        "ms": 1.5,
        "outputs": {"logits": [[0.5, -1.0]]},
    }


def test_an_answer_in_messagepack_says_the_same_with_typed_outputs() -> None:
    body = msgpack.unpackb(render(ANSWER, Encoding.MSGPACK))
    logits = body.pop("outputs")["logits"]
    plain = json.loads(render(ANSWER, Encoding.JSON))
    plain.pop("outputs")
    assert body == plain
    assert logits["dtype"] == "float32"
    assert np.frombuffer(logits["data"], "<f4").tolist() == [0.5, -1.0]


@pytest.mark.parametrize("encoding", list(Encoding))
def test_only_a_refusal_for_want_of_room_says_when_to_send_again(
    encoding: Encoding,
) -> None:
    read = msgpack.unpackb if encoding is Encoding.MSGPACK else json.loads
    full = Answer.refused("a", "d", "m", reason="full", retry_after_s=2.5)
    assert read(render(full, encoding))["retry_after_s"] == 2.5
    for other in (ANSWER, Answer.refused("a", "d", "m", reason="bad")):
        assert "retry_after_s" not in read(render(other, encoding))


def test_accepted_is_the_one_answer_that_is_not_final() -> None:
    accepted = Answer.accepted("a", "d", "m", reason="hard", ms=1.0)
    others = [
        Answer.refused(None, "d", None, reason="why"),
        Answer.failed("a", "d", "m", reason="why"),
        Answer.expired("a", "d", "m", reason="why"),
    ]
    assert not json.loads(render(accepted, Encoding.JSON))["final"]
    assert all(json.loads(render(each, Encoding.JSON))["final"] for each in others)
    assert "outputs" not in json.loads(render(accepted, Encoding.JSON))


@given(arrays)
def test_outputs_read_back_as_inputs_are_the_same_numbers(array: np.ndarray) -> None:
    answer = Answer("a", "d", AnswerStatus.ANSWERED, outputs={"y": array})
    packed = msgpack.unpackb(render(answer, Encoding.MSGPACK))["outputs"]["y"]
    plain = json.loads(render(answer, Encoding.JSON))["outputs"]["y"]
    if isinstance(plain, dict):
        plain["data"] = base64.b64decode(plain["data"])
        assert plain == packed
    else:
        assert plain == array.tolist()
    assert packed["data"] == array.tobytes()


@pytest.mark.parametrize(
    "output",
    [np.array([np.nan, 1.0]), np.array([np.inf]), np.zeros(LIST_ITEMS_IN_JSON + 1)],
)
def test_outputs_that_json_lists_cannot_hold_come_as_typed_bytes(
    output: np.ndarray,
) -> None:
    answer = Answer("a", "d", AnswerStatus.ANSWERED, outputs={"y": output})
    shown = json.loads(render(answer, Encoding.JSON))["outputs"]["y"]
    assert shown["dtype"] == "float64"
    assert base64.b64decode(shown["data"]) == output.tobytes()


def test_a_confidence_that_is_not_a_number_becomes_null() -> None:
    answer = Answer("a", "d", AnswerStatus.ANSWERED, confidence=float("nan"))
    assert json.loads(render(answer, Encoding.JSON))["confidence"] is None
    assert msgpack.unpackb(render(answer, Encoding.MSGPACK))["confidence"] is None


@pytest.mark.parametrize("bad", [7, "00-no-trace", None])
def test_what_is_no_trace_context_never_costs_the_request(bad: object) -> None:
    body = {"inputs": {"x": [1.0]}, "traceparent": bad}
    assert parse("cam1", "m", json.dumps(body).encode()).traceparent is None


def test_a_trace_goes_on_with_the_request() -> None:
    name = f"00-{'a' * 32}-{'b' * 16}-01"
    body = {"inputs": {"x": [1.0]}, "traceparent": name}
    assert parse("cam1", "m", json.dumps(body).encode()).traceparent == name
    assert parse("cam1", "m", msgpack.packb(body)).traceparent == name
