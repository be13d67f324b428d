"""Seals: what they state and what they refuse."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from bundle.seal import (
    MAX_SEAL_BYTES,
    Seal,
    SealRejected,
    check_names,
    make_seal,
    read_seal,
    verify_packed,
    write_seal,
)


def sealed(data: bytes, tmp_path: Path, chunk_bytes: int = 1024) -> tuple[Path, Seal]:
    packed = tmp_path / "bundle.tar"
    packed.write_bytes(data)
    return packed, make_seal(packed, "fashion", "1", chunk_bytes=chunk_bytes)


def test_a_seal_comes_back_from_its_file(tmp_path: Path) -> None:
    _, seal = sealed(b"x" * 2500, tmp_path)
    assert read_seal(write_seal(seal)) == seal
    assert len(seal.chunks) == 3


def test_a_seal_over_the_limit_is_refused_before_it_is_parsed() -> None:
    with pytest.raises(SealRejected, match="is over"):
        read_seal(b"[" * (MAX_SEAL_BYTES + 1))


def test_a_seal_of_something_else_than_was_asked_for_is_refused(
    tmp_path: Path,
) -> None:
    _, seal = sealed(b"x", tmp_path)
    seal = seal.model_copy(update={"epoch": 3})
    assert check_names(seal, "fashion", "1", 3) == seal
    for asked in (("digits", "1", 3), ("fashion", "2", 3), ("fashion", "1", 4)):
        with pytest.raises(SealRejected, match="sealed is fashion 1 in epoch 3"):
            check_names(seal, *asked)


@pytest.mark.parametrize(
    "change",
    [
        {"kind": "something.else"},
        {"format": 2},
        {"name": "a.b"},
        {"name": "../up"},
        {"version": "../1"},
        {"version": "1\n"},
        {"size_bytes": 0},
        {"size_bytes": 2**40},
        {"size_bytes": "2500"},
        {"chunk_bytes": 1},
        {"chunk_bytes": 2**30},
        {"sha256": "00"},
        {"chunks": []},
        {"chunks": ["0" * 64]},
        {"chunks": ["z" * 64] * 3},
    ],
)
def test_a_senseless_seal_is_refused(change: dict[str, object], tmp_path: Path) -> None:
    _, seal = sealed(b"x" * 2500, tmp_path)
    signed = {**json.loads(seal.model_dump_json()), **change}
    with pytest.raises(SealRejected):
        read_seal(json.dumps(signed).encode())


def test_a_seal_with_a_field_of_the_future_is_read(tmp_path: Path) -> None:
    _, seal = sealed(b"x" * 2500, tmp_path)
    signed = {**json.loads(seal.model_dump_json()), "moon": 7}
    assert read_seal(json.dumps(signed).encode()) == seal


@given(st.binary(max_size=300))
def test_any_bytes_are_either_a_seal_or_refused(data: bytes) -> None:
    with pytest.raises(SealRejected):
        read_seal(data)


def test_every_chunk_is_checked_and_the_last_may_be_short(tmp_path: Path) -> None:
    data = bytes(range(256)) * 10
    _, seal = sealed(data, tmp_path)
    for index in range(3):
        offset, length = seal.chunk_span(index)
        seal.check_chunk(index, data[offset : offset + length])
    assert seal.chunk_span(2) == (2048, 512)


def test_a_tampered_short_or_absent_chunk_is_refused(tmp_path: Path) -> None:
    data = bytes(range(256)) * 10
    _, seal = sealed(data, tmp_path)
    with pytest.raises(SealRejected, match="chunk 0 of fashion 1 is not what"):
        seal.check_chunk(0, b"\1" + data[1:1024])
    with pytest.raises(SealRejected, match="has 1024 bytes, got 3"):
        seal.check_chunk(0, b"abc")
    with pytest.raises(SealRejected, match="chunks 0 to 2, not 3"):
        seal.check_chunk(3, b"")
    with pytest.raises(SealRejected, match="not -1"):
        seal.check_chunk(-1, b"")


def test_a_packed_file_that_was_changed_or_cut_is_refused(tmp_path: Path) -> None:
    packed, seal = sealed(b"x" * 2500, tmp_path)
    verify_packed(packed, seal)
    packed.write_bytes(b"x" * 2499 + b"y")
    with pytest.raises(SealRejected, match="digest"):
        verify_packed(packed, seal)
    packed.write_bytes(b"x" * 2499)
    with pytest.raises(SealRejected, match="2499 bytes"):
        verify_packed(packed, seal)


def test_an_empty_file_is_not_sealed(tmp_path: Path) -> None:
    with pytest.raises(SealRejected, match="cannot seal"):
        sealed(b"", tmp_path)
