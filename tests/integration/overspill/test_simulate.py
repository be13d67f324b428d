"""Twenty simulated agents, each fault once, and a broker that dies on the way."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
import textwrap
from pathlib import Path
from typing import Any

import pytest

from overspill.simulate.plan import READS, Fault, read_plan

# Options of other commands that the page speaks of.
ELSEWHERE = {"--only", "--where"}
PLAN = """
agents = 20
seed = 3
model_bytes = 600_000
moved_share = 1.0
connect_over_s = 0.5
outage_s = 0.2
reconnect_s = 1.5

[rollout]
probation = "1s"

[faults.slow]
agents = 1
bytes_per_s = 200_000

[faults.offline]
agents = 1
for_s = 1.0

[faults.full_disk]
agents = 1
for_s = 1.0

[faults.wrong_clock]
agents = 1

[faults.bad_flash]
agents = 1

[faults.crash_loop]
agents = 1
times = 0
"""


@pytest.mark.integration
@pytest.mark.timeout(180)
def test_a_fleet_with_every_fault_settles_and_comes_back_together_after_an_outage(
    short_tmp: Path,
) -> None:
    plan = short_tmp / "plan.toml"
    plan.write_text(PLAN)
    found = simulate("--plan", plan, "--processes", "1", "--json")
    rows = {row["fault"]: row for row in found["rows"]}
    assert found["failures"] == []
    assert found["disagreements"] == []
    assert rows.pop(None)["became"] == {"converged": 14}
    crashing = rows.pop("crash_loop")
    assert crashing["became"] == {"returned": 1}
    assert "ended 3 times" in crashing["reasons"][0]["reason"]
    # What was wrong with the others passes, and nobody has to do anything.
    assert {row["became"].get("converged") for row in rows.values()} == {1}
    waits = [each["reason"] for each in rows["bad_flash"]["waits"]]
    assert any("the disk does not keep" in why for why in waits), waits
    # Everybody was away, and nobody kept the others from coming back.
    assert found["back_s"] is not None
    assert found["heard_bytes"] > 20 * 600_000
    each = {agent["agent"]: agent for agent in found["each"]}
    assert len(each) == 20
    (returned,) = [a for a in each.values() if a["became"] == "returned"]
    assert (returned["fault"], "ended 3 times" in returned["reason"]) == (
        "crash_loop",
        True,
    )


def test_a_plan_that_cannot_be_read_is_a_wrong_command_line(short_tmp: Path) -> None:
    plan = short_tmp / "plan.toml"
    plan.write_text("robots = 3")
    ended = run("--plan", plan)
    assert ended.returncode == 2
    assert "robots" in ended.stderr
    assert "Traceback" not in ended.stderr


def simulate(*words: str | Path) -> dict[str, Any]:
    ended = run(*words)
    assert ended.returncode == 0, ended.stderr
    document: dict[str, Any] = json.loads(ended.stdout)
    return document


def run(*words: str | Path) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-P", "-m", "overspill", "simulate", *map(str, words)],
        capture_output=True,
        text=True,
        check=False,
        timeout=170,
        env={**os.environ, "PYTHONPATH": str(Path.cwd())},
    )


def test_the_page_names_options_fields_and_faults_that_there_are() -> None:
    page = Path("docs/simulate.md").read_text()
    plan = page.partition("says. The same plan")[2].partition("| fault |")[0]
    written = textwrap.dedent(plan.partition("\n\n")[2])
    read = read_plan(written.encode())
    assert read.outage_s == 2.0
    assert set(read.faults) == {Fault.OFFLINE}
    for fault, fields in READS.items():
        (row,) = re.findall(rf"^\| `{fault.value}` \|.*$", page, re.MULTILINE)
        assert set(re.findall(r"`(\w+)`", row)) == {fault.value, *fields}
    said = run("--help").stdout
    for option in set(re.findall(r"(?<=[ `])--[a-z][a-z-]+", page)) - ELSEWHERE:
        assert option in said, option
