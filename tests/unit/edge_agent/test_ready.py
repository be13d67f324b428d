from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from broker.messages import Priority
from edge_agent.core.ready import Ready, ReadySet


def entry(number: int, deadline_ms: float, topic: str = "t", size: int = 10) -> Ready:
    return Ready(deadline_ms, number, topic, ("cam", f"r{number}"), bytes(size))


def numbers(batch: list[Ready]) -> list[int]:
    return [each.number for each in batch]


def test_the_most_urgent_class_goes_first_and_in_it_the_earliest_deadline() -> None:
    ready = ReadySet()
    ready.add(Priority.BULK, entry(1, 10.0))
    ready.add(Priority.NORM, entry(2, 300.0))
    ready.add(Priority.NORM, entry(3, 200.0))
    ready.add(Priority.HI, entry(4, 900.0))
    ready.add(Priority.NORM, entry(5, 200.0))
    taken = [numbers(ready.take(max_items=2, max_bytes=1000)) for _ in range(5)]
    assert taken == [[4], [3, 5], [2], [1], []]
    assert (ready.rows, ready.bytes) == (0, 0)


def test_an_envelope_is_full_though_topics_alternate() -> None:
    ready = ReadySet()
    for number in range(20):
        ready.add(Priority.NORM, entry(number, float(number), f"t{number % 2}"))
    batch = ready.take(max_items=8, max_bytes=1000)
    assert numbers(batch) == list(range(0, 16, 2))
    batch = ready.take(max_items=8, max_bytes=1000)
    assert numbers(batch) == list(range(1, 17, 2))


def test_an_envelope_is_bounded_in_bytes_but_one_request_always_fits() -> None:
    ready = ReadySet()
    for number in range(4):
        ready.add(Priority.NORM, entry(number, float(number), size=100))
    assert numbers(ready.take(max_items=9, max_bytes=10)) == [0]
    assert numbers(ready.take(max_items=9, max_bytes=250)) == [1, 2]


@given(
    st.lists(
        st.tuples(
            st.sampled_from(list(Priority)),
            st.integers(0, 50),
            st.sampled_from("ab"),
            st.integers(1, 40),
        ),
        max_size=60,
    ),
    st.integers(1, 10),
    st.integers(1, 100),
)
def test_everything_leaves_once_and_nothing_overtakes_its_own_topic(
    entries: list[tuple[Priority, int, str, int]], max_items: int, max_bytes: int
) -> None:
    ready = ReadySet()
    for number, (priority, deadline, topic, size) in enumerate(entries):
        name = f"{priority}/{topic}"
        ready.add(priority, entry(number, float(deadline), name, size))
    seen: list[Ready] = []
    while batch := ready.take(max_items=max_items, max_bytes=max_bytes):
        assert len({each.topic for each in batch}) == 1
        assert len(batch) <= max_items
        assert len(batch) == 1 or sum(len(e.packed) for e in batch) <= max_bytes
        seen += batch
    assert sorted(numbers(seen)) == list(range(len(entries)))
    assert (ready.rows, ready.bytes) == (0, 0)
    for topic in {each.topic for each in seen}:
        own = [each for each in seen if each.topic == topic]
        assert own == sorted(own)
    ranks = [entries[each.number][0] for each in seen]
    assert ranks == sorted(ranks, key=list(Priority).index)
