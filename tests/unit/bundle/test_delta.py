"""What deltas are made of: tokens, lanes, the container. No files."""

from __future__ import annotations

import hashlib
import lzma
from collections.abc import Callable

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from bundle.delta import coded
from bundle.delta.coded import Coding, Decoded, encode
from bundle.delta.container import (
    BASE_BYTES,
    MAGIC,
    Header,
    Packed,
    Segment,
    Stream,
    read_header,
)
from bundle.delta.gaps import FromTokens, to_tokens
from bundle.delta.lanes import cost_bytes, planes, together
from bundle.delta.offer import MAX_OFFER_BYTES, DeltaRejected, Offer, read_offer

DIGEST = hashlib.sha256(b"delta").hexdigest()

sparse = st.lists(
    st.one_of(st.just(0), st.just(0), st.integers(0, 255)), max_size=600
).map(lambda values: np.array(values, np.uint8))


def reading(data: bytes) -> Callable[[int], bytes]:
    at = 0

    def read(count: int) -> bytes:
        nonlocal at
        got = data[at : at + count]
        at += len(got)
        return got

    return read


@given(sparse, st.integers(1, 7), st.lists(st.integers(1, 200), max_size=20))
def test_tokens_tell_the_bytes_again_in_pieces_of_any_size(
    data: np.ndarray, bits: int, cuts: list[int]
) -> None:
    tokens, literals = to_tokens(data, bits)
    source = FromTokens(reading(tokens), reading(literals), bits, len(data))
    got, left = [], len(data)
    for cut in [*cuts, 1000]:
        got.append(source.read(min(cut, left)))
        left -= len(got[-1])
    assert np.array_equal(np.concatenate(got), data)


def test_long_stretches_of_nothing_cost_next_to_nothing() -> None:
    data = np.zeros(1_000_000, np.uint8)
    assert to_tokens(data, 4) == (b"", b"")
    data[999_999] = 1
    tokens, _ = to_tokens(data, 6)
    _, packed = encode(tokens, lambda: None)
    assert len(packed) < 64


def test_tokens_that_tell_of_more_than_there_is_are_refused() -> None:
    source = FromTokens(reading(b"\xff" * 100), reading(b""), 4, 200)
    with pytest.raises(DeltaRejected, match="more than 200"):
        source.read(200)


@given(st.sampled_from([1, 2, 4]), st.data())
def test_planes_and_the_base_make_the_wanted_bytes_again(
    lane: int, data: st.DataObject
) -> None:
    words = data.draw(st.integers(1, 64))
    old, new = (
        np.frombuffer(data.draw(st.binary(min_size=n, max_size=n)), np.uint8)
        for n in (words * lane, words * lane)
    )
    assert np.array_equal(together(old, planes(old, new, lane)), new)


def test_a_float_that_moves_a_little_leaves_its_upper_planes_empty() -> None:
    old = np.linspace(0.5, 0.9, 4096, dtype=np.float32)
    new = old * np.float32(1.00001)
    apart = planes(old.view(np.uint8), new.view(np.uint8), 4)
    assert not apart[2].any()
    assert not apart[3].any()
    assert cost_bytes(old.view(np.uint8), new.view(np.uint8), 4) < old.nbytes / 2.5


@given(st.binary(max_size=3000), st.binary(max_size=300))
@settings(max_examples=50)
def test_what_was_coded_is_decoded_a_few_bytes_at_a_time(
    data: bytes, prefix: bytes
) -> None:
    coding, packed = encode(data, lambda: None, prefix=prefix)
    refers = prefix if coding is Coding.ZSTD and len(prefix) >= 8 else b""
    decoded = Decoded(coding, reading(packed), len(data), prefix=refers)
    got = b""
    while some := decoded.some(7):
        got += some
    assert got == data


@pytest.mark.parametrize("level", [5, 19])
def test_what_is_longer_than_a_read_is_decoded_whole(level: int) -> None:
    rng = np.random.default_rng(0)
    data = rng.integers(0, 12, 400_000, np.uint8).tobytes()
    coding, packed = encode(data, lambda: None, level=level)
    assert len(packed) > 2 * coded.READ_BYTES
    decoded = Decoded(coding, reading(packed), len(data))
    got = b"".join(iter(lambda: decoded.some(65_536), b""))
    assert got == data


