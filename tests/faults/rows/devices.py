"""What others do: devices that repeat themselves or vanish, a worker that lies."""

from __future__ import annotations

import asyncio
import signal

from tests.faults.device import SPILLED, Device, Kind
from tests.faults.malicious import Malicious
from tests.faults.row import Row
from tests.faults.stage import Gateway, Stage

SHORT = Kind("copy", deadline_s=0.5)
# How long answers wait for a device that stays away for longer.
KEPT_S = 2.0


async def malicious_worker(stage: Stage) -> None:
    gateway = await stage.gateway()
    for name in ("cam1", "cam2"):
        await stage.device(gateway, name)
    await stage.local_stream(gateway)
    # Without any worker these expire; their results come all the same, but late.
    await stage.load(stage.n(20), SHORT)
    await stage.until(lambda: not any(each.open for each in stage.devices))
    async with stage.fault("malicious worker"):
        liar = Malicious(stage.node.amqp_url("worker"), stage.random)
        running = stage.background(liar.run())
        await stage.load(stage.n(150), rate=60)
        await stage.until_ended()
    status = await stage.until_status(
        gateway, lambda now: now["counters"]["strangers"] >= liar.strangers
    )
    assert liar.strangers > 0
    # Of an id that is told there is nothing left to end: its results are strangers too.
    ignored = status["counters"]["strangers"] + status["counters"]["duplicates"]
    assert ignored >= liar.strangers + liar.again, (ignored, liar.strangers, liar.again)
    running.cancel()


async def resends(stage: Stage) -> None:
    gateway = await stage.usual()
    worker = stage.workers["w1"]
    worker.signal(signal.SIGSTOP)
    async with stage.fault("resends"):
        for device in stage.devices:
            for _ in range(stage.n(20)):
                id_ = await device.offer(SPILLED)
                for _ in range(5):  # in the same breath, so before its commit
                    await device.send(id_)
        for _ in range(3):
            for device in stage.devices:
                await device.resend_all()
        await stage.until(
            lambda: all(each.heard_accepted >= set(each.open) for each in stage.devices)
        )
        worker.signal(signal.SIGCONT)
        await stage.until(lambda: not any(each.open for each in stage.devices))
    # An id that has ended hears the same again, and nothing is done for it.
    sent = (await gateway.status())["counters"]["sent"]
    before = stage.verdict().retold
    for device in stage.devices:
        for id_ in list(device.ended):
            await device.send_again(id_, SPILLED)
    ended = sum(len(device.ended) for device in stage.devices)
    await stage.until(lambda: stage.verdict().retold >= before + ended)
    assert (await gateway.status())["counters"]["sent"] == sent, "work was done again"
    await stage.until_ended()


async def vanishes(stage: Stage) -> None:
    """The device goes with its session, and its broker too; the answers wait."""
    gateway, device, count = await _answers_wait(stage)
    async with stage.fault("device away"):
        await asyncio.sleep(1.0)  # the fault itself: nobody is there to hear it
        still = (await gateway.status())["outbox"]["untold"]
        assert still == count, "an answer was given up while nobody could hear it"
        await gateway.mosquitto.start()
    await stage.until_status(gateway, lambda now: not now["outbox"]["untold"])
    await _asks_again(stage, device)


async def stays_away(stage: Stage) -> None:
    """As before, for longer than answers are kept; the agent looks when it starts."""
    gateway, device, count = await _answers_wait(stage, keep_untold_s=KEPT_S)
    async with stage.fault("device away for too long"):
        await asyncio.sleep(KEPT_S)  # the fault itself
        gateway.agent.signal(signal.SIGKILL)
        # It is ready once it hears its devices, whose broker is still away.
        await stage.until_status(
            gateway, lambda now: now["ledger"]["undelivered"] == count
        )
        await gateway.mosquitto.start()
    status = await stage.until_status(gateway, lambda now: now["local"]["up"])
    assert status["ledger"]["balanced"], status["ledger"]
    await _asks_again(stage, device)


async def _answers_wait(
    stage: Stage, keep_untold_s: float = 7 * 86400.0
) -> tuple[Gateway, Device, int]:
    """Requests are accepted, device and local broker go, and the answers come."""
    worker = await stage.worker("w1")
    gateway = await stage.gateway(keep_untold_s=keep_untold_s)
    device = await stage.device(gateway, "cam1", persistent=False)
    worker.signal(signal.SIGSTOP)
    ids = await device.offer_many(stage.n(40))
    await stage.until(lambda: device.heard_accepted >= set(ids))
    await stage.leaves(device)
    await gateway.mosquitto.kill()
    worker.signal(signal.SIGCONT)
    await stage.until_status(
        gateway,
        lambda now: not now["outbox"]["open"] and now["outbox"]["untold"] == len(ids),
    )
    return gateway, device, len(ids)


async def _asks_again(stage: Stage, device: Device) -> None:
    """It hears the recorded outcome, whether it was told to nobody or never."""
    await stage.comes_back(device)
    await device.resend_all()
    await stage.until_ended()


ROWS: tuple[Row, ...] = (
    Row(
        "malicious-worker",
        "a worker's results twice, out of order, late, and for strangers",
        "exactly one effect; strangers' results are ignored and counted",
        malicious_worker,
        fast=True,
        may_pend=False,
    ),
    Row(
        "device-resends",
        "devices send each id many times, before its commit and after its end",
        "one effect an id; nothing is acknowledged before it is safe",
        resends,
        fast=True,
    ),
    Row(
        "device-vanishes",
        "a device and its broker are gone before the answer, then back",
        "the answer waits, and is heard when the device asks again",
        vanishes,
        fast=True,
    ),
    Row(
        "device-stays-away",
        "a device and its broker are away for longer than answers are kept",
        "the outcomes are recorded as undelivered, and heard when the device asks",
        stays_away,
    ),
)
