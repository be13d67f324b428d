from __future__ import annotations

from cloud_worker.core.shared_chunks import (
    FRESH_S,
    MAX_REMEMBERED,
    QUIET_S,
    Reply,
    SharedChunks,
)

CHUNK = ("blobs/" + "a" * 64, 0, 131_072)


def test_a_wave_is_told_once_and_who_asks_later_alone() -> None:
    shared = SharedChunks()
    asked_s = (0.0, FRESH_S / 2, FRESH_S, QUIET_S - 0.1, QUIET_S)
    found = [shared.claim(CHUNK, 100.0 + at_s) for at_s in asked_s]
    assert found == [
        Reply.WAVE,
        Reply.NOTHING,  # it is on its way
        Reply.ALONE,
        Reply.ALONE,
        Reply.WAVE,  # another wave
    ]
    assert (shared.published, shared.spared, shared.repaired) == (2, 1, 2)


def test_who_began_to_listen_after_it_was_told_need_not_wait() -> None:
    shared = SharedChunks()
    assert shared.claim(CHUNK, 100.0, 3.0) is Reply.WAVE
    assert shared.claim(CHUNK, 104.0, 3.5) is Reply.NOTHING
    assert shared.claim(CHUNK, 104.0, 2.5) is Reply.ALONE


def test_another_range_of_the_same_blob_is_another_chunk() -> None:
    shared = SharedChunks()
    assert shared.claim(CHUNK, 0.0) is Reply.WAVE
    assert shared.claim((CHUNK[0], 131_072, 131_072), 0.0) is Reply.WAVE


def test_what_could_not_be_published_may_be_claimed_again() -> None:
    shared = SharedChunks()
    assert shared.claim(CHUNK, 0.0) is Reply.WAVE
    shared.forget(CHUNK)
    shared.forget(CHUNK)
    assert shared.claim(CHUNK, 0.0) is Reply.WAVE
    assert shared.published == 1


def test_no_flood_of_ranges_is_remembered_beyond_a_bound() -> None:
    shared = SharedChunks()
    for offset in range(3 * MAX_REMEMBERED):
        shared.claim((CHUNK[0], offset, 1), 0.0)
    assert len(shared._at_s) <= MAX_REMEMBERED + 1