@pytest.mark.parametrize("coding", [Coding.ZSTD, Coding.LZMA])
def test_a_decompression_bomb_gives_no_more_than_is_asked_for(coding: Coding) -> None:
    zeros = bytes(50_000_000)
    if coding is Coding.ZSTD:
        found, packed = encode(zeros, lambda: None, level=5)
        assert found is coding
    else:
        packed = lzma.compress(
            zeros, lzma.FORMAT_RAW, filters=coded._filters(len(zeros))
        )
    assert len(packed) < 20_000
    decoded = Decoded(coding, reading(packed), 1000)
    assert len(decoded.exactly(1000)) == 1000
    assert decoded.some(1) == b""


def test_a_stream_that_ends_early_or_is_damaged_is_refused() -> None:
    coding, packed = encode(bytes(range(256)) * 40, lambda: None)
    for damaged in (packed[: len(packed) // 2], b"\x00" * 64):
        with pytest.raises(DeltaRejected):
            Decoded(coding, reading(damaged), 10_240).exactly(10_240)


HEADER = Header(
    base=bytes(BASE_BYTES),
    size_bytes=1000,
    prefix_bytes=64,
    segments=(Segment(0, 100), Segment(1, 500, 70), Segment(4, 400, 600)),
    streams=(
        Stream(0, 0, 0, Packed(Coding.ZSTD, 10, 100)),
        Stream(1, 0, 4, Packed(Coding.LZMA, 20, 300), Packed(Coding.RAW, 2, 2)),
        Stream(4, 3, 0, Packed(Coding.RAW, 100, 100)),
    ),
)


def test_a_header_is_read_as_it_was_written() -> None:
    packed = HEADER.pack()
    assert read_header(packed + b"streams") == (HEADER, len(packed))


@given(st.binary(max_size=200))
def test_no_bytes_break_the_reading_of_a_header(data: bytes) -> None:
    for given_bytes in (data, MAGIC + bytes(BASE_BYTES) + data):
        try:
            header, _ = read_header(given_bytes)
        except DeltaRejected:
            continue
        assert sum(each.length for each in header.segments) == header.size_bytes


@given(st.integers(0, len(HEADER.pack()) - 1), st.integers(1, 255))
def test_a_header_with_one_wrong_byte_is_refused_or_still_agrees_with_itself(
    at: int, flip: int
) -> None:
    packed = bytearray(HEADER.pack())
    packed[at] ^= flip
    try:
        header, _ = read_header(bytes(packed))
    except DeltaRejected:
        return
    assert sum(each.length for each in header.segments) == header.size_bytes


def test_an_offer_of_one_chunk_is_short_and_read_whole() -> None:
    offer = Offer(kind="subtract", sha256=DIGEST, size_bytes=1000, chunks=(DIGEST,))
    assert len(offer.to_json()) < 128
    assert read_offer(offer.to_json()) == offer
    full = Offer(kind="full")
    assert read_offer(full.to_json()) == full
    long = Offer(
        kind="prefix", sha256=DIGEST, size_bytes=200_000, chunks=(DIGEST, DIGEST)
    )
    assert read_offer(long.to_json()) == long


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"[]",
        b'{"kind":"magic"}',
        b'{"kind":"subtract","sha256":"short","size_bytes":1}',
        b'{"kind":"subtract","sha256":"%s","size_bytes":-1}' % DIGEST.encode(),
        b'{"kind":"subtract","sha256":"%s","size_bytes":999999}' % DIGEST.encode(),
        b'{"kind":"subtract","sha256":"%s","size_bytes":true}' % DIGEST.encode(),
        b" " * (MAX_OFFER_BYTES + 1),
    ],
)
def test_what_is_no_offer_is_refused_by_name(data: bytes) -> None:
    with pytest.raises(DeltaRejected, match="offer"):
        read_offer(data)
