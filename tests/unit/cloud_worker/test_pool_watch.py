"""The pool's wait with a broker that says what the test says."""

from __future__ import annotations

import pytest

from broker.amqp.queues import NoSuchQueue, QueueLook
from broker.link import LinkDown
from cloud_worker.loops.observer import Observer
from cloud_worker.loops.overload import PoolWatch
from cloud_worker.loops.stamps import Stamps
from lifecycle.clock import FakeClock


class Queues:
    """Depths by name; a queue that is not there is an error."""

    def __init__(self, **depths: int) -> None:
        self.depths = {f"infer.{name}.norm": depth for name, depth in depths.items()}
        self.error: Exception | None = None

    async def look(self, queue: str) -> QueueLook:
        if self.error is not None:
            raise self.error
        return QueueLook(self.depths.get(queue, 0), consumers=2)


def watched(queues: Queues, waiting: int = 0) -> PoolWatch:
    observer = Observer(FakeClock())
    observer.rate.seed("a", [(1, 10.0)])
    return PoolWatch(
        queues.look, models=lambda: ["a"], observer=observer, waiting=lambda: waiting
    )


async def test_a_result_says_how_long_the_line_is() -> None:
    watch = watched(Queues(a=100), waiting=3)
    stamps = Stamps("w", FakeClock(), watch.wait_s)
    assert stamps.now("a").pool_wait_ms == pytest.approx(30)
    await watch.look_once()
    assert stamps.now("a").pool_wait_ms == pytest.approx(500 + 30)
    assert watch.drain_s() == pytest.approx(0.53)


@pytest.mark.parametrize("error", [LinkDown("away"), NoSuchQueue("gone")])
async def test_a_line_that_is_not_seen_is_not_told(error: Exception) -> None:
    queues = Queues(a=100)
    watch = watched(queues)
    await watch.look_once()
    assert watch.wait_s("a") > 0
    queues.error = error
    await watch.look_once()
    assert watch.wait_s("a") == 0
    assert watch.depths == ()
    queues.error = None
    await watch.look_once()
    assert watch.wait_s("a") > 0
