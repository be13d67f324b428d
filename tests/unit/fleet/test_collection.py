"""What of a registry can go: never what a seal, a rollout or a useful delta needs."""

from __future__ import annotations

from dataclasses import replace

from hypothesis import given
from hypothesis import strategies as st

from bundle.tree import Leaf
from fleet.core.collection import Offered, Unneeded, unneeded

NOW_MS = 1_000_000
DIGESTS = st.sampled_from("abcdefgh")


def blob(digest: str, changed_ms: int = 0) -> Leaf:
    return Leaf(f"blobs/{digest}", 10, changed_ms)


def offer(base: str, wanted: str, delta: str | None) -> Offered:
    return Offered(Leaf(f"deltas/{base}/{wanted}.json", 1, 0), base, wanted, delta)


def gone(found: Unneeded) -> set[str]:
    return {each.path for each in (*found.blobs, *found.offers)}


def test_what_no_seal_names_goes_and_what_one_names_stays() -> None:
    found = unneeded(
        [blob("a"), blob("b")], [], needed={"a"}, held={"b"}, before_ms=NOW_MS
    )
    assert gone(found) == {"blobs/b"}
    assert found.size_bytes == 10


def test_what_is_new_stays() -> None:
    new = [blob("a", NOW_MS), blob("b", NOW_MS - 1)]
    assert gone(unneeded(new, [], needed=(), held=(), before_ms=NOW_MS)) == {"blobs/b"}


def test_a_delta_stays_while_agents_may_have_its_base() -> None:
    blobs = [blob(each) for each in "awx"]
    offers = [offer("a", "w", "x")]
    for held in ({"a"}, set[str]()):
        found = unneeded(blobs, offers, needed={"w"}, held=held, before_ms=NOW_MS)
        assert ("blobs/x" in gone(found)) == (not held)
        assert ("deltas/a/w.json" in gone(found)) == (not held)
        # The base itself is only read when a delta is built.
        assert "blobs/a" in gone(found)


def test_a_delta_to_what_nobody_wants_goes_with_its_blob() -> None:
    found = unneeded(
        [blob("a"), blob("x")],
        [offer("a", "w", "x"), offer("a", "v", None)],
        needed={"a"},
        held={"a"},
        before_ms=NOW_MS,
    )
    assert gone(found) == {"blobs/x", "deltas/a/w.json", "deltas/a/v.json"}


@given(
    st.frozensets(DIGESTS),
    st.frozensets(DIGESTS),
    st.frozensets(DIGESTS),
    st.lists(st.tuples(DIGESTS, DIGESTS, st.none() | DIGESTS), max_size=8),
)
def test_nothing_that_is_needed_goes_and_a_second_time_nothing_goes(
    there: frozenset[str],
    needed: frozenset[str],
    held: frozenset[str],
    deltas: list[tuple[str, str, str | None]],
) -> None:
    offers = list({(a, b): offer(a, b, c) for a, b, c in deltas}.values())
    blobs = [blob(each) for each in there]
    found = unneeded(blobs, offers, needed=needed, held=held, before_ms=NOW_MS)
    left = [each for each in blobs if each not in found.blobs]
    offered = [each for each in offers if each.leaf not in found.offers]
    assert needed & there <= {each.path[-1] for each in left}
    assert all(blob(each.blob) in left for each in offered if each.blob in there)
    again = unneeded(left, offered, needed=needed, held=held, before_ms=NOW_MS)
    assert gone(again) == set()
    young = [replace(each, changed_ms=NOW_MS) for each in blobs]
    assert not unneeded(young, offers, needed=needed, held=held, before_ms=NOW_MS).blobs
