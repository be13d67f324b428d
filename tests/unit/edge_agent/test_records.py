from __future__ import annotations

from dataclasses import fields
from typing import Any

import msgpack
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays_of

from broker.messages import ITEM_BYTES
from edge_agent.core.answers import Answer, AnswerStatus, Array, Source
from edge_agent.core.payload import Encoding, render
from edge_agent.core.records import pack_answer, read_rendered, unpack_answer

OUTPUTS: dict[str, Array] = {
    "logits": np.array([[0.5, -2.0]], np.float32),
    "boxes": np.arange(12, dtype=np.int32).reshape(1, 3, 4),
    "found": np.array([True, False]),
}


def answer(**more: Any) -> Answer:
    return Answer(
        id="r1", device="cam1", status=AnswerStatus.ANSWERED, source=Source.EDGE, **more
    )


def assert_same(got: Answer, want: Answer) -> None:
    for field in fields(Answer):
        if field.name != "outputs":
            assert getattr(got, field.name) == getattr(want, field.name), field.name
    assert (got.outputs is None) == (want.outputs is None)
    for name, array in (want.outputs or {}).items():
        assert got.outputs is not None
        assert got.outputs[name].shape == array.shape
        assert np.array_equal(
            got.outputs[name], array, equal_nan=array.dtype.kind == "f"
        )


@pytest.mark.parametrize(
    "given_answer",
    [
        answer(label="Shirt", confidence=0.25, model="m", version="1", ms=1.5),
        answer(outputs=OUTPUTS),
        answer(outputs={}),
        answer(outputs={"nothing": np.zeros(0, np.float32)}),
        Answer.failed("r1", "cam1", "m", reason="broke\u2028 \N{SNOWMAN}"),
        Answer.refused(None, "cam1", None, reason="no id"),
        Answer.refused("r1", "cam1", "m", reason="full", retry_after_s=2.5),
        Answer.accepted("r1", "cam1", "m", reason="hard", ms=0.1),
    ],
)
def test_a_stored_answer_is_read_back_as_it_was(given_answer: Answer) -> None:
    assert_same(unpack_answer(pack_answer(given_answer)), given_answer)
    for encoding in Encoding:
        rendered = render(given_answer, encoding)
        assert_same(read_rendered(rendered, encoding), given_answer)


def test_an_answer_that_was_stored_before_a_field_was_added_is_read() -> None:
    body = msgpack.unpackb(pack_answer(answer()))
    del body["retry_after_s"]
    assert_same(unpack_answer(msgpack.packb(body)), answer())


@given(
    arrays_of.arrays(
        st.sampled_from(sorted(ITEM_BYTES)),
        arrays_of.array_shapes(min_dims=0, min_side=0, max_dims=4, max_side=4),
    )
)
def test_outputs_of_every_dtype_and_shape_survive_with_their_dtype(
    array: Array,
) -> None:
    stored = unpack_answer(pack_answer(answer(outputs={"x": array}))).outputs
    assert stored is not None
    assert stored["x"].dtype == array.dtype
    assert stored["x"].tobytes() == array.tobytes()
    assert stored["x"].shape == array.shape


def test_outputs_that_json_cannot_hold_as_numbers_are_read_back_too() -> None:
    large = np.arange(5000, dtype=np.float32)
    odd = np.array([np.nan, np.inf], np.float32)
    told = answer(outputs={"large": large, "odd": odd})
    assert_same(read_rendered(render(told, Encoding.JSON), Encoding.JSON), told)
