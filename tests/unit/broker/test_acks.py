"""The ledger of acknowledgements says each delivery's end once and no other's."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from broker.amqp.acks import Acks, Due


def test_nothing_is_owed_at_first() -> None:
    acks = Acks()
    assert acks.owed == 0
    assert acks.take() == Due(0, ())


def test_finished_in_order_is_one_acknowledgement() -> None:
    acks = Acks()
    for tag in (1, 2, 3):
        acks.finish(tag)
    assert acks.owed == 3
    assert acks.take() == Due(3, ())
    assert acks.owed == 0


def test_a_straggler_keeps_nobody_back() -> None:
    acks = Acks()
    for tag in (1, 3, 4):
        acks.finish(tag)
    assert acks.take() == Due(1, (3, 4))
    acks.finish(2)
    assert acks.take() == Due(2, ())
    acks.finish(5)
    assert acks.take() == Due(5, ())


def test_what_was_rejected_is_passed_over_and_never_acknowledged() -> None:
    acks = Acks()
    acks.settled(2)
    acks.finish(3)
    assert acks.take() == Due(0, (3,))
    acks.finish(1)
    assert acks.take() == Due(1, ())
    acks.finish(4)
    assert acks.take() == Due(4, ())


@given(st.data())
def test_the_broker_is_told_of_each_finished_delivery_and_of_no_other(
    data: st.DataObject,
) -> None:
    count = data.draw(st.integers(1, 30))
    order = data.draw(st.permutations(range(1, count + 1)))
    ended = order[: data.draw(st.integers(0, count))]
    acks = Acks()
    finished, rejected, told = set[int](), set[int](), set[int]()
    for tag in ended:
        if data.draw(st.booleans(), label=f"reject {tag}"):
            acks.settled(tag)
            rejected.add(tag)
        else:
            acks.finish(tag)
            finished.add(tag)
        if data.draw(st.booleans(), label="take"):
            told |= _told_by(acks.take(), told | rejected)
    told |= _told_by(acks.take(), told | rejected)
    assert told == finished


def _told_by(due: Due, settled: set[int]) -> set[int]:
    """What a broker takes this for: up to a tag, all that it has not settled."""
    covered = {tag for tag in range(1, due.up_to + 1) if tag not in settled}
    alone = set(due.alone)
    assert not alone & (covered | settled)
    return covered | alone
