from __future__ import annotations

from cloud_worker.core.shared_chunks import MAX_REMEMBERED, QUIET_S, SharedChunks

CHUNK = ("blobs/" + "a" * 64, 0, 131_072)


def test_a_chunk_is_published_once_and_again_only_after_a_while() -> None:
    shared = SharedChunks()
    assert shared.claim(CHUNK, 100.0)
    assert not shared.claim(CHUNK, 100.0 + QUIET_S / 2)
    assert shared.claim(CHUNK, 100.0 + QUIET_S)
    assert (shared.published, shared.spared) == (2, 1)


def test_another_range_of_the_same_blob_is_another_chunk() -> None:
    shared = SharedChunks()
    assert shared.claim(CHUNK, 0.0)
    assert shared.claim((CHUNK[0], 131_072, 131_072), 0.0)


def test_what_could_not_be_published_may_be_claimed_again() -> None:
    shared = SharedChunks()
    assert shared.claim(CHUNK, 0.0)
    shared.forget(CHUNK)
    shared.forget(CHUNK)
    assert shared.claim(CHUNK, 0.0)
    assert shared.published == 1


def test_no_flood_of_ranges_is_remembered_beyond_a_bound() -> None:
    shared = SharedChunks()
    for offset in range(3 * MAX_REMEMBERED):
        assert shared.claim((CHUNK[0], offset, 1), 0.0)
    assert len(shared._at_s) <= MAX_REMEMBERED + 1
