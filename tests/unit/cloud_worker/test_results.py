from __future__ import annotations

from dataclasses import replace
from math import prod

import msgpack
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray
from pydantic import ValidationError

from broker.codec import decode, pack
from broker.messages import Result, Status, Tensor, Timings
from bundle.manifest import Decision
from cloud_worker.core.dead_letters import own_envelope, times_republished
from cloud_worker.core.ledger import Cause
from cloud_worker.core.legible import legible_subject, legible_subjects
from cloud_worker.core.outputs import BatchOutputs, OutputBlock
from cloud_worker.core.reading import Reading, Unreadable, read
from cloud_worker.core.replies import (
    MAX_RESULT_BYTES,
    Finished,
    Reply,
    group_replies,
)
from cloud_worker.core.results import (
    Answers,
    Served,
    Stamp,
    Subject,
    answered,
    expired,
    failed,
)
from cloud_worker.core.spec import ModelSpec, ServedModel, TensorSpec

STAMP = Stamp("w-1", 1_700_000_000_000, 2.5)
SERVED = Served("3", 4, Timings(queue_ms=1.0, batch_ms=2.0, infer_ms=3.0))


def subject(number: int = 0) -> Subject:
    return Subject(f"r-{number}", "cam1", "fashion")


def finished(agent: str, number: int, size_bytes: int = 4) -> Finished[int]:
    outputs = {"y": Tensor(dtype="uint8", shape=[size_bytes], data=bytes(size_bytes))}
    result = answered(subject(number), outputs, Reading(), SERVED, STAMP)
    return Finished(agent, result, number, Cause.ANSWERED)


def opened(reply: Reply[int]) -> list[str]:
    return [each.id for each in decode(reply.body, Result).items]


def test_a_result_reads_on_the_wire_as_it_was_made() -> None:
    result = answered(
        subject(),
        {"y": Tensor(dtype="float32", shape=[1], data=bytes(4))},
        Reading("Shirt", 0.75),
        SERVED,
        STAMP,
    )
    (reply,) = group_replies([Finished("agent-1", result, None, Cause.ANSWERED)])
    (read_back,) = decode(reply.body, Result).items
    assert read_back.model_dump() == result.model_dump()
    assert Result.model_validate(result.model_dump()) == read_back


def test_failures_say_why_and_long_reasons_are_cut() -> None:
    result = failed(subject(), "x" * 5000, STAMP, SERVED)
    assert result.status is Status.FAILED
    assert len(result.reason or "") == 1024
    assert result.version == "3"
    assert expired(subject(), "late", STAMP).status is Status.EXPIRED


def test_results_of_one_agent_travel_together_in_order() -> None:
    mixed = [finished("a", 0), finished("b", 1), finished("a", 2), finished("b", 3)]
    replies = group_replies(mixed)
    assert {reply.agent: opened(reply) for reply in replies} == {
        "a": ["r-0", "r-2"],
        "b": ["r-1", "r-3"],
    }
    assert {reply.agent: reply.settles for reply in replies} == {
        "a": (0, 2),
        "b": (1, 3),
    }


def test_an_envelope_holds_no_more_than_its_bounds() -> None:
    many = [finished("a", number) for number in range(600)]
    assert [len(each.settles) for each in group_replies(many)] == [256, 256, 88]
    heavy = [finished("a", number, 400_000) for number in range(5)]
    replies = group_replies(heavy)
    assert [each.settles for each in replies] == [(0, 1), (2, 3), (4,)]
    assert all(len(each.body) < 1024 * 1024 for each in replies)


def test_a_result_over_the_bound_of_an_envelope_travels_alone() -> None:
    replies = group_replies([finished("a", 0), finished("a", 1, 3_000_000)])
    assert [each.settles for each in replies] == [(0,), (1,)]


def test_a_result_that_no_broker_carries_becomes_a_failure() -> None:
    (reply,) = group_replies([finished("a", 0, MAX_RESULT_BYTES)])
    (result,) = decode(reply.body, Result).items
    assert result.status is Status.FAILED
    assert "over the limit" in (result.reason or "")
    assert reply.causes == (Cause.TOO_LARGE,)
    assert [each.status for each in reply.results] == [Status.FAILED]
    assert len(reply.body) < 1000


def block(
    values: NDArray[np.generic], *shapes: tuple[int, ...], name: str = "y"
) -> OutputBlock:
    data = memoryview(np.ascontiguousarray(values).reshape(-1).view(np.uint8).data)
    return OutputBlock(name, values.dtype.name, shapes, data)


