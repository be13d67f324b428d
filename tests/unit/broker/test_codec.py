import tracemalloc
from typing import Any

import msgpack
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from broker import codec
from broker.messages import (
    Blob,
    Command,
    Desired,
    DesiredModel,
    EdgeOpinion,
    Get,
    Medium,
    Message,
    Priority,
    Reason,
    Report,
    Request,
    Result,
    SlotReport,
    Status,
    Tensor,
    Timings,
)

ids = st.from_regex(r"[a-z0-9][a-z0-9_-]{0,20}", fullmatch=True)
versions = st.from_regex(r"[a-z0-9][a-z0-9._-]{0,20}", fullmatch=True)
counts = st.integers(0, 2**63 - 1)
texts = st.text(max_size=64)
floats = st.floats(allow_nan=False, width=64)
times = st.floats(0, 1e12)


def optional(strategy: st.SearchStrategy[Any]) -> st.SearchStrategy[Any]:
    return st.none() | strategy


@st.composite
def tensors(draw: st.DrawFn) -> Tensor:
    shape = draw(st.lists(st.integers(0, 4), max_size=4))
    items = 1
    for side in shape:
        items *= side
    return Tensor(
        dtype="float32",
        shape=shape,
        data=draw(st.binary(min_size=4 * items, max_size=4 * items)),
    )


requests = st.builds(
    Request,
    id=ids,
    device=ids,
    model=ids,
    reason=st.sampled_from(Reason),
    expires_at_ms=counts,
    tensors=st.dictionaries(texts, tensors(), max_size=3),
    medium=st.none(),
    priority=st.sampled_from(Priority),
    seq=counts,
    attempt=counts,
    edge=optional(
        st.builds(
            EdgeOpinion,
            label=optional(texts),
            confidence=optional(floats),
            version=versions,
        )
    ),
    traceparent=optional(texts),
) | st.builds(
    Request,
    id=ids,
    device=ids,
    model=ids,
    reason=st.sampled_from(Reason),
    expires_at_ms=counts,
    tensors=st.none(),
    medium=st.builds(Medium, media_type=texts, data=st.binary(max_size=64)),
)
results = st.builds(
    Result,
    id=ids,
    device=ids,
    model=ids,
    status=st.sampled_from(Status),
    version=optional(versions),
    worker=texts,
    outputs=st.dictionaries(texts, tensors(), max_size=3),
    label=optional(texts),
    confidence=optional(floats),
    reason=optional(texts),
    timings=st.builds(Timings, queue_ms=times, batch_ms=times, infer_ms=times),
    batch_size=counts,
    server_time_ms=counts,
    pool_wait_ms=times,
)
paths = st.from_regex(
    r"[A-Za-z0-9_-][A-Za-z0-9._-]{0,9}(/[a-z0-9]{1,9}){0,5}", fullmatch=True
)
gets = st.builds(
    Get,
    want=st.just("file"),
    path=paths,
    offset=counts,
    length=st.integers(1, 2**20),
    shared=st.booleans(),
)
blobs = st.builds(
    Blob,
    want=st.just("file"),
    path=paths,
    offset=counts,
    total_bytes=counts,
    status=st.sampled_from(["ok", "not_found", "failed", "busy"]),
    reason=optional(texts),
    retry_after_s=optional(times),
    data=st.binary(max_size=256),
)
reports = st.builds(
    Report,
    agent=ids,
    at_ms=counts,
    slots=st.lists(
        st.builds(SlotReport, model=ids, active=optional(versions), generation=counts),
        max_size=3,
    ),
    counters=st.dictionaries(texts, st.integers(-(2**63), 2**63 - 1), max_size=3),
    facts=st.dictionaries(texts, texts, max_size=3),
)
commands = st.builds(
    Command,
    action=st.sampled_from(["desired_changed", "cancel"]),
    ids=st.lists(ids, max_size=3),
)
desired = st.builds(
    Desired,
    agent=ids,
    models=st.lists(
        st.builds(DesiredModel, model=ids, version=versions, generation=counts),
        max_size=3,
    ),
)
messages = requests | results | gets | blobs | reports | commands | desired


def a_request(**more: Any) -> Request:
    fields: dict[str, Any] = {
        "id": "r1",
        "device": "cam-1",
        "model": "fashion",
        "reason": Reason.HARD,
        "expires_at_ms": 1,
        "tensors": {"x": Tensor(dtype="uint8", shape=[2], data=b"\x00\x01")},
    }
    return Request(**{**fields, **more})


@settings(max_examples=200, suppress_health_check=[HealthCheck.too_slow])
@given(messages)
def test_every_kind_of_message_comes_back_as_it_was_sent(message: Message) -> None:
    envelope = codec.decode(codec.encode(message), type(message))

    assert envelope.items == (message,)
    assert envelope.bad == ()


@given(st.lists(gets, min_size=1, max_size=20))
def test_an_envelope_keeps_its_messages_in_order(sent: list[Get]) -> None:
    assert codec.decode(codec.encode(*sent), Get).items == tuple(sent)


