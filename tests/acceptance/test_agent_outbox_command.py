"""`overspill-agent outbox` beside a running daemon and without one."""

from __future__ import annotations

import asyncio
import base64
import json
import subprocess
from pathlib import Path
from typing import Any

import pytest

from broker.ports import free_port as choose_port
from edge_agent.adapters.spill_file import open_table
from tests.acceptance.processes import agent, one_line, said
from tests.acceptance.test_agent_daemon import COPY
from tests.contract.test_outbox import NOW_MS, spill
from tests.integration.edge_agent.edge import Device, device
from tests.waiting import until

pytestmark = [pytest.mark.acceptance, pytest.mark.timeout(120)]  # real processes

NOWHERE = "mqtt://agent-1:none@127.0.0.1:9"


async def heard(*words: str | Path) -> subprocess.CompletedProcess[str]:
    return await asyncio.to_thread(said, "outbox", *words)


async def as_json(*words: str | Path) -> Any:
    done = await heard(*words, "--json")
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


async def accepted(cam: Device, *ids: str) -> None:
    for id_ in ids:
        await cam.send("copy", {"id": id_, "inputs": COPY})
    await until(lambda: all(cam.of(id_) for id_ in ids))


async def test_what_waits_is_listed_shown_exported_and_cancelled(
    mosquitto: str, short_tmp: Path
) -> None:
    settings = {
        "agent_id": "agent-1",
        "cloud_url": NOWHERE,
        "local_url": mosquitto,
        "default_deadline_s": 3600,
    }
    state = ("--state-dir", short_tmp / "agent")
    async with agent(short_tmp, **settings) as daemon, device(mosquitto) as cam:
        await accepted(cam, "r1", "r2", "r3")

        # Beside the daemon.
        rows = await as_json("list", *state)
        assert [each["id"] for each in rows] == ["r1", "r2", "r3"]
        assert {each["stage"] for each in rows} == {"open"}
        table = await heard("list", "--limit", "2", *state)
        assert "r2" in table.stdout
        assert "r3" not in table.stdout
        assert "2 of 3" in table.stderr
        shown = await as_json("show", "r1", *state)
        assert shown["inputs"] == {"payload": "uint8 [1, 1024]"}
        assert (shown["device"], shown["reason"]) == ("cam1", "no_local_model")
        assert "uint8" in (await heard("show", "r1", *state)).stdout

        done = await heard("cancel", "r1", "--device", "cam1", *state)
        assert (done.returncode, done.stdout) == (0, "cancelled cam1 r1\n")
        answer = await cam.final("r1")
        assert answer["status"] == "failed"
        assert answer["reason"] == "cancelled by the operator"
        again = await heard("cancel", "r1", *state)
        assert "has ended already: failed" in one_line(again)
        assert "knows no request nobody" in one_line(
            await heard("cancel", "nobody", *state)
        )
        status = await daemon.until_status(lambda each: not each["outbox"]["untold"])
        assert status["ledger"]["by_why"] == {"failed": {"cancelled": 1}}
        assert status["ledger"]["balanced"]
        assert [each["id"] for each in await as_json("list", "--stage", "told", *state)]

        # Without it.
        assert await daemon.end() == 0
        assert len(await as_json("list", "--stage", "open", *state)) == 2
        done = await heard("cancel", "r2", *state)
        assert done.stdout.startswith("cancelled cam1 r2; its device is told when")
        file = short_tmp / "out.jsonl"
        assert "3 requests" in (await heard("export", file, *state)).stderr
        lines = [json.loads(line) for line in file.read_text().splitlines()]
        assert [(each["id"], each["stage"]) for each in lines] == [
            ("r1", "told"),
            ("r2", "settled"),
            ("r3", "open"),
        ]
        assert b"cancelled" in base64.b64decode(lines[1]["answer_base64"])
        sent = base64.b64decode(str(COPY["payload"]["data"]))
        assert sent in base64.b64decode(lines[2]["request_base64"])
        assert file.stat().st_mode & 0o777 == 0o600
        assert "is there already" in one_line(await heard("export", file, *state))
        assert (await heard("export", file, "--force", *state)).returncode == 0
        piped = await heard("export", "-", "--stage", "open", *state)
        assert [json.loads(piped.stdout)["id"]] == ["r3"]

        # The device hears of it at the next start.
        await daemon.start()
        assert (await cam.final("r2"))["reason"] == "cancelled by the operator"
        ledger = (await daemon.status())["ledger"]
        assert (ledger["failed"], ledger["waiting"], ledger["balanced"]) == (2, 1, True)


def test_an_id_of_several_devices_must_be_named_with_its_device(
    short_tmp: Path,
) -> None:
    table = open_table(short_tmp / "outbox.db")
    with table.transaction("NORMAL"):
        for name in ("cam1", "cam2"):
            table.insert(spill("r1", name, request=b"\xc1", deadline_ms=NOW_MS))
    table.close()
    state = ("--state-dir", short_tmp)
    assert "choose one of cam1, cam2" in one_line(said("outbox", "show", "r1", *state))
    shown = said("outbox", "show", "r1", "--device", "cam2", "--json", *state)
    assert json.loads(shown.stdout)["device"] == "cam2"
    assert "not legible" in json.loads(shown.stdout)["inputs"]


def test_what_is_no_outbox_is_told_in_one_line(short_tmp: Path) -> None:
    state = ("--state-dir", short_tmp)
    assert "there is no outbox at" in one_line(said("outbox", "list", *state))
    (short_tmp / "outbox.db").write_bytes(b"no database" * 1000)
    assert "cannot read the outbox" in one_line(said("outbox", "list", *state))
    assert [each.name for each in short_tmp.iterdir()] == ["outbox.db"]
    (short_tmp / "outbox.db").unlink()
    open_table(short_tmp / "outbox.db").close()
    assert json.loads(said("outbox", "list", "--json", *state).stdout) == []


async def test_a_folder_that_an_agent_without_devices_holds_is_left_alone(
    short_tmp: Path,
) -> None:
    port = choose_port()
    async with agent(short_tmp, embedded_port=port, cloud_url=NOWHERE) as daemon:
        async with device(f"mqtt://127.0.0.1:{port}") as cam:
            await accepted(cam, "r1")
        (daemon.state_dir / "control.sock").unlink()
        refused = await heard("cancel", "r1", "--state-dir", daemon.state_dir)
        assert "another agent already runs" in one_line(refused)