def test_a_batch_is_cut_into_the_parts_of_its_requests() -> None:
    values = np.arange(6, dtype=np.int16)
    even = block(values, (1, 2), name="even")
    odd = block(values, (1,), (3,), (1, 2), name="odd")
    outputs = BatchOutputs(3, (even, odd), 1.0)
    parts = [outputs.part(index) for index in range(3)]
    for part in parts:
        for tensor in part.values():
            assert len(tensor.data) == 2 * prod(tensor.shape)
    assert [list(np.frombuffer(each["even"].data, "int16")) for each in parts] == [
        [0, 1],
        [2, 3],
        [4, 5],
    ]
    assert [list(np.frombuffer(each["odd"].data, "int16")) for each in parts] == [
        [0],
        [1, 2, 3],
        [4, 5],
    ]


def classifier(decision: Decision | None, labels: tuple[str, ...] = ()) -> ServedModel:
    spec = ModelSpec((), (TensorSpec("y", "float32", (-1, 3)),), batched=True)
    return ServedModel("m", "1", spec, 8, decision=decision, labels=labels)


LOGITS = np.array([[0, 4, 0], [9, 0, 0]], np.float32)


def test_labels_and_confidences_are_read_as_the_decision_says() -> None:
    outputs = BatchOutputs(2, (block(LOGITS, (1, 3)),), 1.0)
    readings = read(outputs, classifier(Decision(output="y"), ("a", "b", "c")))
    assert [each.label for each in readings if isinstance(each, Reading)] == ["b", "a"]
    expected = np.exp(4) / (np.exp(4) + 2)
    first = readings[0]
    assert isinstance(first, Reading)
    assert first.confidence == pytest.approx(expected)


def test_requests_of_several_rows_are_read_one_by_one_and_agree() -> None:
    one_row = read(
        BatchOutputs(2, (block(LOGITS, (1, 3)),), 1.0),
        classifier(Decision(output="y"), ("a", "b", "c")),
    )
    flat = read(
        BatchOutputs(2, (block(LOGITS, (3,)),), 1.0),
        classifier(Decision(output="y"), ("a", "b", "c")),
    )
    assert flat == one_row


def test_without_a_decision_nothing_is_read() -> None:
    outputs = BatchOutputs(2, (block(LOGITS, (1, 3)),), 1.0)
    assert read(outputs, classifier(None, ("a",))) == [Reading(), Reading()]


def test_a_class_without_a_label_has_none() -> None:
    outputs = BatchOutputs(2, (block(LOGITS, (1, 3)),), 1.0)
    readings = read(outputs, classifier(Decision(output="y"), ("a",)))
    assert [each.label for each in readings if isinstance(each, Reading)] == [None, "a"]


def test_one_output_of_nan_spoils_no_other() -> None:
    spoilt = LOGITS.copy()
    spoilt[0, 2] = np.nan
    outputs = BatchOutputs(2, (block(spoilt, (1, 3)),), 1.0)
    first, second = read(outputs, classifier(Decision(output="y"), ("a", "b", "c")))
    assert isinstance(first, Unreadable)
    assert "not a number" in first.reason
    assert isinstance(second, Reading)
    assert second.label == "a"


def test_an_empty_detection_is_an_answer_of_no_confidence() -> None:
    nothing = block(np.zeros((0,), np.float32), (0, 3))
    readings = read(BatchOutputs(1, (nothing,), 1.0), classifier(Decision(output="y")))
    assert readings == [Reading(None, 0.0)]


def test_a_confidence_output_gives_the_confidence_and_the_output_the_label() -> None:
    sure = block(np.array([[0.25], [0.75]], np.float32), (1, 1), name="sure")
    outputs = BatchOutputs(2, (block(LOGITS, (1, 3)), sure), 1.0)
    decision = Decision(output="y", confidence_output="sure")
    assert read(outputs, classifier(decision, ("a", "b", "c"))) == [
        Reading("b", 0.25),
        Reading("a", 0.75),
    ]


def test_the_norm_of_the_decision_counts() -> None:
    outputs = BatchOutputs(2, (block(LOGITS, (1, 3)),), 1.0)
    low, high = (
        read(outputs, classifier(Decision(output="y", score="pnorm", norm=norm)))[0]
        for norm in (2.0, 8.0)
    )
    assert isinstance(low, Reading)
    assert isinstance(high, Reading)
    assert low.confidence != high.confidence


def test_an_empty_detection_is_sure_where_the_manifest_says_so() -> None:
    nothing = block(np.zeros((1, 4), np.float32), (1, 4))
    outputs = BatchOutputs(1, (nothing,), 1.0)
    decision = Decision(output="y", score="expected_misses", empty="sure")
    assert read(outputs, classifier(decision)) == [Reading(None, 1.0)]
    decision = Decision(output="y", score="expected_misses")
    assert read(outputs, classifier(decision)) == [Reading(None, 0.0)]


def test_whom_to_answer_is_found_in_an_envelope_of_another_version() -> None:
    item = msgpack.packb({"id": "r-1", "device": "cam1", "new": [1]})
    body = msgpack.packb({"v": 9, "kind": "req", "items": [item, b"\xc1", 5]})
    assert legible_subjects(body, "m") == [Subject("r-1", "cam1", "m")]


