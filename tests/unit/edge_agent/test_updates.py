from __future__ import annotations

import asyncio
import random
from pathlib import Path
from typing import Any

from edge_agent.adapters.model_store import ModelStore
from edge_agent.core.slots import Slots, State
from edge_agent.loops.updates import Updates, UpdateSettings


class NoLink:
    up = False

    async def publish(
        self, topic: str, payload: bytes, *, timeout_s: float = 10.0
    ) -> None:
        raise AssertionError(
            f"{topic}: {len(payload)} bytes in {timeout_s} s, all down"
        )


async def never(*_: Any) -> Any:
    raise AssertionError("nothing was pulled")


async def test_an_update_that_its_loop_died_in_can_begin_again(tmp_path: Path) -> None:
    updates = Updates(
        agent="a",
        link=NoLink(),
        store=ModelStore(tmp_path),
        trusted={},
        settings=UpdateSettings(window=1, timeout_s=1.0, poll_every_s=60.0),
        try_out=never,
        load=never,
        swap=never,
        changed=lambda: None,
        rng=random.Random(1),
    )
    at_rest = Slots("m", active="1")
    pulling = at_rest.pulling("2", 3)
    updates.start_with({"p": pulling, "t": pulling.pulled(), "r": at_rest})
    async with asyncio.TaskGroup() as tasks:
        running = tasks.create_task(updates.run())
        await asyncio.sleep(0)
        assert {each.state for each in updates.slots.values()} == {State.IDLE}
        assert {each.active for each in updates.slots.values()} == {"1"}
        running.cancel()
