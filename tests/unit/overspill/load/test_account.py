from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from broker.messages import Medium, Priority
from overspill.load.account import (
    GROUPS_KEPT,
    OTHER,
    OTHER_GROUPS,
    REASONS_KEPT,
    Account,
    End,
    Ending,
)
from overspill.load.mix import Payload, Planned

PAYLOAD = Payload("p", medium=Medium(media_type="image/png", data=b"p"))


def planned(
    number: int,
    offset_s: float = 0.0,
    deadline_s: float = 0.1,
    *,
    measured: bool = True,
    model: str = "m",
) -> Planned:
    return Planned(
        number, offset_s, 0, model, Priority.NORM, deadline_s, PAYLOAD, measured
    )


def answered(number: int) -> Ending:
    return Ending(number, End.ANSWERED, batch_size=4)


def test_latency_runs_from_the_intended_time_however_late_it_was_sent() -> None:
    account = Account(lost_after_s=1)
    account.offer(planned(0, offset_s=1.0))
    account.began(planned(0, offset_s=1.0), at_s=1.4)

    account.hear(answered(0), at_s=1.5)

    assert account.total.latency.max_s == pytest.approx(0.5)
    assert account.lateness.max_s == pytest.approx(0.4)
    assert account.total.goodput == 0.0  # its deadline was 0.1 s after 1.0 s


def test_goodput_is_what_was_answered_in_time_of_all_that_was_offered() -> None:
    account = Account(lost_after_s=1)
    for number in range(4):
        account.offer(planned(number))
    account.hear(answered(0), at_s=0.05)
    account.hear(answered(1), at_s=0.2)
    account.hear(Ending(2, End.FAILED, "overloaded: send again in 3 s"), at_s=0.01)
    account.hear(Ending(3, End.EXPIRED, "no room"), at_s=0.1)

    assert account.total.goodput == 0.25
    assert account.total.ends == {End.ANSWERED: 2, End.FAILED: 1, End.EXPIRED: 1}
    assert account.total.overloaded == 1
    assert account.reasons[End.FAILED].counts == {"overloaded: send again in 3 s": 1}


def test_a_second_word_on_a_request_is_a_duplicate_and_changes_nothing() -> None:
    account = Account(lost_after_s=1)
    account.offer(planned(0))
    account.hear(answered(0), at_s=0.01)
    account.hear(Ending(0, End.FAILED, "late"), at_s=0.02)

    assert account.duplicates == 1
    assert account.total.ends == {End.ANSWERED: 1}


def test_what_nobody_answers_within_the_bound_is_lost_and_stays_lost() -> None:
    account = Account(lost_after_s=1)
    account.offer(planned(0, deadline_s=0.5))

    assert account.next_give_up_s == 1.5
    assert account.give_up(1.49) == 0
    assert account.give_up(1.5) == 1
    account.hear(answered(0), at_s=1.6)

    assert account.total.ends == {End.LOST: 1}
    assert (account.after_lost, account.duplicates) == (1, 0)
    assert account.total.latency.count == 0


def test_what_is_sent_to_warm_up_is_not_measured() -> None:
    account = Account(lost_after_s=1)
    account.offer(planned(0, measured=False))
    account.began(planned(0, measured=False), at_s=0.5)
    account.hear(answered(0), at_s=0.6)

    assert account.total.offered == account.lateness.count == 0
    assert account.warmup.ends == {End.ANSWERED: 1}


def test_each_model_and_deadline_has_its_own_figures() -> None:
    account = Account(lost_after_s=1)
    account.offer(planned(0, model="a", deadline_s=0.03))
    account.offer(planned(1, model="b", deadline_s=0.15))
    account.hear(answered(0), at_s=0.1)
    account.hear(answered(1), at_s=0.1)

    by_model, by_deadline = account.groups("model"), account.groups("deadline")
    assert {name: tally.goodput for name, tally in by_model.items()} == {"a": 0, "b": 1}
    assert list(by_deadline) == ["30ms", "150ms"]


def test_a_stranger_s_result_is_not_counted() -> None:
    account = Account(lost_after_s=1)
    account.offer(planned(0))
    account.hear(answered(7), at_s=0.1)
    account.hear(answered(-1), at_s=0.1)

    assert account.total.ends.total() == 0


def test_reasons_without_end_do_not_take_memory_without_end() -> None:
    account = Account(lost_after_s=1)
    for number in range(100):
        account.offer(planned(number))
        words = "x" * (number + 1)
        account.hear(Ending(number, End.FAILED, f"{words} failed"), at_s=0.1)

    assert len(account.reasons[End.FAILED].counts) == REASONS_KEPT + 1
    assert account.reasons[End.FAILED].counts[OTHER] == 100 - REASONS_KEPT


def test_deadlines_without_end_do_not_make_groups_without_end() -> None:
    account = Account(lost_after_s=1)
    for number in range(GROUPS_KEPT + 10):
        account.offer(planned(number, deadline_s=1 + number))

    by_deadline = account.groups("deadline")
    assert len(by_deadline) == GROUPS_KEPT + 1
    assert by_deadline[OTHER_GROUPS].offered == 10


def test_reasons_that_differ_in_figures_are_one_in_the_words_of_the_first() -> None:
    account = Account(lost_after_s=1)
    for port in (1883, 1884):
        account.publish_failed(f"nothing listens at mqtt://host:{port}")

    assert account.publish_failures.counts == {"nothing listens at mqtt://host:1883": 2}


EVENTS = st.lists(
    st.tuples(
        st.sampled_from(["offer", "hear", "unsent", "give_up"]),
        st.integers(0, 12),
        st.sampled_from([End.ANSWERED, End.FAILED, End.EXPIRED, End.REFUSED]),
    ),
    max_size=60,
)


@given(events=EVENTS)
def test_every_request_is_in_one_place_whatever_happens(
    events: list[tuple[str, int, End]],
) -> None:
    account = Account(lost_after_s=1)
    offered: list[Planned] = []
    unsent: set[int] = set()
    heard = 0
    for step, (what, number, end) in enumerate(events):
        now_s = step * 0.2
        if what == "offer":
            offered.append(planned(len(offered), now_s, measured=number % 3 > 0))
            account.offer(offered[-1])
            if number == 0:
                account.not_sent(offered[-1])
                unsent.add(offered[-1].number)
        elif what == "hear" and number not in unsent:
            heard += number < len(offered)
            account.hear(Ending(number, end), now_s)
        elif what == "give_up":
            account.give_up(now_s)

    both = (account.total, account.warmup)
    assert sum(each.offered for each in both) == len(offered)
    assert sum(each.open for each in both) == account.open
    ended = sum(each.ends.total() for each in both)
    assert ended + account.open == len(offered)
    by_model = account.groups("model").values()
    assert sum(each.ends.total() for each in by_model) == account.total.ends.total()
    lost = sum(each.ends[End.LOST] for each in both)
    # Each word heard ended a request, doubled an end, or came for one given up.
    assert (
        heard == (ended - lost - len(unsent)) + account.duplicates + account.after_lost
    )
