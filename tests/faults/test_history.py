"""Histories outlive whoever writes them."""

from __future__ import annotations

from pathlib import Path

import pytest

from lifecycle.clock import FakeClock
from tests.faults import history
from tests.faults.history import History, Reader, read


def test_histories_of_several_processes_are_read_in_the_order_of_time(
    tmp_path: Path,
) -> None:
    clock = FakeClock()
    agent, device = (History(tmp_path, who, clock) for who in ("agent:a", "device:d"))
    for number, each in enumerate((device, agent, device)):
        clock.advance(1.0)
        each.note("offered", "d", f"r-{number}", '{"a": "ü"}')
    seen = [(line.who, line.id, line.detail) for line in read(tmp_path)]
    assert seen == [
        ("device:d", "r-0", '{"a": "ü"}'),
        ("agent:a", "r-1", '{"a": "ü"}'),
        ("device:d", "r-2", '{"a": "ü"}'),
    ]


def test_a_line_that_its_writer_did_not_finish_is_left_out_until_it_is(
    tmp_path: Path,
) -> None:
    writer = History(tmp_path, "agent:a")
    writer.note("started")
    (path,) = tmp_path.iterdir()
    whole = path.read_bytes()
    with path.open("ab") as file:
        file.write(whole[:20])
    reader = Reader(tmp_path)
    assert len(reader.new()) == 1
    assert reader.new() == []
    with path.open("ab") as file:
        file.write(whole[20:])
    assert len(reader.new()) == 1


def test_a_tidy_reader_deletes_what_is_read_and_left_and_loses_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(history, "ROLL_BYTES", 500)
    writer = History(tmp_path, "agent:a")
    reader = Reader(tmp_path, tidy=True)
    seen = []
    for number in range(100):
        writer.note("offered", "d", f"r-{number}")
        if number % 7 == 0:
            seen += reader.new()
            assert len(list(tmp_path.iterdir())) <= 4
    seen += reader.new()
    assert [line.id for line in seen] == [f"r-{number}" for number in range(100)]
    assert len(list(tmp_path.iterdir())) == 1