def test_a_bare_request_without_an_envelope_can_be_answered() -> None:
    body = msgpack.packb({"id": "r-1"})
    assert legible_subjects(body, "m") == [Subject("r-1", "unknown", "m")]


@pytest.mark.parametrize(
    "body",
    [b"", b"\x92\x01", b"{}", msgpack.packb([1]), msgpack.packb({"id": "a.b"})],
)
def test_nobody_is_found_in_noise(body: bytes) -> None:
    assert legible_subjects(body, "m") == []


@pytest.mark.parametrize("id_", [None, 7, "", "a/b", "a.b", "A", "x" * 65])
def test_an_id_that_could_not_be_a_topic_is_not_answered(id_: object) -> None:
    assert legible_subject(id_, "cam1", "m") is None


def test_a_dead_request_leaves_its_envelope_as_it_was_sent() -> None:
    mine = msgpack.packb({"id": "r-1", "device": "cam1", "of a newer wire": [1]})
    other = msgpack.packb({"id": "r-1", "device": "cam2"})
    body = msgpack.packb({"v": 1, "kind": "req", "items": [b"\xc1", other, mine]})
    own = own_envelope(body, Subject("r-1", "cam1", "m"))
    assert own is not None
    assert own == msgpack.packb({"v": 1, "kind": "req", "items": [mine]})
    assert own_envelope(own, Subject("r-1", "cam1", "m")) is own


@pytest.mark.parametrize(
    "body", [b"", b"\xc1", msgpack.packb([1]), msgpack.packb({"items": [b"", 7]})]
)
def test_a_request_that_is_in_no_envelope_cannot_leave_it(body: bytes) -> None:
    assert own_envelope(body, Subject("r-1", "cam1", "m")) is None


@pytest.mark.parametrize(
    ("headers", "times"),
    [
        ({}, 0),
        ({"x-overspill-republished": 2}, 2),
        ({"x-overspill-republished": "x"}, 3),
    ],
)
def test_republishing_is_counted(headers: dict[str, object], times: int) -> None:
    assert times_republished(headers) == times


@given(
    st.sampled_from(["float32", "int8", "bool", "uint64"]),
    st.lists(st.integers(0, 3), max_size=4),
    st.integers(1, 5),
    st.one_of(st.none(), st.text(max_size=20)),
    st.one_of(st.none(), st.floats(allow_nan=False)),
    st.floats(0, 1e9),
)
def test_an_answer_packed_at_once_is_the_same_as_a_checked_one(
    dtype: str,
    shape: list[int],
    count: int,
    label: str | None,
    confidence: float | None,
    queue_ms: float,
) -> None:
    size = prod(shape) * np.dtype(dtype).itemsize
    data = memoryview(bytes(index % 251 for index in range(size * count)))
    block = OutputBlock("y", dtype, (tuple(shape),), data)
    outputs = BatchOutputs(count, (block, replace(block, name="z")), 3.5)
    reading = Reading(label, confidence)
    timings = Timings(queue_ms=queue_ms, batch_ms=2.0, infer_ms=3.5)
    shared = Served("3", count, Timings(batch_ms=2.0, infer_ms=3.5))
    answers = Answers("fashion", outputs, shared, STAMP)
    for index in range(count):
        alone = answered(
            subject(index),
            outputs.part(index),
            reading,
            Served("3", count, timings),
            STAMP,
        )
        answer = answers.of(subject(index), index, reading, queue_ms)
        assert answer.packed == pack(alone)
        assert answer[:4] == (alone.id, alone.device, alone.model, alone.status)


@pytest.mark.parametrize(
    "block",
    [
        OutputBlock("y", "int8", ((1,) * 9,), memoryview(bytes(2))),
        OutputBlock("y", "int8", ((4,),), memoryview(bytes(7))),
    ],
    ids=["rank", "too short"],
)
def test_outputs_that_cannot_travel_are_found_once_for_the_batch(
    block: OutputBlock,
) -> None:
    with pytest.raises(ValidationError):
        Answers("m", BatchOutputs(2, (block,), 1.0), SERVED, STAMP)


def test_outputs_that_differ_or_are_large_are_answered_one_by_one() -> None:
    alike = OutputBlock("y", "int8", ((2,),), memoryview(bytes(4)))
    differ = OutputBlock("z", "int8", ((1,), (3,)), memoryview(bytes(4)))
    large = OutputBlock("z", "int8", ((2**19,),), memoryview(bytes(2**20)))
    assert Answers.fit(BatchOutputs(2, (alike,), 1.0))
    assert not Answers.fit(BatchOutputs(2, (alike, differ), 1.0))
    assert not Answers.fit(BatchOutputs(2, (alike, large), 1.0))
