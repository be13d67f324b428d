"""Labels as operators write them."""

from __future__ import annotations

import pytest

from fleet.core.labelling import Labelling, is_change, read_labelling
from fleet.core.orders import BadOrder


def test_labels_are_given_and_taken_and_others_stay() -> None:
    labelling = read_labelling(["site=lyon", "old-", "rack=3=b"])
    assert labelling == Labelling({"site": "lyon", "rack": "3=b"}, frozenset({"old"}))
    before = {"old": "1", "site": "paris", "floor": "2"}
    assert labelling.of(before) == {"site": "lyon", "rack": "3=b", "floor": "2"}


@pytest.mark.parametrize(
    ("words", "reason"),
    [
        ([], "no label is named"),
        (["Site=lyon"], "no label's key"),
        (["and=1"], "no label's key"),
        (["=1"], "no label's key"),
        (["-"], "no label's key"),
        (["site="], "1 to 255"),
        (['site="x"'], "1 to 255"),
        (["site=a\nb"], "1 to 255"),
        (["site=1", "site=2"], "named twice"),
        (["site=1", "site-"], "named twice"),
    ],
)
def test_what_is_no_label_is_refused_with_its_reason(
    words: list[str], reason: str
) -> None:
    with pytest.raises(BadOrder, match=reason):
        read_labelling(words)


def test_agents_and_labels_are_told_apart() -> None:
    assert [is_change(each) for each in ("a-1", "site=a", "site-")] == [
        False,
        True,
        True,
    ]
