"""An operator pushes versions, good and bad, to an agent at work. All real processes."""

from __future__ import annotations

import asyncio
import base64
import contextlib
import json
import shutil
import signal
from asyncio.subprocess import PIPE
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from broker.node import Node
from bundle import layout
from fleet.app import Fleet
from fleet.settings import FleetSettings
from tests.acceptance.processes import AgentProcess, agent, environment, module
from tests.integration.edge_agent.edge import (
    ROOT,
    SHIRT,
    SMALL,
    TINY,
    Device,
    device,
    pool_models,
    worker,
)
from tests.waiting import until

pytestmark = [pytest.mark.acceptance, pytest.mark.timeout(360)]  # real processes

CUSTOM_OP = ROOT / "tests" / "contract" / "models" / "custom_op.tflite"


def bundle(folder: Path, version: str, source: Path = TINY) -> Path:
    """A bundle of the example under another version, sure of every answer."""
    shutil.copytree(source, folder)
    edit(folder, version=version)
    manifest = json.loads((folder / "manifest.json").read_text())
    decision = {**manifest["decision"], "threshold": 0.0}
    edit(folder, decision=decision, calibration=None)
    return folder


def edit(folder: Path, **changes: Any) -> None:
    path = folder / "manifest.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), **changes}))


@dataclass(frozen=True)
class Operator:
    """Who types `overspill …`."""

    home: Path
    amqp_url: str | None = None

    @property
    def variables(self) -> dict[str, str]:
        """The environment of the commands."""
        url = (
            {} if self.amqp_url is None else {"OVERSPILL_FLEET_AMQP_URL": self.amqp_url}
        )
        return environment(OVERSPILL_FLEET_HOME=str(self.home), **url)

    async def types(self, *words: str | Path) -> tuple[int, Any, str]:
        """Run a command with `--json`: its exit code, its document, its errors."""
        command = await asyncio.create_subprocess_exec(
            *module("fleet", *words, "--json"),
            stdout=PIPE,
            stderr=PIPE,
            env=self.variables,
        )
        async with asyncio.timeout(60):
            out, errors = await command.communicate()
        return command.returncode or 0, json.loads(out or b"null"), errors.decode()

    async def sets_up_trust(self) -> None:
        """`overspill trust init --dev`."""
        code, _, errors = await self.types("trust", "init", "--dev")
        assert code == 0, errors

    async def publish(self, folder: Path, *, back_to: str | None = None) -> None:
        """What `overspill model publish` does, without a second's start for each."""

        def publish() -> None:
            with Fleet(FleetSettings(home=self.home)) as fleet:
                assert fleet.publish(folder, back_to=back_to).signed

        await asyncio.to_thread(publish)

    async def hears_of(self, agent_id: str) -> None:
        """Wait until an agent has reported."""
        async with asyncio.timeout(90):
            while agent_id not in {
                each["agent"] for each in (await self.types("device", "list"))[1]
            }:
                pass

    async def roll_out(self, version: str) -> tuple[int, dict[str, Any]]:
        """Roll a version out and wait; gives the exit code and the agent's part."""
        code, document, errors = await self.types(
            *START,
            version,
            "--agents",
            "agent-4",
            "--probation",
            "1s",
            "--wait",
            "30",
        )
        assert document is not None, errors
        (part,) = document["agents"]
        return code, part


@asynccontextmanager
async def fleet_daemon(operator: Operator, log: Path) -> AsyncIterator[None]:
    """`overspill fleet run`."""
    with log.open("wb") as file:
        process = await asyncio.create_subprocess_exec(
            *module("fleet", "fleet", "run"),
            stdout=file,
            stderr=file,
            env=operator.variables,
        )
    try:
        yield
        assert process.returncode is None, f"it ended: see {log}"
    finally:
        if process.returncode is None:
            process.send_signal(signal.SIGTERM)
        async with asyncio.timeout(60):
            await process.wait()


@dataclass
class Load:
    """A device that never stops asking, and what became of each request."""

    cam: Device
    sent: list[str] = field(default_factory=list)

    async def run(self) -> None:
        """Ask for ever, at the pace of a camera."""
        while True:
            id_ = f"load-{len(self.sent)}"
            self.sent.append(id_)
            await self.cam.send("fashion", {"id": id_, "image": IMAGE})
            await asyncio.sleep(0.02)

    async def all_answered(self) -> None:
        """Every request was answered, whatever was swapped meanwhile."""
        with contextlib.suppress(TimeoutError):
            await until(lambda: len(self.cam.raw) >= len(self.sent))
        heard = {each["id"] for each in self.cam.answers}
        unheard = [id_ for id_ in self.sent if id_ not in heard]
        assert not unheard, f"{unheard} of {len(self.sent)}"

    def versions(self) -> list[str]:
        """Which version answered, in the order of asking."""
        answers = {each["id"]: each for each in self.cam.answers}
        for id_ in self.sent:
            assert answers[id_]["status"] == "answered", answers[id_]
            assert answers[id_]["source"] == "edge", answers[id_]
        assert len(answers) == len(self.cam.answers) == len(self.sent)
        return [answers[id_]["version"] for id_ in self.sent]


