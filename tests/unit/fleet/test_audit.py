"""The record's chain: whatever is done to it afterwards is found, and said where."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fleet.core.audit import (
    EMPTY,
    MAX_DETAILS,
    Entry,
    Head,
    canonical,
    digest_of,
    faults,
    following,
)

NOW_MS = 1_700_000_000_000
JSON = st.recursive(
    st.none()
    | st.booleans()
    | st.integers()
    | st.text()
    | st.floats(allow_nan=False, allow_infinity=False),
    lambda inner: (
        st.lists(inner, max_size=3) | st.dictionaries(st.text(), inner, max_size=3)
    ),
    max_leaves=8,
)


def chain(length: int) -> list[Entry]:
    log: list[Entry] = []
    for number in range(length):
        log.append(
            following(
                log[-1].head if log else EMPTY,
                at_ms=NOW_MS + number,
                who="alice@desk",
                what="rollout.start",
                subject=f"fashion {number}",
                details={"generation": number},
            )
        )
    return log


def reasons(log: Sequence[Entry], *heads: Head) -> list[tuple[int, str]]:
    return [(each.sequence, each.reason) for each in faults(log, heads)]


def reseal(entry: Entry) -> Entry:
    return replace(entry, digest=digest_of(entry))


def test_a_log_that_nobody_touched_is_whole() -> None:
    log = chain(5)
    assert reasons(log, log[2].head, log[4].head) == []
    assert reasons([]) == []


@pytest.mark.parametrize(
    "changed",
    [
        {"who": "mallory@desk"},
        {"what": "rollout.abort"},
        {"subject": "other"},
        {"details": '{"generation":9}'},
        {"at_ms": NOW_MS},
        {"previous": "1" * 64},
        {"digest": "1" * 64},
    ],
)
def test_a_changed_entry_is_named(changed: dict[str, str]) -> None:
    log = chain(5)
    log[2] = replace(log[2], **changed)  # type: ignore[arg-type]
    assert (3, "entry 3 was changed after it was written") in reasons(log)


def test_an_entry_that_was_changed_and_sealed_anew_breaks_the_next_one() -> None:
    log = chain(5)
    log[2] = reseal(replace(log[2], who="mallory@desk"))
    ((where, reason),) = reasons(log)
    assert where == 4
    assert "does not follow entry 3" in reason


@pytest.mark.parametrize(
    ("gone", "said"), [(slice(1, 2), "entry 2 is"), (slice(0, 3), "entries 1 to 3 are")]
)
def test_removed_entries_are_named(gone: slice, said: str) -> None:
    log = chain(5)
    del log[gone]
    ((where, reason),) = reasons(log)
    assert reason == f"{said} missing"
    assert where == gone.start + 1


def test_entries_that_changed_places_are_found() -> None:
    log = chain(5)
    one, two = log[1], log[2]
    log[1] = reseal(replace(two, sequence=2))
    log[2] = reseal(replace(one, sequence=3))
    assert [where for where, _ in reasons(log)] == [2, 3, 4]


def test_a_log_whose_end_was_cut_is_found_by_a_head_from_elsewhere() -> None:
    log = chain(5)
    kept = log[4].head
    assert reasons(log[:3]) == []
    ((where, reason),) = reasons(log[:3], kept)
    assert where == 5
    assert "the log ends at 3" in reason


def test_a_log_that_was_written_anew_is_found_by_a_head_from_elsewhere() -> None:
    log = chain(3)
    anew = [following(EMPTY, at_ms=1, who="m", what="w", subject="s", details={})]
    ((where, reason),) = reasons(anew, Head(1, log[0].digest))
    assert where == 1
    assert "written anew" in reason


def test_details_too_long_are_cut_and_still_sealed() -> None:
    entry = following(
        EMPTY,
        at_ms=1,
        who="w" * 9999,
        what="x\0",
        subject="s",
        details={"a": "b" * MAX_DETAILS},
    )
    assert len(entry.details) < 2000
    assert len(entry.who) == 300
    assert "\0" not in entry.what
    assert reasons([entry]) == []


@given(JSON)
def test_equal_values_have_one_way_to_be_written(value: object) -> None:
    text = canonical({"b": value, "a": 1})
    assert text == canonical({"a": 1, "b": value})
    assert text.isascii()


@given(st.data())
def test_any_single_removal_reordering_or_change_is_found(data: st.DataObject) -> None:
    log = chain(6)
    head = log[-1].head
    where = data.draw(st.integers(0, 5))
    how = data.draw(st.sampled_from(["remove", "swap", "change", "reseal"]))
    if how == "remove":
        del log[where]
    elif how == "swap":
        other = data.draw(st.integers(0, 5).filter(lambda each: each != where))
        log[where], log[other] = log[other], log[where]
    else:
        log[where] = replace(log[where], subject="forged")
        if how == "reseal":
            log[where] = reseal(log[where])
    assert reasons(log, head)
