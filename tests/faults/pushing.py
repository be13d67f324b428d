"""The fleet's side of a stage: an operator who pushes versions of the model at the edge.

The daemon, the commands, the worker that serves the registry and the agents are the real
programs. Each version answers alike and is another file, so that what serves is known by
its bytes.
"""

from __future__ import annotations

import asyncio
import hashlib
import json
import random
import shutil
from asyncio.subprocess import PIPE
from pathlib import Path
from typing import Any, Final

from bundle.manifest import MANIFEST_FILE
from edge_agent.adapters.control import ControlError
from edge_agent.core.slots import State
from fleet.app import Fleet
from fleet.core.progress import RolloutProgress
from fleet.settings import FleetSettings
from tests.acceptance.processes import environment
from tests.faults.device import LOCAL, Device
from tests.faults.program import Program, python
from tests.faults.stage import Gateway, Stage

MODEL: Final = LOCAL.model
# A few chunks, which no delta makes smaller.
MODEL_BYTES: Final = 300_000
COMMAND_S: Final = 60.0


class Pushing:
    """A fleet of a stage; made by `begin`."""

    def __init__(self, stage: Stage) -> None:
        self._stage = stage
        self.home = stage.folder / "fleet"
        self.published: dict[str, tuple[str, str]] = {}
        self.asking: list[Device] = []
        self.daemon = Program(
            "fleet",
            stage.folder,
            python("fleet", "fleet", "run"),
            self._variables,
            ready=None,
        )

    @property
    def _variables(self) -> dict[str, str]:
        return {
            "OVERSPILL_FLEET_HOME": str(self.home),
            "OVERSPILL_FLEET_AMQP_URL": self._stage.node.amqp_url("fleet"),
        }

    async def begin(self) -> None:
        """Set up trust, publish what is at the edge, and start daemon and worker."""
        await self.types("trust", "init", "--dev")
        await self.publish("1", self._stage.near())
        self._stage.programs.append(self.daemon)
        await self.daemon.start()
        self._stage.keep(self.daemon)
        await self._stage.worker("w1", registry=self.home / "registry")

    async def gateway(self, name: str) -> Gateway:
        """An agent that takes updates, and has reported."""
        gateway = await self._stage.gateway(
            name,
            trusted_root=self.home / "trust" / "root.json",
            report_every_s=1.0,
            poll_desired_every_s=5.0,
            look_spread_s=0.0,
            pull_jitter_s=0.0,
        )
        self.asking.append(await self._stage.local_stream(gateway))
        async with asyncio.timeout(60):
            while name not in await asyncio.to_thread(self._heard):  # noqa: ASYNC110 - another process writes it
                await asyncio.sleep(0.1)
        return gateway

    def _heard(self) -> set[str]:
        with self._opened() as fleet:
            return {each.agent for each in fleet.devices()}

    def _opened(self) -> Fleet:
        return Fleet(FleetSettings(home=self.home))

    async def types(self, *words: str) -> Any:
        """Run one of the operator's commands, and read its JSON."""
        command = await asyncio.create_subprocess_exec(
            *python("fleet", *words, "--json"),
            stdout=PIPE,
            stderr=PIPE,
            env=environment(**self._variables),
        )
        async with asyncio.timeout(COMMAND_S):
            said, errors = await command.communicate()
        assert command.returncode == 0, f"{words}: {errors.decode()[-2000:]}"
        return json.loads(said)

    async def publish(self, version: str, folder: Path | None = None) -> None:
        """Publish a folder, or a version that is another file and answers alike."""
        if folder is None:
            folder = await asyncio.to_thread(self._made, version)
        await asyncio.to_thread(self._publish, folder)
        self.published[version] = content_of(folder)

    def _publish(self, folder: Path) -> None:
        with self._opened() as fleet:
            assert fleet.publish(folder).signed

    def _made(self, version: str) -> Path:
        folder = self._stage.folder / f"near-{version}"
        shutil.copytree(self._stage.near(), folder)
        manifest = json.loads((folder / MANIFEST_FILE).read_text())
        (folder / MANIFEST_FILE).write_text(
            json.dumps({**manifest, "version": version})
        )
        # Bytes after a model's end change nothing of what it does.
        with (folder / manifest["model_file"]).open("ab") as file:
            file.write(random.Random(version).randbytes(MODEL_BYTES))
        return folder

    async def roll_out(self, version: str, *words: str) -> int:
        """Publish a version and begin to roll it out; gives the rollout's generation."""
        await self.publish(version)
        begun = await self.types(
            *("rollout", "start", MODEL, version, "--probation", "1s"), *words
        )
        generation: int = begun["generation"]
        return generation

    async def progress(self, generation: int) -> RolloutProgress:
        """How far a rollout is."""

        def progress() -> RolloutProgress:
            with self._opened() as fleet:
                return fleet.rollouts.progress_of(generation)

        return await asyncio.to_thread(progress)

    async def until_over(
        self, generation: int, within_s: float = 120.0
    ) -> RolloutProgress:
        """A rollout that neither goes on by itself nor waits for a person."""
        async with asyncio.timeout(within_s):
            while (now := await self.progress(generation)).live:  # noqa: ASYNC110 - as above
                await asyncio.sleep(0.1)
        return now

    async def is_whole(self) -> None:
        """Only what was published has answered, and the record of it all is whole."""
        answered = {version for each in self.asking for version in each.versions}
        assert answered <= self.published.keys(), answered
        await self.types("audit", "verify")

    async def one_good_model(self, gateway: Gateway) -> str:
        """Which version serves: one that was published, whole on the disk.

        Raises:
            AssertionError: none, or something else than was published.
        """
        now = await self._stage.until_status(
            gateway, lambda now: now["models"].get(MODEL, {}).get("serving")
        )
        slots = now["models"][MODEL]
        serving: str = slots["serving"]
        assert serving in (slots["active"], slots["previous"]), slots
        assert serving in self.published, slots
        found = await asyncio.to_thread(content_of, versions_of(gateway) / serving)
        assert found == self.published[serving], f"{serving} is not what was published"
        return serving


def versions_of(gateway: Gateway) -> Path:
    """Where an agent keeps the versions of the model."""
    return gateway.state_dir / "models" / MODEL


def content_of(folder: Path) -> tuple[str, str]:
    """What a version says that it is, and the digest of its model."""
    manifest = json.loads((folder / MANIFEST_FILE).read_bytes())
    model = (folder / manifest["model_file"]).read_bytes()
    return manifest["version"], hashlib.sha256(model).hexdigest()


def said(gateway: Gateway, event: str, version: str) -> int:
    """How often an agent's log tells of something that became of a version."""
    wanted = {"event": event, "model": MODEL, "version": version}
    lines = gateway.agent.log.read_text(errors="replace").splitlines()
    told = [json.loads(line) for line in lines if f'"{event}"' in line]
    return sum(wanted.items() <= each.items() for each in told)


async def slots_of(gateway: Gateway) -> tuple[State, int] | None:
    """How far the agent's update is, and of which generation; None while it is away."""
    try:
        status = await gateway.status()
    except (ControlError, OSError, TimeoutError):
        return None
    slots = status["models"][MODEL]
    return State(slots["state"]), slots["generation"]