async def test_good_versions_swap_under_load_and_bad_ones_are_refused_with_reasons(
    rabbit: Node, mosquitto: str, short_tmp: Path, tmp_path: Path
) -> None:
    operator = Operator(short_tmp / "fleet", rabbit.amqp_url("fleet"))
    await operator.sets_up_trust()
    code, _, errors = await operator.types(
        "model", "publish", bundle(tmp_path / "1", "1")
    )
    assert code == 0, errors
    settings = {
        "agent_id": "agent-4",
        "cloud_url": rabbit.mqtt_url("agent-4"),
        "local_url": mosquitto,
        "bundles": tmp_path / "1",
        "trusted_root": operator.home / "trust" / "root.json",
        "provisioned_registry": operator.home / "registry",
        "report_every_s": 2,
    }
    pool = worker(
        rabbit.amqp_url("worker"),
        pool_models(tmp_path / "pool"),
        "--registry",
        str(operator.home / "registry"),
    )
    with pool:
        async with (
            fleet_daemon(operator, tmp_path / "fleet.log"),
            agent(short_tmp, **settings) as daemon,
            device(mosquitto) as cam,
            asyncio.TaskGroup() as tasks,
        ):
            load = Load(cam)
            loading = tasks.create_task(load.run())

            await operator.hears_of("agent-4")
            # A good version, of another size and threshold.
            await operator.publish(bundle(tmp_path / "2", "2", SMALL))
            code, part = await operator.roll_out("2")
            assert (code, part["state"], part["version"]) == (0, "updated", "2"), part

            for version, make, reasons in BAD:
                await make(operator, tmp_path / version, version)
                code, part = await operator.roll_out(version)
                assert (code, part["state"]) == (1, "refused"), (version, part)
                assert part["version"] == "2"
                for reason in reasons:
                    assert reason in part["reason"], part
                await assert_told(operator, daemon, version, part["reason"])

            # Of a source that lies an agent asks again, and says so.
            await corrupt(operator, tmp_path / "5", "5")
            await operator.types(*START, "5", "--agents", "agent-4")
            await says(daemon, "gave something else than chunk")

            # None of them blocks the next, nor the way back, which needs no pull.
            # Said, because agents of other tests may have left reports in the queue, and
            # the way back leads to what most of all agents serve.
            await operator.publish(bundle(tmp_path / "7", "7"), back_to="2")
            code, part = await operator.roll_out("7")
            assert (code, part["state"], part["version"]) == (0, "updated", "7"), part
            code, part = await operator.roll_out("2")
            assert (code, part["state"], part["version"]) == (0, "updated", "2"), part

            slots = (await daemon.status())["models"]["fashion"]
            assert (slots["active"], slots["previous"]) == ("2", "7")
            assert (slots["serving"], slots["staged"], slots["reason"]) == (
                "2",
                None,
                None,
            )
            loading.cancel()
            await asyncio.wait({loading})
            await load.all_answered()
            assert runs(load.versions()) == ["1", "2", "7", "2"]
            assert kept(daemon) == {"2", "7"}

            # What it serves now is what it serves after a restart, bundle or no bundle.
            await daemon.end()
            await daemon.start()
            assert (await daemon.status())["models"]["fashion"]["serving"] == "2"


async def says(daemon: AgentProcess, reason: str) -> None:
    """Wait until the agent gives this reason for not being as desired."""
    async with asyncio.timeout(90):
        while True:
            slots = (await daemon.status())["models"]["fashion"]
            if reason in (slots["reason"] or ""):
                return
            await asyncio.sleep(0.1)


async def assert_told(
    operator: Operator, daemon: AgentProcess, version: str, reason: str
) -> None:
    """The refusal is told where an operator looks: the fleet's status and the agent's."""
    _, status, _ = await operator.types("rollout", "status")
    newest = status["rollouts"][0]
    assert (newest["version"], newest["state"]) == (version, "failed")
    assert [each["reason"] for each in newest["agents"]] == [reason]
    slots = (await daemon.status())["models"]["fashion"]
    assert (slots["serving"], slots["active"]) == ("2", "2")
    assert (slots["state"], slots["staged"]) == ("refused", version)
    assert slots["reason"] == reason


async def wrong_golden(by: Operator, folder: Path, version: str) -> None:
    bundle(folder, version)
    with np.load(folder / "golden.npz") as golden:
        arrays = dict(golden)
    (output,) = (name for name in arrays if name.startswith("out_"))
    np.savez(folder / "golden.npz", **{**arrays, output: arrays[output] + 1.0})
    await by.publish(folder)


async def custom_op(by: Operator, folder: Path, version: str) -> None:
    bundle(folder, version)
    shutil.copy(CUSTOM_OP, folder / "model.tflite")
    await by.publish(folder)


async def corrupt(by: Operator, folder: Path, version: str) -> None:
    await by.publish(bundle(folder, version))
    with Fleet(FleetSettings(home=by.home)) as fleet:
        sealed = fleet.registry.seal("fashion", version).sha256
    registry = by.home / "registry"
    # What a delta gives is checked as well; here there is the whole or nothing.
    shutil.rmtree(registry / layout.DELTAS, ignore_errors=True)
    packed = registry / layout.blob(sealed)
    data = bytearray(packed.read_bytes())
    data[len(data) // 2] ^= 0xFF
    packed.write_bytes(data)


START = ("rollout", "start", "fashion")
BAD = [
    ("3", wrong_golden, ["golden outputs differ by", "tolerance"]),
    ("4", custom_op, ["needs the operator MatrixDeterminant"]),
]
IMAGE = base64.b64encode(SHIRT).decode()


def runs(versions: list[str]) -> list[str]:
    """The versions without their repetitions."""
    return [
        each
        for each, before in zip(versions, [None, *versions], strict=False)
        if each != before
    ]


def kept(daemon: AgentProcess) -> set[str]:
    """The versions on the agent's disk."""
    folder = daemon.state_dir / "models" / "fashion"
    return {each.name for each in folder.iterdir() if each.is_dir()}
