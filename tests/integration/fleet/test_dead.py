"""`overspill dead` against the dead letters of a real RabbitMQ.

The node is shared and other tests leave letters too, so each test looks only at
those of its own model.
"""

from __future__ import annotations

import asyncio
import json
import os
import signal
import sys
from collections.abc import AsyncIterator, Callable, Coroutine
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest
from structlog.testing import capture_logs
from typer.testing import CliRunner, Result

from broker.codec import decode, encode
from broker.dead_letters import POISON, RETRIED, Death, Mishap, headers_of
from broker.messages import Reason, Request, Tensor
from broker.node import Node
from broker.topology import DEAD_EXCHANGE, DEAD_QUEUE, model_queues
from fleet.__main__ import app
from lifecycle.clock import SystemClock
from tests.integration.broker.links import Heard, amqp

pytestmark = pytest.mark.integration

Say = Callable[..., Coroutine[Any, Any, Result]]


@pytest.fixture
def say(rabbit: Node, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Say:
    monkeypatch.setenv("OVERSPILL_FLEET_HOME", str(tmp_path / "home"))
    monkeypatch.setenv("OVERSPILL_FLEET_AMQP_URL", rabbit.amqp_url("fleet"))

    def said(*words: str) -> Result:
        # The program itself logs to standard error; nobody has set that up here.
        with capture_logs():
            return CliRunner().invoke(app, ["dead", *words])

    async def elsewhere(*words: object) -> Result:
        return await asyncio.to_thread(said, *map(str, words))

    return elsewhere


def request(id_: str, model: str, device: str = "cam1", **changes: Any) -> Request:
    fields: dict[str, Any] = {
        "id": id_,
        "device": device,
        "model": model,
        "reason": Reason.HARD,
        "expires_at_ms": 1,
        "tensors": {"x": Tensor(dtype="uint8", shape=[1, 2], data=b"12")},
    }
    return Request(**{**fields, **changes})


def key(model: str) -> str:
    return f"e1.agent-1.up.req.{model}.norm"


async def bury(rabbit: Node, model: str, *several: Request) -> None:
    """As a worker does: one letter for each request."""
    death = Death(
        POISON,
        "13 is refused",
        at_ms=SystemClock().wall_ms(),
        model=model,
        version="3",
        worker="w-1",
        history=(Mishap(1, 4, False, "13 is refused"),),
        answered=True,
    )
    async with amqp(rabbit.amqp_url("worker")) as worker:
        for each in several:
            await worker.publish(
                key(model),
                encode(each),
                exchange=DEAD_EXCHANGE,
                headers=headers_of(death),
            )


async def listed(say: Say, model: str) -> list[str]:
    result = await say("list", "--model", model, "--limit", 100_000, "--json")
    assert result.exit_code == 0, result.output
    return [each["name"] for each in json.loads(result.stdout)["letters"]]


def failure(result: Result) -> str:
    assert result.exit_code == 1, result.output
    assert result.stdout == ""
    return result.stderr


@asynccontextmanager
async def served(rabbit: Node, model: str) -> AsyncIterator[Heard]:
    """The queues of a model, with whoever consumes them."""
    heard, queues = Heard(), model_queues(model)
    consume = {queue.name: 100 for queue in queues}
    async with amqp(
        rabbit.amqp_url("worker"), queues=queues, consume=consume, heard=heard
    ):
        yield heard


async def test_letters_are_listed_and_shown_and_looking_takes_none_out(
    rabbit: Node, say: Say, tmp_path: Path
) -> None:
    await bury(rabbit, "d-look", *[request(f"look-{n}", "d-look") for n in range(3)])
    for _ in range(2):
        names = [f"agent-1/cam1/look-{n}" for n in range(3)]
        assert await listed(say, "d-look") == names
    table = (await say("list", "--model", "d-look", "--limit", 2)).stdout
    assert "look-1" in table
    assert "look-2" not in table
    assert "13 is refused" in table

    saved = tmp_path / "request"
    shown = await say("show", "look-1", "--save", saved)
    assert "by worker w-1" in shown.stdout
    assert "in a batch of 4, failed: 13 is refused" in shown.stdout
    assert "input x: uint8 [1, 2], 2 bytes" in shown.stdout
    assert decode(saved.read_bytes(), Request).items[0].id == "look-1"
    assert saved.stat().st_mode & 0o777 == 0o600
    assert "is there already" in failure(await say("show", "look-1", "--save", saved))
    (document,) = json.loads((await say("show", "look-1", "--json")).stdout)["letters"]
    assert document["death"]["history"][0]["requests"] == 4
    assert len(await listed(say, "d-look")) == 3


async def test_a_retried_request_goes_to_its_queue_with_a_new_deadline_and_leaves(
    rabbit: Node, say: Say
) -> None:
    await bury(rabbit, "d-retry", *[request(f"retry-{n}", "d-retry") for n in range(3)])
    async with served(rabbit, "d-retry") as heard:
        before_ms = SystemClock().wall_ms()
        result = await say("retry", "retry-1", "--within", "10min")
        assert result.exit_code == 0, result.output
        assert "retried 1 letters" in result.stdout
        delivery = await heard.delivery()
        assert delivery.routing_key == key("d-retry")
        assert delivery.headers[RETRIED] == 1
        (again,) = decode(delivery.body, Request).items
        assert (again.id, again.attempt) == ("retry-1", 1)
        assert again.expires_at_ms >= before_ms + 600_000
        delivery.ack()
        assert await listed(say, "d-retry") == [
            "agent-1/cam1/retry-0",
            "agent-1/cam1/retry-2",
        ]
        result = await say("retry", "--all", "--model", "d-retry", "--json")
        assert json.loads(result.stdout)["letters"] == 2
        for _ in range(2):
            (await heard.delivery()).ack()
    assert await listed(say, "d-retry") == []


async def test_what_was_retried_and_died_again_is_not_retried_in_the_same_command(
    rabbit: Node, say: Say
) -> None:
    await bury(rabbit, "d-again", *[request(f"again-{n}", "d-again") for n in range(5)])
    async with served(rabbit, "d-again") as heard, asyncio.TaskGroup() as beside:

        async def reject() -> None:
            for _ in range(5):
                await (await heard.delivery()).reject(requeue=False)

        beside.create_task(reject())
        result = await say("retry", "--all", "--model", "d-again", "--json")
        assert json.loads(result.stdout)["letters"] == 5
    assert len(await listed(say, "d-again")) == 5


async def test_purging_removes_what_was_named_and_nothing_else(
    rabbit: Node, say: Say
) -> None:
    await bury(rabbit, "d-purge", *[request(f"purge-{n}", "d-purge") for n in range(3)])
    assert (await say("purge", "purge-1")).exit_code == 0
    assert "agent-1/cam1/purge-1" not in await listed(say, "d-purge")
    assert "--yes" in failure(await say("purge", "--all", "--model", "d-purge"))
    result = await say("purge", "--all", "--model", "d-purge", "--yes", "--json")
    assert json.loads(result.stdout)["letters"] == 2
    assert await listed(say, "d-purge") == []


async def test_the_same_id_of_two_devices_must_be_told_apart(
    rabbit: Node, say: Say
) -> None:
    several = [request("twin", "d-twin", device) for device in ("cam1", "cam2")]
    await bury(rabbit, "d-twin", *several)
    for command in ("show", "retry", "purge"):
        said = failure(await say(command, "twin"))
        assert "agent-1/cam1/twin, agent-1/cam2/twin" in said
    assert (await say("purge", "cam2/twin")).exit_code == 0
    assert await listed(say, "d-twin") == ["agent-1/cam1/twin"]


async def test_an_envelope_of_several_is_not_purged_for_one_of_them(
    rabbit: Node, say: Say
) -> None:
    async with amqp(rabbit.amqp_url("worker")) as worker:
        body = encode(request("whole-1", "d-whole"), request("whole-2", "d-whole"))
        await worker.publish(key("d-whole"), body, exchange=DEAD_EXCHANGE)
    assert "1 others" in failure(await say("purge", "whole-2"))
    assert (await say("purge", "whole-2", "--with-others")).exit_code == 0
    assert await listed(say, "d-whole") == []


async def test_noise_is_named_by_its_digest_and_passed_over_by_retry(
    rabbit: Node, say: Say
) -> None:
    async with amqp(rabbit.amqp_url("worker")) as worker:
        await worker.publish(key("d-noise"), b"\xc1 noise", exchange=DEAD_EXCHANGE)
    (name,) = await listed(say, "d-noise")
    shown = await say("show", name)
    assert b"\xc1 noise".hex() in shown.stdout
    assert "no request" in failure(await say("retry", name))
    result = await say("retry", "--all", "--model", "d-noise", "--json")
    assert json.loads(result.stdout)["passed_over"] == 1
    assert (await say("purge", name)).exit_code == 0


@pytest.mark.parametrize(
    ("words", "says"),
    [
        (("retry",), "either the ID of a request, or --all"),
        (("purge", "r-1", "--all"), "either the ID of a request, or --all"),
        (("purge", "r-1", "--model", "m"), "for --all"),
        (("show", "nobody-has-this"), "no dead letter holds"),
        (("list", "--older", "soon"), "no length of time"),
    ],
)
async def test_what_cannot_be_done_is_said_in_one_line(
    rabbit: Node, say: Say, words: tuple[str, ...], says: str
) -> None:
    said = failure(await say(*words))
    assert says in said
    assert said.count("\n") == 1


async def test_two_operators_at_once_are_told_of_each_other(
    rabbit: Node, say: Say
) -> None:
    async with (
        amqp(rabbit.amqp_url("fleet")) as other,
        other.browse(DEAD_QUEUE),
    ):
        assert "another `overspill dead`" in failure(await say("list"))
    assert (await say("list")).exit_code == 0


async def test_a_rabbitmq_that_is_away_is_said_to_be(
    say: Say, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("OVERSPILL_FLEET_PUBLISH_TIMEOUT_S", "0.5")
    said = failure(await say("list", "--amqp-url", "amqp://a:b@127.0.0.1:1/"))
    assert "cannot be reached: nothing listens at" in said


async def test_a_command_that_is_killed_midway_has_lost_nothing(
    rabbit: Node, say: Say
) -> None:
    ids = [f"kill-{n}" for n in range(300)]
    await bury(rabbit, "d-kill", *[request(each, "d-kill") for each in ids])
    async with served(rabbit, "d-kill") as heard:
        process = await asyncio.create_subprocess_exec(
            *(sys.executable, "-m", "fleet", "dead", "retry"),
            *("--all", "--model", "d-kill"),
            env=os.environ,
            stdout=asyncio.subprocess.DEVNULL,
        )
        first = await heard.delivery()
        process.send_signal(signal.SIGKILL)
        await process.wait()
        sent = {_only_id(first.body)}
        first.ack()
        left = set(await listed(say, "d-kill"))
        while len(sent) + len(left) < len(ids) or not heard.deliveries.empty():
            delivery = await heard.delivery()
            sent.add(_only_id(delivery.body))
            delivery.ack()
        assert sent | {name.rpartition("/")[2] for name in left} == set(ids)
    assert (await say("purge", "--all", "--model", "d-kill", "--yes")).exit_code == 0


def _only_id(body: bytes) -> str:
    (only,) = decode(body, Request).items
    return only.id
