"""Deltas between real packed bundles, on a real disk and in a real registry."""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np
import pytest

from bundle import layout
from bundle.delta.apply import apply_delta
from bundle.delta.build import BuildLimits, build_delta
from bundle.delta.offer import DeltaRejected, read_offer
from bundle.delta.offering import offer_delta
from bundle.source import NotThere
from tests.registries import (
    Registry,
    model_bytes,
    packed_bundle,
    sha256_of,
    tuned,
)

SIZE = 40_000
OLD = model_bytes(SIZE)
FLOATS = np.random.default_rng(5).normal(0, 0.1, SIZE // 4).astype("<f4")

CHANGES = {
    "nothing": OLD,
    "every byte": model_bytes(SIZE, seed=9),
    "a few weights": tuned(OLD, 0.02),
    "the last layer": OLD[:-4000] + tuned(OLD[-4000:], 1.0),
    "some bytes put in": OLD[:7_001] + b"metadata!" + OLD[7_001:],
    "some bytes taken out": OLD[:7_001] + OLD[7_010:],
    "much longer": OLD + model_bytes(3_000, seed=3),
    "much shorter": OLD[:1000],
}


@pytest.mark.parametrize("change", CHANGES)
def test_a_delta_makes_the_wanted_bundle_to_the_byte(
    tmp_path: Path, change: str
) -> None:
    base = packed_bundle(tmp_path, "1", OLD)
    wanted = packed_bundle(tmp_path, "2", CHANGES[change], labels=["boot", "bag"])
    limits = BuildLimits(max_share=10.0)
    delta = build_delta(base, sha256_of(base), wanted, limits=limits)
    assert delta is not None
    (tmp_path / "delta").write_bytes(delta.data)
    blocks = apply_delta(
        base,
        sha256_of(base),
        tmp_path / "delta",
        size_bytes=wanted.stat().st_size,
    )
    assert b"".join(blocks) == wanted.read_bytes()


def test_floats_that_moved_a_little_are_half_of_what_they_were(tmp_path: Path) -> None:
    base = packed_bundle(tmp_path, "1", FLOATS.tobytes())
    moved = (FLOATS * np.float32(1.0001)).tobytes()
    wanted = packed_bundle(tmp_path, "2", moved)
    delta = build_delta(base, sha256_of(base), wanted)
    assert delta is not None
    assert delta.kind == "subtract"
    assert len(delta.data) < 0.55 * len(moved)


def test_a_shift_costs_next_to_nothing(tmp_path: Path) -> None:
    base = packed_bundle(tmp_path, "1", OLD)
    shifted = packed_bundle(tmp_path, "2", os.urandom(37) + OLD)
    delta = build_delta(base, sha256_of(base), shifted)
    assert delta is not None
    assert len(delta.data) < 1000


def test_what_has_nothing_in_common_is_sent_in_full(tmp_path: Path) -> None:
    base = packed_bundle(tmp_path, "1", os.urandom(SIZE))
    other = packed_bundle(tmp_path, "2", os.urandom(SIZE))
    assert build_delta(base, sha256_of(base), other) is None


def test_a_delta_that_takes_too_long_or_is_too_big_to_make_is_none(
    tmp_path: Path,
) -> None:
    base = packed_bundle(tmp_path, "1", OLD)
    wanted = packed_bundle(tmp_path, "2", tuned(OLD))
    passing = iter(range(10**6))
    slow = build_delta(
        base,
        sha256_of(base),
        wanted,
        limits=BuildLimits(max_s=0.5),
        now_s=lambda: float(next(passing)),
    )
    assert slow is None
    small = BuildLimits(max_bytes=1000)
    assert build_delta(base, sha256_of(base), wanted, limits=small) is None


def made(tmp_path: Path) -> tuple[Path, Path, int]:
    """A base, a delta of it, and the size of what it makes."""
    base = packed_bundle(tmp_path, "1", OLD)
    wanted = packed_bundle(tmp_path, "2", tuned(OLD))
    delta = build_delta(base, sha256_of(base), wanted)
    assert delta is not None
    (tmp_path / "delta").write_bytes(delta.data)
    return base, tmp_path / "delta", wanted.stat().st_size


def test_a_delta_for_another_base_is_refused_by_name(tmp_path: Path) -> None:
    _, delta, size = made(tmp_path)
    other = packed_bundle(tmp_path, "3", model_bytes(SIZE, seed=4))
    with pytest.raises(DeltaRejected, match="made for base"):
        list(apply_delta(other, sha256_of(other), delta, size_bytes=size))


def test_a_delta_that_would_make_more_than_was_sealed_is_refused_before_it_is_applied(
    tmp_path: Path,
) -> None:
    base, delta, size = made(tmp_path)
    with pytest.raises(DeltaRejected, match="sealed were"):
        next(apply_delta(base, sha256_of(base), delta, size_bytes=size - 1))


def test_no_damaged_delta_does_worse_than_to_be_refused_or_make_other_bytes(
    tmp_path: Path,
) -> None:
    base, delta, size = made(tmp_path)
    digest, good = sha256_of(base), delta.read_bytes()
    rng = np.random.default_rng(7)
    for _ in range(40):
        bad = bytearray(good)
        bad[int(rng.integers(len(bad)))] ^= int(rng.integers(1, 256))
        delta.write_bytes(bad[: int(rng.integers(1, len(bad) + 1))])
        try:
            blocks = list(apply_delta(base, digest, delta, size_bytes=size))
        except DeltaRejected:
            continue
        assert sum(map(len, blocks)) == size


def test_a_delta_is_offered_once_beside_the_blobs_of_a_registry(
    tmp_path: Path,
) -> None:
    registry = Registry(tmp_path)
    _, first = registry.publish("1", OLD)
    _, second = registry.publish("2", tuned(OLD))
    offer = offer_delta(registry.tree, first.sha256, second.sha256)
    assert offer.kind == "subtract"
    path = layout.delta_offer(first.sha256, second.sha256)
    assert read_offer(registry.path(path).read_bytes()) == offer
    blob = registry.path(layout.blob(offer.sha256))
    assert sha256_of(blob) == offer.sha256
    written = blob.stat().st_mtime_ns
    assert offer_delta(registry.tree, first.sha256, second.sha256) == offer
    assert blob.stat().st_mtime_ns == written
    blob.unlink()
    assert offer_delta(registry.tree, first.sha256, second.sha256) == offer
    assert blob.exists()


def test_that_there_is_no_delta_is_kept_too_so_that_nobody_tries_again(
    tmp_path: Path,
) -> None:
    registry = Registry(tmp_path)
    _, first = registry.publish("1", os.urandom(20_000))
    _, second = registry.publish("2", os.urandom(20_000))
    assert offer_delta(registry.tree, first.sha256, second.sha256).kind == "full"
    path = registry.path(layout.delta_offer(first.sha256, second.sha256))
    assert read_offer(path.read_bytes()).kind == "full"


def test_no_delta_is_made_of_a_blob_that_is_damaged_or_missing(tmp_path: Path) -> None:
    registry = Registry(tmp_path)
    _, first = registry.publish("1", OLD)
    _, second = registry.publish("2", tuned(OLD))
    with pytest.raises(NotThere):
        offer_delta(registry.tree, "0" * 64, second.sha256)
    blob = registry.path(layout.blob(first.sha256))
    blob.write_bytes(blob.read_bytes()[:-1] + b"?")
    with pytest.raises(DeltaRejected, match="publish that version again"):
        offer_delta(registry.tree, first.sha256, second.sha256)
