"""A candidate in a process of its own: it answers, fails and ends without harm."""

from __future__ import annotations

import asyncio
import json
import os
import shutil
import signal
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from typing_extensions import override

from broker.messages import Priority, Reason
from bundle.manifest import parse_manifest
from edge_agent.adapters.model_store import ModelStore, StoredBundle
from edge_agent.adapters.shadow import ShadowEnded, ShadowProcess
from edge_agent.core.accounts import Accounts
from edge_agent.core.answers import Answer, AnswerStatus, Source
from edge_agent.core.arrays import to_wire_tensor
from edge_agent.core.delivery import Channel, Ending, Outcome, Spill, Why
from edge_agent.core.health import Account
from edge_agent.core.payload import DeviceRequest, Encoding
from edge_agent.core.slots import Slots, State
from edge_agent.loops.shadowing import QUEUE, Shadowing
from edge_agent.loops.slot_book import SlotBook
from tests.waiting import until

MODELS = Path(__file__).parent / "models"
WEIGHTS = np.arange(12, dtype=np.float32).reshape(4, 3) / 12 - 0.4
LABELS = ["a", "b", "c"]

pytestmark = pytest.mark.timeout(120)  # each starts an interpreter


def bundle(folder: Path, model: str = "dense", **changes: Any) -> StoredBundle:
    folder.mkdir(parents=True, exist_ok=True)
    shutil.copy(MODELS / f"{model}.tflite", folder / "model.tflite")
    said = {
        "format": 1,
        "name": "toy",
        "version": "8",
        "model_file": "model.tflite",
        "task": "classify",
        "labels": LABELS,
        "decision": {"output": "logits"},
        **changes,
    }
    data = json.dumps(said).encode()
    (folder / "manifest.json").write_bytes(data)
    return StoredBundle(folder, parse_manifest(data))


def row(number: int) -> np.ndarray:
    return np.random.default_rng(number).normal(size=(1, 4)).astype(np.float32)


def label_of(number: int) -> str:
    return LABELS[int((row(number) @ WEIGHTS).argmax())]


def request(number: int) -> DeviceRequest:
    return DeviceRequest(
        id=f"r{number}",
        device="cam1",
        model="toy",
        tensors={"x": row(number)},
        medium=None,
        deadline_ms=None,
        priority=Priority.NORM,
        forced=False,
        encoding=Encoding.JSON,
        payload_bytes=16,
    )


def answer(number: int, label: str, source: Source = Source.EDGE) -> Answer:
    return Answer(
        id=f"r{number}",
        device="cam1",
        status=AnswerStatus.ANSWERED,
        source=source,
        label=label,
        version="7",
    )


def spill(number: int, reason: Reason = Reason.HARD) -> Spill:
    return Spill(
        device="cam1",
        id=f"r{number}",
        model="toy",
        priority=Priority.NORM,
        reason=reason,
        channel=Channel.CALL,
        encoding="json",
        request=b"",
        accepted_ms=0.0,
        deadline_ms=1.0,
        due_ms=0.0,
        edge=answer(number, "a"),
    )


async def test_a_candidate_answers_by_its_own_manifest(tmp_path: Path) -> None:
    async with ShadowProcess(bundle(tmp_path / "b").folder) as process:
        for number in range(3):
            shown = await process.answer({"x": to_wire_tensor(row(number))}, None)
            assert (shown.label, shown.failed) == (label_of(number), None)
            assert shown.ms > 0
        shown = await process.answer({"y": to_wire_tensor(row(0))}, None)
        assert "takes inputs ['x']" in (shown.failed or "")
        shown = await process.answer({"x": to_wire_tensor(row(1))}, None)
        assert shown.label == label_of(1)


async def test_a_candidate_that_cannot_be_loaded_says_why(tmp_path: Path) -> None:
    stored = bundle(tmp_path / "b", "custom_op", decision=None, labels=[])
    with pytest.raises(ShadowEnded, match="operator MatrixDeterminant"):
        async with ShadowProcess(stored.folder):
            pass


