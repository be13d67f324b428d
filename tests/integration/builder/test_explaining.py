"""Rows, series and requests explained with the examples' own bundles."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from builder.adapters.explaining import explain, page
from builder.core.refusal import BuildRefused

EXAMPLES = Path(__file__).parents[3] / "examples"
DIAMONDS = EXAMPLES / "diamonds" / "edge"
DIAMOND = EXAMPLES / "diamonds" / "diamond.json"


def test_a_row_is_explained_by_the_names_of_its_columns() -> None:
    found = explain(DIAMOND, DIAMONDS)
    assert found.where in found.columns
    assert found.heat.shape == (9,)
    # Its usual value covers a column, so that no other is out of the question.
    assert 0 < found.fall < 1
    shown = page(found)
    for name in found.columns:
        assert f"{name} = " in shown


def test_a_request_and_its_array_are_explained_alike(tmp_path: Path) -> None:
    row = np.array(json.loads(DIAMOND.read_text())["inputs"]["row"][0], np.float64)
    np.save(tmp_path / "row.npy", row)
    one, other = explain(DIAMOND, DIAMONDS), explain(tmp_path / "row.npy", DIAMONDS)
    assert one.as_json() == other.as_json()


def test_a_series_is_explained_by_its_steps() -> None:
    found = explain(EXAMPLES / "spoken" / "one.json", EXAMPLES / "spoken" / "edge")
    assert found.where.startswith("what is about step ")
    assert found.heat.shape == (40,)
    assert page(found).count("<svg") == 1


@pytest.mark.parametrize(
    ("text", "why"),
    [
        ('{"inputs": {"other": [[1]]}}', "no request with an input 'row'"),
        ("[1, 2]", "no request with an input 'row'"),
        ("{", "no array"),
        ('{"inputs": {"row": [[1], [1, 2]]}}', "no array"),
        ('{"inputs": {"row": [["carat"]]}}', "no array of numbers"),
        ('{"inputs": {"row": 3}}', "no array of numbers"),
        ('{"inputs": {"row": [[1, 2, 3]]}}', r"does not take an example of \[3\]"),
    ],
)
def test_a_request_that_the_model_does_not_take_is_refused_with_its_reason(
    text: str, why: str, tmp_path: Path
) -> None:
    file = tmp_path / "request.json"
    file.write_text(text)
    with pytest.raises(BuildRefused, match=why):
        explain(file, DIAMONDS)
