"""An agent that knows whom to trust serves what it came with only if they signed it."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from typing_extensions import override

from bundle.pack import BundleRejected, pack
from bundle.seal import make_seal
from edge_agent.adapters.model_store import ModelStore
from edge_agent.app import Agent
from edge_agent.core.slots import Slots, State
from edge_agent.settings import AgentSettings
from lifecycle.clock import SystemClock
from tests.integration.edge_agent.edge import SHIRT, tiny
from tests.trust import FleetTrust

pytestmark = pytest.mark.timeout(60)

Made = Callable[..., AgentSettings]


class YearsLater(SystemClock):
    """The box stood on a shelf."""

    @override
    def wall_ms(self) -> int:
        return super().wall_ms() + 3 * 365 * 86_400_000


@pytest.fixture
def came_with(tmp_path: Path, short_tmp: Path) -> Made:
    """Settings of an agent with a packed bundle, signed in epoch 2, and the registry."""
    fleet = FleetTrust(tmp_path / "fleet", SystemClock().wall_ms() / 1000)
    packed = tmp_path / "bundle.tar"
    manifest = pack(tiny(tmp_path / "sure", threshold=0.0), packed)
    seal = make_seal(packed, manifest.name, manifest.version)
    published = seal.model_copy(update={"epoch": 2})
    # Every publish of another version since has signed the way back to this one.
    ways_back = [
        seal.model_copy(update={"epoch": epoch, "way_back": True})
        for epoch in (5, 7, 9, 11)
    ]
    seals = [(published, False), *((each, True) for each in ways_back)]
    fleet.repository.draft_seals(manifest.name, seals)
    fleet.sign()
    copied = short_tmp / "registry"
    for part in ("metadata", "targets"):
        shutil.copytree(fleet.registry / part, copied / part)
    root = short_tmp / "root.json"
    root.write_bytes(fleet.root())

    def made(**more: Any) -> AgentSettings:
        usual: dict[str, Any] = {
            "agent_id": "edge",
            "state_dir": short_tmp / "agent",
            "local": False,
            "bundles": [packed],
            "trusted_root": root,
            "provisioned_registry": copied,
            "disk_reserve_bytes": 0,
        }
        return AgentSettings(**{**usual, **more})

    return made


async def test_what_was_signed_serves_from_the_first_start_however_long_ago_it_was(
    came_with: Made,
) -> None:
    async with Agent(came_with(), clock=YearsLater()) as agent:
        assert (await agent.infer("fashion", SHIRT)).version == "1"
        slots = (await agent.status())["models"]["fashion"]
        # The newest epoch of a publish; a way back is none.
        assert (slots["epoch"], slots["floor"]) == (2, 2)
    # From then on it is the agent's own.
    async with Agent(came_with(provisioned_registry=None)) as agent:
        assert (await agent.infer("fashion", SHIRT)).version == "1"


async def test_what_was_signed_otherwise_under_its_name_does_not_serve(
    came_with: Made, tmp_path: Path
) -> None:
    other = tiny(tmp_path / "other", threshold=0.5)
    with pytest.raises(BundleRejected, match="is not what was signed"):
        async with Agent(came_with(bundles=[other])):
            pass


async def test_what_nobody_signed_does_not_serve_unless_that_is_allowed(
    came_with: Made, tmp_path: Path
) -> None:
    with pytest.raises(BundleRejected, match="AGENT_PROVISIONED_REGISTRY"):
        async with Agent(came_with(provisioned_registry=None)):
            pass
    with pytest.raises(BundleRejected, match=r"is not signed in .*: there is no seal"):
        async with Agent(came_with(provisioned_registry=tmp_path / "empty")):
            pass
    allowed = came_with(provisioned_registry=None, unsigned_bundles=True)
    async with Agent(allowed) as agent:
        assert (await agent.infer("fashion", SHIRT)).version == "1"


def nothing_serves(settings: AgentSettings, floor: int) -> None:
    """An update has failed its probation, and the disk had damaged its way back."""
    slots = Slots(
        "fashion",
        staged="3",
        state=State.RETURNED,
        staged_epoch=6,
        floor=floor,
        seen=6,
        generation=9,
    )
    ModelStore(settings.state_dir / "models").save(slots)


async def test_what_an_update_has_barred_does_not_serve_again_after_a_restart(
    came_with: Made,
) -> None:
    async with Agent(came_with()):
        pass
    nothing_serves(came_with(), floor=5)
    async with Agent(came_with()) as agent:
        slots = (await agent.status())["models"]["fashion"]
        assert (slots["serving"], slots["floor"], slots["seen"]) == (None, 5, 6)


async def test_what_serves_in_place_of_nothing_keeps_the_floor(came_with: Made) -> None:
    async with Agent(came_with()):
        pass
    nothing_serves(came_with(), floor=2)
    async with Agent(came_with()) as agent:
        slots = (await agent.status())["models"]["fashion"]
        assert (slots["serving"], slots["floor"], slots["seen"]) == ("1", 2, 6)
    # Taken as it is, it bars nothing, and what was barred stays so.
    nothing_serves(came_with(), floor=5)
    allowed = came_with(provisioned_registry=None, unsigned_bundles=True)
    async with Agent(allowed) as agent:
        slots = (await agent.status())["models"]["fashion"]
        assert (slots["serving"], slots["floor"], slots["seen"]) == ("1", 5, 6)


async def test_an_agent_that_has_nothing_left_to_serve_starts_without_the_registry(
    came_with: Made,
) -> None:
    async with Agent(came_with()):
        pass
    nothing_serves(came_with(), floor=5)
    async with Agent(came_with(provisioned_registry=None)) as agent:
        # There is no cloud here; with one it would be asked.
        answer = await agent.infer("fashion", SHIRT)
        assert "no_local_model" in (answer.reason or "")
