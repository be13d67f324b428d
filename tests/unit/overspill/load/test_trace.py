from __future__ import annotations

from pathlib import Path

import pytest

from broker.messages import Priority
from overspill.load.mix import Choice
from overspill.load.trace import BadTrace, read_trace


def written(folder: Path, name: str, text: str) -> Path:
    path = folder / name
    path.write_text(text)
    return path


def test_a_csv_says_as_much_of_each_request_as_it_knows(tmp_path: Path) -> None:
    trace = read_trace(
        written(
            tmp_path,
            "trace.csv",
            "offset_s,model,class,deadline_ms,payload,note\n"
            "12.5,fashion,hi,30,shirt.png,x\n10,,,,,\n",
        )
    )

    assert trace.arrivals.at_s == (0.0, 2.5)
    assert trace.choices == (
        Choice(),
        Choice("fashion", Priority.HI, 0.03, "shirt.png"),
    )


def test_json_lines_are_read_alike(tmp_path: Path) -> None:
    trace = read_trace(
        written(
            tmp_path,
            "trace.jsonl",
            '{"offset_s": 0, "model": "fashion"}\n\n{"offset_s": 1.5, "payload": 3}\n',
        )
    )

    assert trace.arrivals.at_s == (0.0, 1.5)
    assert trace.choices == (Choice(model="fashion"), Choice(payload="3"))


@pytest.mark.parametrize(
    ("name", "text", "says"),
    [
        ("a.csv", "model\nfashion\n", "row 1: offset_s"),
        ("a.csv", "offset_s\n1\n-1\n", "row 2: offset_s"),
        ("a.csv", "offset_s,class\n1,urgent\n", "row 1: class"),
        ("a.csv", "offset_s,model\n1,a.b\n", "row 1: model"),
        ("a.csv", "offset_s\n", "0 rows"),
        ("a.jsonl", "offset\n", "neither"),
        ("a.jsonl", "[1]\n", "row 1"),
    ],
)
def test_a_trace_that_is_wrong_says_where(
    tmp_path: Path, name: str, text: str, says: str
) -> None:
    with pytest.raises(BadTrace, match=says):
        read_trace(written(tmp_path, name, text))