async def test_a_candidate_that_is_killed_or_hangs_is_an_end_and_no_wait(
    tmp_path: Path,
) -> None:
    stored = bundle(tmp_path / "b")
    async with ShadowProcess(stored.folder, timeout_s=20.0) as process:
        assert process.pid is not None
        os.kill(process.pid, signal.SIGSEGV)
        with pytest.raises(ShadowEnded, match="crashed \\(SIGSEGV\\)"):
            await process.answer({"x": to_wire_tensor(row(0))}, None)
    async with ShadowProcess(stored.folder, timeout_s=3.0) as process:
        assert process.pid is not None
        os.kill(process.pid, signal.SIGSTOP)
        with pytest.raises(ShadowEnded, match="not done in 3 s"):
            await process.answer({"x": to_wire_tensor(row(0))}, None)


class Beside:
    """The shadows of one agent that serves version 7 of `toy`."""

    def __init__(self, store: ModelStore) -> None:
        store.prepare()
        self.book = SlotBook(store)
        slots = Slots("toy", active="7").pulling("8", 1).pulled().shadowed()
        self.book.start_with({"toy": slots})
        self.accounts = Accounts()
        self.shadows = Shadowing(
            slots=self.book,
            accounts=self.accounts,
            threads=1,
            memory_mb=256,
            now_s=lambda: 0.0,
        )

    @property
    def account(self) -> Account:
        found = self.accounts.of("toy", "8")
        assert found is not None
        return found


@asynccontextmanager
async def beside(store: ModelStore, stored: StoredBundle) -> AsyncIterator[Beside]:
    made = Beside(store)
    async with asyncio.TaskGroup() as tasks:
        task = tasks.create_task(made.shadows.run())
        await made.shadows.start(stored)
        yield made
        task.cancel()


async def test_a_shadow_is_compared_with_the_active_version_and_with_the_cloud(
    tmp_path: Path,
) -> None:
    async with beside(ModelStore(tmp_path / "models"), bundle(tmp_path / "b")) as agent:
        shadows = agent.shadows
        for number in range(4):
            said = label_of(number) if number else "z"
            shadows.offer(request(number), answer(number, said))
        await until(lambda: agent.account.requests == 4, 30)
        account = agent.account
        assert (account.with_active, account.with_active_agreed) == (4, 3)
        # The cloud may speak after the shadow, or before it.
        ended(shadows, 1, label_of(1))
        ended(shadows, 2, "z", Reason.AUDIT)
        ended(shadows, 9, label_of(9))
        shadows.offer(request(9), answer(9, "a"))
        await until(lambda: account.compared == 3, 30)
        assert (account.agreed, account.chosen, account.chosen_agreed) == (2, 1, 0)
        assert account.latencies.runs == 5
        assert account.errors == shadows.dropped == 0


def ended(
    shadows: Shadowing, number: int, label: str, reason: Reason = Reason.HARD
) -> None:
    said = answer(number, label, Source.CLOUD)
    shadows.ended(spill(number, reason), Ending(Outcome.ANSWERED, said, Why.CLOUD))


async def test_a_shadow_that_is_too_slow_drops_and_delays_nothing(
    tmp_path: Path,
) -> None:
    agent = Beside(ModelStore(tmp_path / "models"))
    await agent.shadows.start(bundle(tmp_path / "b"))
    # Nothing runs it: its queue fills, and no call waits.
    for number in range(QUEUE + 5):
        agent.shadows.offer(request(number), answer(number, "a"))
    assert agent.shadows.dropped == 5


class FullDisk(ModelStore):
    """It takes nothing."""

    @override
    def save(self, slots: Slots) -> None:
        raise OSError(28, "No space left on device")


async def test_a_shadow_that_ends_again_and_again_is_refused_whatever_the_disk_says(
    tmp_path: Path,
) -> None:
    stored = bundle(tmp_path / "b", "custom_op", decision=None, labels=[])
    # The shadows of other models share its loop, which does not end with it.
    async with beside(FullDisk(tmp_path / "models"), stored) as agent:
        await until(lambda: agent.book.of("toy").state is State.REFUSED, 40)
        slots = agent.book.of("toy")
        assert (slots.active, slots.staged) == ("7", "8")
        assert "ended 3 times" in (slots.reason or "")
