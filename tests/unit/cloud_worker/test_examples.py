"""Which examples are kept, and which go when there is no room."""

from __future__ import annotations

from collections import Counter

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from broker.messages import Tensor
from bundle.manifest import Decision
from cloud_worker.core.examples import (
    UNKNOWN_MARGIN,
    Again,
    Agreement,
    Collection,
    Entry,
    Placed,
    Quota,
    Quotas,
    TurnedAway,
    Worth,
    cloud_margin,
    may_keep,
)

LABELS = ("shirt", "bag", None)
REASONS = ("hard", "audit")


def entry(
    name: str,
    *,
    label: str | None = "shirt",
    reason: str = "hard",
    size: int = 1,
    agreement: Agreement = Agreement.DISAGREED,
    margin: float = 0.5,
    at_ms: int = 0,
) -> Entry:
    return Entry(label, reason, size, Worth(agreement, margin, at_ms, name))


def entries(*, most_bytes: int = 6, names: int = 40) -> st.SearchStrategy[Entry]:
    return st.builds(
        entry,
        st.integers(0, names).map(str),
        label=st.sampled_from(LABELS),
        reason=st.sampled_from(REASONS),
        size=st.integers(1, most_bytes),
        agreement=st.sampled_from(Agreement),
        margin=st.sampled_from((0.0, 0.25, 0.5, 1.0)),
        at_ms=st.integers(0, 5),
    )


quotas = st.builds(
    Quotas,
    *[st.builds(Quota, st.integers(1, 12), st.integers(1, 40)) for _ in range(3)],
)


def check_quotas(kept: Collection, quotas: Quotas) -> None:
    number: Counter[tuple[str, str | None]] = Counter()
    size: Counter[tuple[str, str | None]] = Counter()
    for each in kept.entries:
        for scope in (("label", each.label), ("reason", each.reason), ("model", None)):
            number[scope] += 1
            size[scope] += each.size_bytes
    for (kind, _), count in number.items():
        quota: Quota = getattr(quotas, kind)
        assert count <= quota.examples
    for (kind, _), size_bytes in size.items():
        quota = getattr(quotas, kind)
        assert size_bytes <= quota.size_bytes


@given(quotas, st.lists(entries(), max_size=80))
def test_no_quota_is_ever_exceeded(quotas: Quotas, offered: list[Entry]) -> None:
    kept = Collection(quotas)
    for each in offered:
        kept.offer(each)
        check_quotas(kept, quotas)


@given(quotas, st.lists(entries(), max_size=80))
def test_what_stays_is_never_less_informative_than_what_goes_of_its_class_and_reason(
    quotas: Quotas, offered: list[Entry]
) -> None:
    kept = Collection(quotas)
    for each in offered:
        told = kept.offer(each)
        if not isinstance(told, Placed):
            continue
        for gone in told.evicted:
            assert gone.digest not in kept
            for stays in kept.entries:
                if (stays.label, stays.reason) == (gone.label, gone.reason):
                    assert stays.worth > gone.worth


@given(
    quotas, st.lists(entries(most_bytes=1), max_size=80, unique_by=lambda e: e.digest)
)
def test_of_equal_size_nothing_is_turned_away_that_is_worth_more_than_what_stays(
    quotas: Quotas, offered: list[Entry]
) -> None:
    kept = Collection(quotas)
    for each in offered:
        if isinstance(kept.offer(each), TurnedAway):
            for stays in kept.entries:
                if (stays.label, stays.reason) == (each.label, each.reason):
                    assert stays.worth > each.worth


@given(quotas, quotas, st.lists(entries(), max_size=60))
def test_quotas_that_became_smaller_hold_after_a_restart(
    before: Quotas, after: Quotas, offered: list[Entry]
) -> None:
    kept = Collection(before)
    for each in offered:
        kept.offer(each)
    again = Collection(after)
    gone = again.refill(kept.entries)
    check_quotas(again, after)
    assert len(again) + len(gone) == len(kept)


def roomy(**changes: Quota) -> Quotas:
    whole = Quota(100, 1000)
    return Quotas(**{"model": whole, "label": whole, "reason": whole, **changes})


def test_the_same_inputs_are_kept_once_with_a_count() -> None:
    kept = Collection(roomy())
    kept.offer(entry("a", at_ms=1))
    told = kept.offer(entry("a", at_ms=2))
    assert isinstance(told, Again)
    assert told.entry.count == 2
    assert told.entry.worth.at_ms == 1
    assert len(kept) == 1


def test_the_cloud_s_newest_word_on_the_same_inputs_is_the_label() -> None:
    kept = Collection(roomy())
    kept.offer(entry("a", label="shirt"))
    told = kept.offer(entry("a", label="bag"))
    assert isinstance(told, Placed)
    assert (told.entry.label, told.entry.count, told.evicted) == ("bag", 2, ())
    assert len(kept) == 1


def test_a_disagreement_pushes_out_an_agreement_and_not_the_other_way_round() -> None:
    kept = Collection(roomy(model=Quota(1, 1000)))
    agreed = entry("a", agreement=Agreement.AGREED, margin=1.0, at_ms=9)
    differed = entry("b", agreement=Agreement.DISAGREED, margin=0.0, at_ms=0)
    kept.offer(agreed)
    assert kept.offer(differed) == Placed(differed, (agreed,))
    assert kept.offer(agreed) == TurnedAway()


def test_of_two_disagreements_the_surer_cloud_s_stays() -> None:
    sure, unsure = entry("a", margin=0.9), entry("b", margin=0.1, at_ms=9)
    assert sure.worth > unsure.worth


def test_a_class_that_is_full_takes_no_room_of_another() -> None:
    kept = Collection(roomy(label=Quota(1, 1000)))
    bag = entry("bag", label="bag", margin=0.0)
    kept.offer(bag)
    kept.offer(entry("a", margin=0.1))
    kept.offer(entry("b", margin=0.9))
    assert {each.digest for each in kept.entries} == {"bag", "b"}


def test_what_is_larger_than_a_quota_pushes_nothing_out() -> None:
    kept = Collection(roomy(model=Quota(10, 10)))
    kept.offer(entry("a", size=5, agreement=Agreement.AGREED))
    assert kept.offer(entry("b", size=11)) == TurnedAway()
    assert len(kept) == 1


@pytest.mark.parametrize("request_says", [None, True, False])
@pytest.mark.parametrize("model", [None, True, False])
@pytest.mark.parametrize("worker", [None, True, False])
def test_any_no_wins_and_a_device_cannot_say_yes_for_others(
    request_says: bool | None, model: bool | None, worker: bool | None
) -> None:
    allowed = may_keep(request=request_says, model=model, worker=worker)
    if False in (request_says, model, worker):
        assert not allowed
    else:
        assert allowed is (model is True or worker is True)


def tensor(*values: float) -> dict[str, Tensor]:
    data = np.array([values], np.float32)
    return {"out": Tensor(dtype="float32", shape=[1, len(values)], data=data.tobytes())}


def test_the_margin_is_read_as_the_model_s_decision_says() -> None:
    decision = Decision(output="out", activation="probabilities")
    assert cloud_margin(tensor(0.75, 0.25), decision, 0.75) == pytest.approx(0.5)


def test_without_classes_the_confidence_stands_for_the_margin() -> None:
    value = Decision(output="out", score="value")
    assert cloud_margin(tensor(0.8), value, 0.8) == 0.8
    assert cloud_margin(tensor(0.8), None, None) == UNKNOWN_MARGIN
    assert cloud_margin(tensor(np.nan, 1.0), Decision(output="out"), 0.3) == 0.3
