"""A model's process may end at any moment, also before it was told anything."""

from __future__ import annotations

import asyncio

import pytest
import uvloop

from cloud_worker.adapters.model_process import ModelProcess
from cloud_worker.adapters.trays import Tray


@pytest.mark.parametrize("loops", ["uvloop", "asyncio"])
def test_what_is_written_to_a_process_that_was_killed_ends_nobody(loops: str) -> None:
    async def killed() -> str:
        exited = asyncio.Event()
        process = ModelProcess(
            on_frame=lambda _: None, on_lost=lambda _: None, on_exit=exited.set
        )
        tray = Tray()
        try:
            await process.start([tray], gently=False)
            process.kill()
            async with asyncio.timeout(30):
                await exited.wait()
            process.write({"load": "too late"})
            return process.cause
        finally:
            await process.end()
            tray.close()

    run = uvloop.run if loops == "uvloop" else asyncio.run
    assert run(killed()) == "the model's process was killed by SIGKILL"
