"""What plan, history and the choice of a rollout say, without RabbitMQ."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console
from typer.testing import CliRunner, Result

from broker.messages import Report, SlotReport
from fleet.__main__ import app
from fleet.adapters.state.database import FleetDatabase
from fleet.core.devices import observe
from lifecycle.clock import SystemClock

HOUR_MS = 3_600_000


def say(*words: str, exit_code: int = 0) -> Result:
    result = CliRunner().invoke(app, words)
    assert result.exit_code == exit_code, result.output
    return result


def read(*words: str) -> Any:
    return json.loads(say(*words, "--json").stdout)


@pytest.fixture(autouse=True)
def home(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    trusted_home: Callable[[Path], Path],
) -> Path:
    """Two models for one kind of machine, and four agents, one of them away."""
    home = trusted_home(tmp_path / "home")
    monkeypatch.setenv("OVERSPILL_FLEET_HOME", str(home))
    monkeypatch.delenv("OVERSPILL_FLEET_AMQP_URL", raising=False)
    for name in ("fashion", "digits"):
        source = tmp_path / name
        source.mkdir()
        (source / "m.tflite").write_bytes(b"weights" * 1000)
        said = {"format": 1, "name": name, "version": "1", "model_file": "m.tflite"}
        requires = {"machines": ["aarch64"], "memory_mb": 256}
        manifest = {**said, "requires": requires}
        (source / "manifest.json").write_text(json.dumps(manifest))
        say("model", "publish", str(source))
    with FleetDatabase(home / "fleet.db") as database, database.writing() as ledger:
        for name, machine, memory_mb, age_ms in (
            ("cam-1", "aarch64", 512, 0),
            ("cam-2", "x86_64", 512, 0),
            ("cam-3", "aarch64", 128, 0),
            ("cam-4", "aarch64", 512, HOUR_MS),
        ):
            facts = {"machine": machine, "memory_mb": str(memory_mb)}
            slots = [SlotReport(model="fashion")]
            report = Report(agent=name, at_ms=1, slots=slots, facts=facts)
            seen_ms = SystemClock().wall_ms() - age_ms
            ledger.keep_device(observe(None, name, report, seen_ms))
    return home


def test_a_plan_says_who_how_much_how_long_and_who_not_and_why() -> None:
    planned = read("rollout", "plan", "fashion", "1", "--waves", "50%", "--soak", "1h")
    assert sorted(planned["eligible"]) == ["cam-1", "cam-4"]
    assert planned["away"] == ["cam-4"]
    assert planned["excluded"] == {
        "cam-2": "its machine is x86_64; the bundle is for aarch64",
        "cam-3": "it has 128 MB of memory; the bundle needs 256",
    }
    assert planned["bytes"] == sum(each["bytes"] for each in planned["waves"]) > 0
    assert planned["lasts_s"] > 2 * 3600

    text = say("rollout", "plan", "fashion", "1", "--waves", "50%").stdout
    assert "fashion 1 for 2 agents" in text
    assert "1 are away and follow when they are back: cam-4" in text
    assert "2 excluded" in text
    assert "its machine is x86_64; the bundle is for aarch64" in text
    assert "gates: success 20%" in text
    assert read("rollout", "history") == []  # Nothing was begun.


def test_a_plan_counts_the_waiting_for_maintenance_windows_and_says_so() -> None:
    window = ("--window", "02:00-02:01", "--waves", "all")
    text = say("rollout", "plan", "fashion", "1", *window).stdout
    assert "begun now, 0 s of that is waiting for it" in text
    assert "2 do not say their own time: reckoned as in the window: cam-1" in text
    planned = read("rollout", "plan", "fashion", "1", *window)
    assert planned["waits_for_windows_s"] == 0
    assert sorted(planned["own_time_unknown"]) == ["cam-1", "cam-4"]


def test_one_of_several_rollouts_has_to_be_named() -> None:
    none = say("rollout", "pause", exit_code=1).stderr
    assert "there is no rollout yet" in none
    say("rollout", "start", "fashion", "1")
    say("rollout", "start", "digits", "1")
    both = say("rollout", "pause", exit_code=1).stderr
    assert "2 rollouts are on their way, name one: 2 (digits 1), 1 (fashion 1)" in both
    assert read("rollout", "pause", "fashion")["generation"] == 1
    assert read("rollout", "resume", "1")["state"] == "running"
    unknown = say("rollout", "pause", "shoes", exit_code=1).stderr
    assert "no rollout of 'shoes'" in unknown
    assert "no rollout 9" in say("rollout", "pause", "9", exit_code=1).stderr
    say("rollout", "abort", "1")
    say("rollout", "abort", "2")
    assert "no rollout is on its way; the newest was 2" in (
        say("rollout", "pause", exit_code=1).stderr
    )


def test_history_says_what_happened_who_did_it_and_why() -> None:
    say("rollout", "start", "fashion", "1", "--waves", "1,all")
    say("rollout", "pause", "--reason", "a storm")
    say("rollout", "abort", "--reason", "a flood")
    listed = say("rollout", "history").stdout
    assert "aborted" in listed
    assert "a flood" in listed
    told = say("rollout", "history", "1").stdout
    for what in ("start", "tell", "pause", "a storm", "abort", "a flood"):
        assert what in told
    (entry,) = read("rollout", "history", "fashion")
    assert entry["waves"] == "1 (soak 5m), all (soak 5m)"
    assert [each["what"] for each in entry["events"]] == [
        "start",
        "tell",
        "pause",
        "abort",
    ]


def test_what_cannot_be_done_in_a_state_is_one_sentence_that_says_what_can() -> None:
    say("rollout", "start", "fashion", "1")
    why = say("rollout", "approve", exit_code=1).stderr
    assert why == (
        "error: rollout 1 of fashion 1 is running, so it cannot approve; "
        "what you can do: overspill rollout abort | pause | rollback\n"
    )


def test_a_query_that_is_true_of_nobody_is_said_before_and_after_it_begins() -> None:
    where = ("fashion", "1", "--where", "site=lyno")
    for verb in ("plan", "start"):
        told = say("rollout", verb, *where)
        assert "--where site=lyno is true of no agent" in told.stderr


def test_devices_have_a_line_each_on_a_terminal_of_80_columns(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("fleet.cli.terminal.tables", lambda: Console(width=80))
    listed = say("device", "list").stdout
    rows = [line.split("│")[1].strip() for line in listed.splitlines() if "│" in line]
    assert rows == ["cam-1", "cam-2", "cam-3", "cam-4"]
    assert "overspill device show" in listed


def test_a_file_with_mistakes_changes_nothing(tmp_path: Path) -> None:
    file = tmp_path / "fleet.yaml"
    file.write_text(
        "labels:\n  cam-1: {site: lyon}\nrollouts:\n  - {model: fashion, version: 9}\n"
    )
    assert "published are 1" in say("apply", str(file), exit_code=1).stderr
    assert say("diff", str(file), exit_code=1).stdout == ""
    file.write_text("labels:\n  cam-1: {site: lyon}\nrollouts:\n  - {model: fashion}\n")
    mistake = f"{file}:4: rollouts[0].version: it is missing"
    assert mistake in say("apply", str(file), exit_code=1).stderr
    assert read("rollout", "history") == []
    assert read("device", "list")[0].get("labels", {}) == {}
    say("apply", exit_code=2)
