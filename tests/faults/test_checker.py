"""The checker is fed good histories, and each way in which one can be broken."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.faults.checker import Verdict, check
from tests.faults.history import Line

DEVICE, AGENT, WORKER = "device:cam1", "agent:agent-1", "worker:w1"
SPILL = ("accepting", "accepted", "heard-accepted", "sending", "sent", "seen")
END = ("published", "ending", "ended", "telling", "heard", "told", "marked")

# What an id went through, in words that `lines` reads.
STORIES: dict[str, tuple[str, ...]] = {
    "edge": ("offered", "heard-edge"),
    "plain": ("offered", *SPILL, *END),
    "failed": ("offered", *SPILL, *(f"{each}=failed" for each in END)),
    "expired": ("offered", *SPILL[:3], "ending=expired", "ended=expired", "heard=expired"),
    # Its answer came before its commit, and is its own acknowledgement.
    "overtaken": ("offered", "sending", "seen", "published", "ended", "heard", "told"),
    # As before, but the agent died before it was told or written.
    "redone": ("offered", "sending", "ended", "CRASH", *SPILL, *END),
    # The agent died while it was to be written and ended; the device asked again.
    "begun": ("offered", "accepting", "ending", "CRASH", "ended", "heard", "marked"),
    # Each of the next dies one step later.
    "died-committed": ("offered", "accepting", "CRASH", "recovered=open", *SPILL[3:], *END),
    "died-accepted": ("offered", *SPILL[:3], "CRASH", "recovered=open", *SPILL[3:], *END),
    "died-ending": ("offered", *SPILL, "ending", "CRASH", "recovered=answered", *END[3:]),
    "died-ended": ("offered", *SPILL, *END[:3], "CRASH", "recovered=answered", *END[3:]),
    "died-told": ("offered", *SPILL, *END[:6], "CRASH", "recovered=answered", *END[3:]),
}  # fmt: skip


def one(word: str, id_: str, t: int) -> Line:
    """The line that a word of a story stands for."""
    event, _, how = word.partition("=")
    how = how or "answered"
    match event.split("-"):
        case ["offered"]:
            detail = {"digest": id_, "local": id_ == "edge"}
            return Line(t, DEVICE, event, "cam1", id_, json.dumps(detail))
        case ["heard", *what]:
            return Line(t, DEVICE, "heard", "cam1", id_, heard(what, how, id_))
        case ["CRASH"]:
            return Line(t, AGENT, "started")
        case ["seen"] | ["published"]:
            return Line(t, WORKER, event, "cam1", id_, how)
        case _:
            return Line(t, AGENT, event, "cam1", id_, how)


def heard(what: list[str], how: str, id_: str) -> str:
    """The detail of an answer."""
    if what == ["accepted"]:
        return json.dumps({"status": "accepted", "source": None, "final": False})
    source = "edge" if what == ["edge"] else "cloud"
    answer = {"status": how, "source": source, "final": True}
    return json.dumps({**answer, "digest": id_} if how == "answered" else answer)


def lines(*stories: str) -> list[Line]:
    """The history of these ids, one after another."""
    words = [(word, story) for story in stories for word in STORIES[story]]
    return [one(word, id_, t) for t, (word, id_) in enumerate(words, 1)]


def without(event: str, history: list[Line], detail: str = "") -> list[Line]:
    """The history as it would be, had this never been seen."""
    index = find(event, history, detail)
    return history[:index] + history[index + 1 :]


def find(event: str, history: list[Line], detail: str = "") -> int:
    return next(
        index
        for index, line in enumerate(history)
        if line.event == event and detail in line.detail
    )


@pytest.mark.parametrize("story", STORIES)
def test_a_good_history_is_good(story: str) -> None:
    verdict = check(lines(story))
    assert verdict.good, verdict.breaches
    assert (verdict.offered, verdict.pending, verdict.untold) == (1, 0, 0)
    assert verdict.answered + verdict.failed + verdict.expired == 1


def test_good_histories_together_are_good_and_counted() -> None:
    verdict = check(lines(*STORIES))
    assert verdict.good, verdict.breaches
    assert verdict.offered == len(STORIES)
    assert (verdict.failed, verdict.expired) == (1, 1)
    assert verdict.answered == len(STORIES) - 2
    # All but what the edge answered and what its answer overtook.
    assert verdict.accepted == len(STORIES) - 3
    assert verdict.retold == 1


def broken() -> Iterator[tuple[str, str, list[Line]]]:
    plain = lines("plain")
    yield "lost", "no outcome", plain[: find("ending", plain)]
    yield "lost", "heard, never recorded", without("ended", plain)
    again = [*plain, replace(plain[find("ended", plain)], t=99)]
    yield "duplicated", "two outcomes", again
    other = [*plain, replace(plain[find("ended", plain)], t=99, detail="expired")]
    yield "duplicated", "two different outcomes", other
    last = plain[find("heard", plain, "answered")]
    differs = replace(last, t=99, detail=last.detail.replace("answered", "failed"))
    yield "duplicated", "two different answers", [*plain, differs]
    yield "strangers", "nobody offered it", without("offered", plain)
    yield "strangers", "nobody accepted it", without("accepted", plain)
    crossed = last.detail.replace('"plain"', '"other"')
    index = plain.index(last)
    wrong = [*plain[:index], replace(last, detail=crossed), *plain[index + 1 :]]
    yield "mismatched", "the answer of another", wrong
    gone = lines("died-accepted")
    yield "unrecovered", "not there after the crash", without("recovered", gone)
    early = list(plain)
    early.insert(find("accepting", plain), early.pop(find("heard", plain, "accepted")))
    yield "premature", "acknowledged before its commit", early
    told = list(plain)
    told.insert(find("ending", plain), told.pop(index))
    yield "premature", "told before it was recorded", told
    anew = [*lines("overtaken"), one("accepted", "overtaken", 99)]
    yield "premature", "accepted after its end", anew
    redone = lines("redone")
    twice = [each for each in redone if each.event != "started"]
    yield "duplicated", "ended twice in one life", twice


@pytest.mark.parametrize(
    ("kind", "history"),
    [pytest.param(kind, history, id=name) for kind, name, history in broken()],
)
def test_each_kind_of_broken_history_is_caught(kind: str, history: list[Line]) -> None:
    verdict = check(history)
    assert verdict.breaches[kind] == 1, verdict
    assert not verdict.good
    assert verdict.examples[kind] == [("cam1", history[1].id)]


def test_a_request_that_nobody_answers_is_pending_and_not_lost() -> None:
    verdict = check(lines("plain")[:1])
    assert verdict.good
    assert verdict.pending == 1


def test_an_outcome_that_no_device_heard_is_untold() -> None:
    history = lines("plain")
    verdict = check(without("heard", history, "answered"))
    assert verdict.good
    assert verdict.untold == 1


def test_a_row_that_ended_unseen_before_a_crash_is_not_ended_again() -> None:
    history = lines("died-ending")
    ended = Line(99, AGENT, "ended", "cam1", "died-ending", "answered")
    assert check([*history, ended]).duplicated == 1


NOT_ESSENTIAL = {"accepting", "sending", "sent", "seen", "published", "telling", "told"}


def essential(history: list[Line]) -> list[int]:
    """Which lines the promise stands on: no run that kept it lacks one, or has two."""
    found = []
    for index, line in enumerate(history):
        if line.event in {*NOT_ESSENTIAL, "ending", "marked", "started"}:
            continue
        later = history[index + 1 :]
        same = [
            each for each in later if (each.event, each.id) == (line.event, line.id)
        ]
        told_again = any("answered" in each.detail for each in same)
        if line.event == "heard" and (told_again or "accepted" in line.detail):
            continue  # Another says the same; the device may have missed `accepted`.
        if line.event == "ended" and (same or line.id.startswith("died-ended")):
            continue  # Redone after a crash, or told by the row that was found.
        if line.id == "died-told" and line.event in {"ended", "recovered", "heard"}:
            continue  # Recorded, found and heard: each is told twice.
        if line.id == "died-ended" and line.event == "recovered":
            continue  # It had ended; whether it was told is another matter.
        found.append(index)
    return found


def differs(one_: Verdict, other: Verdict) -> bool:
    return not other.good or (one_.pending, one_.untold, one_.retold) != (
        other.pending,
        other.untold,
        other.retold,
    )


@given(st.data())
def test_no_essential_line_can_be_missing_or_doubled_unnoticed(
    data: st.DataObject,
) -> None:
    stories = data.draw(st.permutations(list(STORIES)))
    history = lines(*stories)
    index = data.draw(st.sampled_from(essential(history)))
    whole = check(history)
    assert whole.good
    missing = history[:index] + history[index + 1 :]
    assert differs(whole, check(missing)), f"without {history[index]}"
    if history[index].event in {"ended", "heard"}:
        doubled = [*history[: index + 1], *history[index:]]
        assert differs(whole, check(doubled)), f"twice {history[index]}"


@given(st.permutations(list(STORIES)), st.integers(0, 200))
def test_verdicts_of_parts_add_up_to_the_whole(stories: list[str], cut: int) -> None:
    parts = stories[: cut % len(stories)], stories[cut % len(stories) :]
    whole = check(lines(*stories))
    added = check(lines(*parts[0])) + check(lines(*parts[1]))
    assert replace(added, longest_local_gap_s=0.0, drain_s=0.0) == replace(
        whole, longest_local_gap_s=0.0, drain_s=0.0
    )


def test_the_longest_local_gap_counts_only_while_an_answer_is_due() -> None:
    second = 10**9
    history = []
    for id_, offered, heard in (("edge", 0, 1), ("edge", 60, 63), ("edge", 61, 64)):
        name = f"{id_}-{offered}"
        ask, hear = one("offered", id_, offered * second), one("heard-edge", id_, heard)
        history += [
            replace(ask, id=name, detail='{"local": true}'),
            replace(hear, id=name, t=heard * second),
        ]
    history.sort(key=lambda line: line.t)
    assert check(history).longest_local_gap_s == 3.0


def test_the_drain_lasts_until_what_was_offered_before_the_end_is_answered() -> None:
    second = 10**9
    before, after = lines("plain"), lines("overtaken")
    fault = Line(30 * second, "runner", "fault", detail="broker killed ends")
    before = [replace(each, t=each.t * second) for each in before]
    before[-3] = replace(before[-3], t=34 * second)
    after = [replace(each, t=(each.t + 35) * second) for each in after]
    ordered = sorted([*before, fault, *after], key=lambda line: line.t)
    assert check(ordered).drain_s == 4.0
