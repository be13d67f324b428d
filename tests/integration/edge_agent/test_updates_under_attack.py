"""Updates of an agent that is told wrong things by somebody without keys, or in bad luck."""

from __future__ import annotations

import asyncio
from pathlib import Path

import pytest

from bundle.seal import Seal
from bundle.trust.errors import NotSigned
from edge_agent.core.slots import State
from tests.updating import Agent, Registry, running, want
from tests.waiting import until


@pytest.fixture
def registry(tmp_path: Path) -> Registry:
    return Registry(tmp_path / "registry")


@pytest.fixture
def agent(tmp_path: Path, registry: Registry) -> Agent:
    return Agent(tmp_path / "agent", registry)


async def test_what_is_signed_while_trust_is_refreshed_is_looked_up_anew(
    agent: Agent, registry: Registry, monkeypatch: pytest.MonkeyPatch
) -> None:
    # As `TrustedSeals`: what was newest at the last refresh is newest until the next.
    known: set[tuple[str, int]] = set()
    signed: set[tuple[str, int]] = {("1", 0)}
    slow = asyncio.Event()
    begun = asyncio.Event()

    async def refresh() -> None:
        newest = set(signed)
        begun.set()
        await slow.wait()
        known.clear()
        known.update(newest)

    really = registry.seal_for

    async def seal_for(model: str, version: str, epoch: int) -> Seal:
        if (version, epoch) not in known:
            raise NotSigned(f"{version} in {epoch} is not signed")
        return await really(model, version, epoch)

    monkeypatch.setattr(registry, "refresh", refresh)
    monkeypatch.setattr(registry, "seal_for", seal_for)
    registry.publish("1")
    async with running(agent):
        await agent.gets(want("1", 1))
        await begun.wait()
        registry.publish("2", 1)
        signed.add(("2", 1))
        await agent.gets(want("2", 2, 1))
        await agent.has_looked()
        slow.set()
        await until(
            lambda: (
                agent.slots.state in (State.SWAPPED, State.REFUSED)
                and agent.slots.generation == 2
            ),
            10,
        )
        assert (agent.slots.state, agent.slots.active) == (State.SWAPPED, "2")
