"""Workers as real processes, under load, stopped and killed: nothing is lost."""

from __future__ import annotations

import asyncio
import json
import os
import signal
from collections import Counter
from pathlib import Path

import pytest

from broker.messages import Status
from broker.node import Node
from tests.integration.cloud_worker.pool import (
    Agent,
    WorkerProcess,
    first_value,
    repository,
    request,
)
from tests.waiting import until

pytestmark = [
    pytest.mark.integration,
    # A RabbitMQ and several workers start.
    pytest.mark.timeout(300),
]

PER_ENVELOPE = 5


async def flood(agent: Agent, prefix: str, model: str, envelopes: int) -> list[str]:
    """Send many requests; their values are their numbers."""
    ids: list[str] = []
    for start in range(0, envelopes, 20):
        batches = []
        for envelope in range(start, min(start + 20, envelopes)):
            numbers = range(envelope * PER_ENVELOPE, (envelope + 1) * PER_ENVELOPE)
            items = [request(f"{prefix}-{n}", model, float(n)) for n in numbers]
            ids.extend(each.id for each in items)
            batches.append(agent.ask(*items))
        await asyncio.gather(*batches)
    return ids


def check_answers(agent: Agent, prefix: str, ids: list[str]) -> None:
    for number, id_ in enumerate(ids):
        assert id_ == f"{prefix}-{number}"
        for result in agent.results[id_]:
            assert result.status is Status.OK
            assert first_value(result) == 2 * number + 1


async def test_sigterm_under_load_finishes_what_is_held_and_loses_nothing(
    rabbit: Node, tmp_path: Path
) -> None:
    models = repository(tmp_path, it_term="line_lite")
    url = rabbit.amqp_url("worker")
    async with Agent(rabbit) as agent:
        options = ("--max-batch", "2")
        async with WorkerProcess(url, models, *options) as first:
            await first.ready()
            async with asyncio.TaskGroup() as group:
                sending = group.create_task(flood(agent, "term", "it-term", 300))
                await until(lambda: len(agent.results) > 200)
                first.signal(signal.SIGTERM)
                assert await first.ended() == 0
            ids = sending.result()
        (stopped,) = [line for line in first.said if '"event": "stopped"' in line]
        assert '"given_back": 0' in stopped
        (books,) = [line for line in first.said if '"event": "ledger"' in line]
        said = json.loads(books)
        assert said["taken"] == said["answered"]
        # The broker has them all; the last may still be on their way to the agent.
        await until(lambda: len(agent.results) >= said["answered"])
        answered = set(agent.results)
        assert said["answered"] == len(answered)
        assert not any("ledger_mismatch" in line for line in first.said)
        assert answered < set(ids)
        async with WorkerProcess(url, models) as second:
            await second.ready()
            await agent.all_results(ids)
        check_answers(agent, "term", ids)
        # What the first one held it finished, so nothing was done twice.
        assert all(len(agent.results[id_]) == 1 for id_ in ids)


async def test_two_workers_share_the_load_and_a_killed_one_loses_nothing(
    rabbit: Node, tmp_path: Path
) -> None:
    models = repository(tmp_path, it_kill="line_lite")
    url = rabbit.amqp_url("worker")
    options = ("--max-batch", "2")
    async with (
        Agent(rabbit) as agent,
        # In a process of its own, which has to end with the worker's.
        WorkerProcess(
            url, models, "--id", "w-1", *options, OVERSPILL_WORKER_INLINE_BELOW_MS="0"
        ) as first,
        WorkerProcess(url, models, "--id", "w-2", *options) as second,
    ):
        await first.ready()
        await second.ready()
        child = first.model_process()
        assert child is not None
        async with asyncio.TaskGroup() as group:
            sending = group.create_task(flood(agent, "kill", "it-kill", 300))
            await until(lambda: len(agent.results) > 500)
            shares = Counter(each[0].worker for each in agent.results.values())
            first.signal(signal.SIGKILL)
        ids = sending.result()
        await agent.all_results(ids)
        check_answers(agent, "kill", ids)
        assert min(shares["w-1"], shares["w-2"]) > 50
        assert await first.ended() == -signal.SIGKILL
        await until(lambda: not Path(f"/proc/{child}").exists())


async def test_killing_the_model_process_under_load_fails_no_request(
    rabbit: Node, tmp_path: Path
) -> None:
    models = repository(tmp_path, it_child="line_lite")
    url = rabbit.amqp_url("worker")
    async with (
        Agent(rabbit) as agent,
        WorkerProcess(
            url, models, "--max-batch", "2", OVERSPILL_WORKER_INLINE_BELOW_MS="0"
        ) as process,
    ):
        await process.ready()
        async with asyncio.TaskGroup() as group:
            sending = group.create_task(flood(agent, "child", "it-child", 200))
            await until(lambda: len(agent.results) > 200)
            os.kill(process.model_process() or 0, signal.SIGKILL)
        ids = sending.result()
        await agent.all_results(ids)
        check_answers(agent, "child", ids)
        assert any("model is back" in line for line in process.said)
