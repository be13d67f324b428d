"""The small file in which an agent keeps its promises."""

from __future__ import annotations

from pathlib import Path

import pytest
from structlog.testing import capture_logs

from edge_agent.adapters.watch_file import WatchFile


def test_what_was_written_is_read_by_the_next_process(tmp_path: Path) -> None:
    path = tmp_path / "promises.json"
    WatchFile(path).write({"models": {"m": {"version": "1"}}})
    WatchFile(path).write({"models": {"m": {"version": "2"}}})
    assert WatchFile(path).read()["models"] == {"m": {"version": "2"}}
    assert [each.name for each in tmp_path.iterdir()] == ["promises.json"]


def test_an_agent_that_never_wrote_begins_with_nothing(tmp_path: Path) -> None:
    with capture_logs() as logs:
        assert WatchFile(tmp_path / "promises.json").read() == {}
    assert logs == []


@pytest.mark.parametrize(
    "content", [b"", b"{", b"[]", b"\xff\xfe", b'{"format": 2}', b"[" * 100_000]
)
def test_a_damaged_file_costs_a_warning_and_no_start(
    content: bytes, tmp_path: Path
) -> None:
    path = tmp_path / "promises.json"
    path.write_bytes(content)
    with capture_logs() as logs:
        assert WatchFile(path).read() == {}
    assert [each["event"] for each in logs] == ["promises_unreadable"]


def test_what_json_cannot_hold_is_never_written(tmp_path: Path) -> None:
    path = tmp_path / "promises.json"
    WatchFile(path).write({"models": {}})
    with pytest.raises(ValueError, match="JSON"):
        WatchFile(path).write({"models": float("nan")})
    assert WatchFile(path).read()["models"] == {}
