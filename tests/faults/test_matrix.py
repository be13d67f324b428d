"""The matrix as its readers meet it: by names."""

from __future__ import annotations

import re
from collections import Counter

import pytest

from tests.faults.matrix import ROWS, chosen
from tests.faults.program import ROOT


def test_every_row_has_a_name_of_its_own() -> None:
    assert max(Counter(row.name for row in ROWS).values()) == 1


def test_an_id_that_starts_with_a_row_s_name_is_short_enough_for_the_wire() -> None:
    assert max(len(f"{row.name}-99-agent-1-cam9-999999") for row in ROWS) <= 64


def test_every_row_that_the_guarantees_name_exists() -> None:
    text = (ROOT / "docs" / "guarantees.md").read_text()
    named = {
        name
        for name in re.findall(r"`([a-z]+(?:-[a-z0-9]+)+)`", text)
        if not name.startswith("overspill-")
    }
    assert named
    assert named <= {row.name for row in ROWS}


def test_rows_are_chosen_by_the_beginnings_of_their_names() -> None:
    assert {row.name for row in chosen(["worker-"])} == {
        row.name for row in ROWS if row.name.startswith("worker-")
    }
    with pytest.raises(KeyError, match="no row is called"):
        chosen(["worker-", "nothing-like-this"])