@given(messages, st.data())
def test_a_truncated_envelope_is_refused_at_every_length(
    message: Message, data: st.DataObject
) -> None:
    whole = codec.encode(message)
    cut = data.draw(st.integers(0, len(whole) - 1))

    with pytest.raises(codec.WireError):
        codec.decode(whole[:cut], type(message))


@settings(max_examples=300)
@given(st.binary(max_size=512))
def test_random_bytes_are_refused_and_never_break_the_reader(noise: bytes) -> None:
    with pytest.raises(codec.WireError):
        codec.decode(noise, Request)


@settings(max_examples=300)
@given(st.data())
def test_an_envelope_with_bytes_changed_is_read_or_refused_by_name(
    data: st.DataObject,
) -> None:
    broken = bytearray(codec.encode(a_request(), a_request(id="r2")))
    for _ in range(data.draw(st.integers(1, 4))):
        broken[data.draw(st.integers(0, len(broken) - 1))] = data.draw(
            st.integers(0, 255)
        )

    try:
        envelope = codec.decode(bytes(broken), Request)
    except codec.WireError as error:
        reasons = [str(error)]
    else:
        reasons = [bad.reason for bad in envelope.bad]
    assert all(reasons)


json_values: st.SearchStrategy[Any] = st.recursive(
    st.none()
    | st.booleans()
    | st.integers(-(2**63), 2**64 - 1)
    | floats
    | texts
    | st.binary(max_size=8),
    lambda inner: (
        st.lists(inner, max_size=3) | st.dictionaries(texts, inner, max_size=3)
    ),
    max_leaves=8,
)


@given(st.dictionaries(st.sampled_from(list(Request.model_fields)), json_values))
def test_an_item_with_fields_of_any_type_is_read_or_reported(
    fields: dict[str, Any],
) -> None:
    envelope = codec.decode(
        codec.seal_envelope(Request, [msgpack.packb(fields), codec.pack(a_request())]),
        Request,
    )

    assert a_request() in envelope.items
    assert len(envelope.items) + len(envelope.bad) == 2


def test_unknown_fields_are_ignored_in_envelope_and_item() -> None:
    item = {
        **a_request().model_dump(exclude_defaults=True),
        "colour": "red",
        "deep": {"a": 1},
    }
    payload = msgpack.packb(
        {"v": 1, "kind": "req", "items": [msgpack.packb(item)], "new": [1, 2]}
    )

    assert codec.decode(payload, Request).items == (a_request(),)


@pytest.mark.parametrize("version", [2, 0, "1", None, 1.5, [1]])
def test_an_unknown_version_is_refused_by_name(version: object) -> None:
    payload = msgpack.packb({"v": version, "kind": "req", "items": [b"x"]})

    with pytest.raises(codec.UnknownVersion) as refusal:
        codec.decode(payload, Request)
    assert repr(version) in str(refusal.value)
    assert "version 1" in str(refusal.value)


def test_an_envelope_of_another_kind_is_refused_and_both_are_named() -> None:
    with pytest.raises(codec.WireError, match=r"'req'.*'get'"):
        codec.decode(codec.encode(Get(want="file", path="desired/agent-1")), Request)


def test_one_bad_item_costs_only_itself_and_says_whose_it_was() -> None:
    wrong = {
        **a_request().model_dump(exclude_defaults=True),
        "id": "r2",
        "expires_at_ms": "soon",
    }
    payload = codec.seal_envelope(
        Request,
        [
            codec.pack(a_request()),
            msgpack.packb(wrong),
            b"\xc1",
            codec.pack(a_request(id="r3")),
        ],
    )

    envelope = codec.decode(payload, Request)

    assert [item.id for item in envelope.items] == ["r1", "r3"]
    assert [(bad.index, bad.id, bad.device) for bad in envelope.bad] == [
        (1, "r2", "cam-1"),
        (2, None, None),
    ]
    assert "expires_at_ms" in envelope.bad[0].reason


@pytest.mark.parametrize("bad_id", ["a.b", "a/b", "A", "", "a" * 65, "a\n"])
def test_an_id_with_a_dot_or_a_slash_is_refused(bad_id: str) -> None:
    item = {**a_request().model_dump(exclude_defaults=True), "id": bad_id}
    envelope = codec.decode(
        codec.seal_envelope(Request, [msgpack.packb(item)]), Request
    )

    assert envelope.items == ()
    assert envelope.bad[0].reason.startswith("id")


@pytest.mark.parametrize(
    ("tensor", "words"),
    [
        ({"dtype": "float32", "shape": [2], "data": b"\x00" * 7}, "needs 8 bytes"),
        ({"dtype": "float32", "shape": [-1], "data": b""}, "negative"),
        ({"dtype": "complex64", "shape": [1], "data": b"\x00" * 8}, "dtype"),
        ({"dtype": "float32", "shape": [2**40, 2**40], "data": b""}, "bytes"),
        ({"dtype": "float32", "shape": [1] * 9, "data": b"\x00" * 4}, "shape"),
    ],
)
def test_a_tensor_whose_bytes_disagree_with_its_shape_is_refused(
    tensor: dict[str, Any], words: str
) -> None:
    item = {**a_request().model_dump(exclude_defaults=True), "tensors": {"x": tensor}}
    envelope = codec.decode(
        codec.seal_envelope(Request, [msgpack.packb(item)]), Request
    )

    assert envelope.items == ()
    assert words in envelope.bad[0].reason


