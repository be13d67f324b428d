"""What a model's process says is believed only as far as its tray bears it out."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cloud_worker.adapters import frames
from cloud_worker.adapters.frames import FrameError
from cloud_worker.adapters.trays import KEPT_BYTES, MappedTray, Short, Tray
from cloud_worker.core.outputs import BatchOutputs, OutputBlock

JSON = st.recursive(
    st.none()
    | st.booleans()
    | st.integers(-(2**63), 2**63)
    | st.floats()
    | st.text(max_size=5)
    | st.sampled_from(["float32", "y"]),
    lambda each: st.lists(each, max_size=4).map(tuple),
    max_leaves=12,
)


def take(start: int, size: int) -> bytes:
    if start < 0 or start + size > 64:
        raise Short("64 bytes are on the tray")
    return bytes(size)


def answer(**changed: Any) -> dict[str, Any]:
    data = memoryview(bytes(16))
    outputs = BatchOutputs(2, (OutputBlock("y", "float32", ((1, 2),), data),), 1.0)
    return frames.outputs_header(7, outputs, 0) | changed


def test_outputs_are_read_as_they_were_told() -> None:
    outputs = frames.read_outputs(answer(), take, 2)
    assert outputs.count == 2
    assert outputs.part(1)["y"].shape == [1, 2]


@pytest.mark.parametrize(
    "changed",
    [
        {"start": 60},
        {"start": -1},
        {"start": "0"},
        {"infer_ms": "soon"},
        {"blocks": (("y", "float32", ((1, 2),), 12),)},
        {"blocks": (("y", "float32", ((1, -2), (1, 2)), 0),)},
        {"blocks": (("y", "float32", (), 0),)},
        {"blocks": (("y", "float33", ((1, 2),), 16),)},
        {"blocks": (("y", "uint8", ((1, 2**40),), 2**41),)},
        {"blocks": (("y",),)},
        {"blocks": None},
    ],
)
def test_outputs_that_are_not_on_the_tray_are_no_answer(
    changed: dict[str, Any],
) -> None:
    with pytest.raises(FrameError):
        frames.read_outputs(answer(**changed), take, 2)


@given(start=JSON, blocks=JSON, infer_ms=JSON)
def test_no_answer_does_worse_than_be_refused(
    start: object, blocks: object, infer_ms: object
) -> None:
    try:
        outputs = frames.read_outputs(
            answer(start=start, blocks=blocks, infer_ms=infer_ms), take, 2
        )
        for index in range(2):
            outputs.part(index)
    except FrameError:
        pass


def test_a_prefix_over_the_bound_is_refused_before_anything_is_allocated() -> None:
    with pytest.raises(FrameError):
        frames.read_prefix(b"\xff\xff\xff\xff")


def test_a_tray_carries_inputs_there_and_outputs_back() -> None:
    ours = Tray()
    theirs = MappedTray(ours.fd)
    try:
        for size in (0, 3, 5000, 70_000):
            parts = [b"a" * size, b"bc"] * 1500 if size == 3 else [b"a" * size, b"bc"]
            put = ours.put(parts)
            assert put == sum(map(len, parts))
            assert bytes(theirs.inputs(put)) == b"".join(parts)
            start = theirs.put_behind(put, [memoryview(b"x" * size), memoryview(b"yz")])
            assert start >= put
            assert ours.take(start, size + 2) == b"x" * size + b"yz"
    finally:
        ours.close()


def test_a_large_batch_leaves_no_large_tray_behind() -> None:
    ours = Tray()
    theirs = MappedTray(ours.fd)
    try:
        for size in (KEPT_BYTES + 5, 10, KEPT_BYTES + 9):
            part = b"a" * size
            assert bytes(theirs.inputs(ours.put([part]))) == part
            start = theirs.put_behind(size, [memoryview(part)])
            assert ours.take(start, size) == part
            ours.clear()
            with pytest.raises(Short):
                ours.take(0, KEPT_BYTES + 1)
    finally:
        ours.close()
