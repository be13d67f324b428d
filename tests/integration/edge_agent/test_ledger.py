"""The ledger and the counters of refusals, as an operator and the fleet see them."""

from __future__ import annotations

import contextlib
import sqlite3
from pathlib import Path

import numpy as np
from structlog.testing import capture_logs

from edge_agent.app import Agent
from edge_agent.core.answers import AnswerStatus
from edge_agent.settings import AgentSettings

NOWHERE = "mqtt://127.0.0.1:9"
IMAGE = np.zeros((1, 4), np.uint8)


def settings(folder: Path, **more: object) -> AgentSettings:
    given = {"agent_id": "a", "state_dir": folder, "local": False, **more}
    return AgentSettings.model_validate(given)


async def test_the_ledger_is_in_the_status_and_in_telemetry(short_tmp: Path) -> None:
    async with Agent(settings(short_tmp, cloud_url=NOWHERE)) as agent:
        for _ in range(2):
            answer = await agent.infer("copy", {"x": IMAGE}, deadline_s=0.05)
            assert answer.status is AnswerStatus.EXPIRED
        status = await agent.status()
        report = agent._status.report()
    ledger = status["ledger"]
    assert ledger["accepted"] == {"no_local_model": 2}
    assert (ledger["expired"], ledger["waiting"], ledger["balanced"]) == (2, 0, True)
    assert ledger["by_why"] == {"expired": {"deadline": 2}}
    assert report.counters["accepted_no_local_model"] == 2
    assert report.counters["outcome_expired"] == 2
    assert report.counters["ledger_mismatch"] == 0


async def test_a_mismatch_is_an_error_that_everybody_hears_of(short_tmp: Path) -> None:
    with capture_logs() as logs:
        async with Agent(settings(short_tmp, cloud_url=NOWHERE)) as agent:
            await agent.infer("copy", {"x": IMAGE}, deadline_s=0.02)
            with (
                contextlib.closing(
                    sqlite3.connect(short_tmp / "outbox.db", timeout=5)
                ) as other,
                other,
            ):
                other.execute("UPDATE ledger SET count = 5 WHERE entry = 'accepted'")
            await agent.status()
            ledger = (await agent.status())["ledger"]  # Said once, not at each look.
            report = agent._status.report()
    assert (ledger["balanced"], ledger["missing"], ledger["mismatches"]) == (
        False,
        4,
        1,
    )
    assert report.counters["ledger_mismatch"] == 1
    (said,) = [each for each in logs if each["event"] == "ledger_mismatch"]
    assert (said["log_level"], said["missing"]) == ("error", 4)


async def test_every_refusal_is_counted_by_its_reason(short_tmp: Path) -> None:
    async with Agent(settings(short_tmp)) as agent:
        refusals = [
            await agent.infer("copy", {"x": IMAGE}),
            await agent.infer("copy", b"no image"),
            await agent.infer("copy", {"x": IMAGE}, deadline_s=-1),
        ]
        counters = (await agent.status())["counters"]
    assert {each.status for each in refusals} == {AnswerStatus.REFUSED}
    assert counters["refused"] == 3
    assert counters["refused_no_cloud"] == 1
    assert counters["refused_bad_request"] == 2


async def test_a_device_over_its_quota_is_refused_and_counted(short_tmp: Path) -> None:
    quota = settings(short_tmp, cloud_url=NOWHERE, device_max_bytes=1024)
    large = np.zeros((1, 2000), np.uint8)
    async with Agent(quota) as agent:
        answer = await agent.infer("copy", {"x": large})
        counters = (await agent.status())["counters"]
    assert answer.status is AnswerStatus.REFUSED
    assert answer.reason is not None
    assert "device_max_bytes" in answer.reason
    assert counters["refused_device_bytes"] == 1