@pytest.mark.parametrize(
    "bomb",
    [
        pytest.param(b"\xdd\x80\x00\x00\x00", id="array of 2**31"),
        pytest.param(b"\xdd\xff\xff\xff\xff" + b"\xc0" * 64, id="array of 2**32-1"),
        pytest.param(b"\xdf\x80\x00\x00\x00", id="map of 2**31"),
        pytest.param(b"\xc6\x7f\xff\xff\xff", id="bytes of 2**31"),
        pytest.param(b"\xdb\x7f\xff\xff\xff", id="text of 2**31"),
        pytest.param(b"\xc9\x7f\xff\xff\xff\x01", id="extension of 2**31"),
        pytest.param(b"\x91" * 100_000, id="100,000 lists deep"),
        pytest.param(b"\x81\xa1a" * 100_000, id="100,000 maps deep"),
        pytest.param(b"\xdd\x00\x00\x04\x00" * 20_000, id="nested arrays of 1024"),
        pytest.param(
            b"\xdc\x00\x0f" + (b"\xdc\x03\xe8" + b"\xdc\x03\xe8" + b"\x90" * 1000) * 15,
            id="15,000 empty lists",
        ),
        pytest.param(
            (b"\xdc\x03\xe8" + b"\x90" * 1000).join([b"\xdc\x03\xe8"] + [b""] * 1000),
            id="a million empty lists",
        ),
    ],
)
def test_a_bomb_is_refused_without_allocating_what_it_declares(bomb: bytes) -> None:
    whole = b"\x83\xa1v\x01\xa4kind\xa3req\xa5items" + bomb
    tracemalloc.start()
    try:
        with pytest.raises(codec.WireError):
            codec.decode(bomb, Request)
        with pytest.raises(codec.WireError):
            codec.decode(whole, Request)
        _, peak_bytes = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    # msgpack goes 1,024 deep, and makes room for 1,024 items in each.
    assert peak_bytes < 4 * len(whole) + 12 * 1024 * 1024


def test_a_payload_over_the_limit_is_refused_before_it_is_read() -> None:
    with pytest.raises(codec.WireError, match="over the limit"):
        codec.decode(b"\x00" * (codec.MAX_ENVELOPE_BYTES + 1), Request)


def test_an_envelope_with_too_many_items_is_refused() -> None:
    items = [b""] * (codec.MAX_ITEMS + 1)

    with pytest.raises(codec.WireError):
        codec.decode(msgpack.packb({"v": 1, "kind": "req", "items": items}), Request)
    with pytest.raises(ValueError, match="1 to 1024"):
        codec.seal_envelope(Request, items)


@pytest.mark.parametrize(
    "body",
    [
        [],
        None,
        "req",
        {},
        {"v": 1},
        {"v": 1, "kind": "req"},
        {"v": 1, "kind": "req", "items": []},
        {"v": 1, "kind": "req", "items": {}},
        {"v": 1, "kind": ["req"], "items": [b"x"]},
        {"v": 1, "kind": "req", "items": "text"},
    ],
)
def test_a_value_that_is_no_envelope_is_refused(body: object) -> None:
    with pytest.raises(codec.WireError):
        codec.decode(msgpack.packb(body), Request)


@pytest.mark.parametrize("item", ["text", 1, None, ["list"], {"id": "r1"}])
def test_an_item_that_is_not_bytes_is_reported(item: object) -> None:
    payload = msgpack.packb(
        {"v": 1, "kind": "req", "items": [item, codec.pack(a_request())]}
    )

    envelope = codec.decode(payload, Request)

    assert envelope.items == (a_request(),)
    assert envelope.bad[0].index == 0


STORED = Request(
    id="r1",
    device="cam1",
    model="fashion",
    reason=Reason.HARD,
    expires_at_ms=5,
    tensors={"x": Tensor(dtype="uint8", shape=[2], data=b"\x00\xff")},
)


def test_a_packed_message_is_changed_in_place() -> None:
    packed = codec.pack(STORED)
    changed = codec.repack(packed, {"attempt": 3, "expires_at_ms": 7})
    again = Request.model_validate(codec.unpack(changed))
    assert (again.attempt, again.expires_at_ms) == (3, 7)
    assert again.model_copy(
        update={"attempt": 0, "expires_at_ms": 5}
    ) == Request.model_validate(codec.unpack(packed))
    for nonsense in (b"", b"\xc1", b"\x93\x01\x02\x03", packed[:-1]):
        with pytest.raises(codec.WireError):
            codec.repack(nonsense, {})
