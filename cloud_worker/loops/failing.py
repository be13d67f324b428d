"""What becomes of requests whose batch failed: another try, or the blame.

The culprit of a batch is found by halving it. It is answered `failed` and kept among the
dead letters; those who were with it run again.
"""

from __future__ import annotations

import asyncio
from collections.abc import Iterable
from dataclasses import replace

import structlog

from broker.dead_letters import MAX_MISHAPS, Mishap, times_retried
from broker.messages import Timings
from cloud_worker.adapters.failures import BatchFailed
from cloud_worker.core.batcher import Batcher
from cloud_worker.core.culprits import Culprit, Culprits
from cloud_worker.core.ledger import Cause
from cloud_worker.core.line import Item
from cloud_worker.core.replies import Finished
from cloud_worker.core.results import Served, failed
from cloud_worker.core.retry import Again, Apart, Guilty, Verdict, verdict
from cloud_worker.loops.dead_letters import DeadLetters
from cloud_worker.loops.parcels import Held, Parcel
from cloud_worker.loops.replies import Replies
from cloud_worker.loops.write_up import Batch, finished
from lifecycle.clock import Clock

log = structlog.get_logger(__name__)


class Failing:
    """Finds culprits, and remembers those that ended the model's process.

    Args:
        batcher: those that are tried again wait there.
        replies: takes the results.
        dead_letters: keeps the requests that broke their batches.
        clock: for the history of dead letters.

    Attributes:
        tasks: keeps letters meanwhile; None while nothing runs.
    """

    def __init__(
        self,
        batcher: Batcher[Held],
        *,
        replies: Replies,
        dead_letters: DeadLetters,
        clock: Clock,
    ) -> None:
        self._batcher = batcher
        self._replies = replies
        self._dead_letters = dead_letters
        self._clock = clock
        self._culprits = Culprits()
        self.tasks: asyncio.TaskGroup | None = None

    def holds_back(self, item: Item[Held]) -> bool:
        """Whether a request may not run with others; it is dealt with here."""
        if not self._culprits:
            return False
        who = _culprit(item)
        reason = self._culprits.reason(who)
        if reason is not None and not times_retried(item.work.parcel.delivery.headers):
            self.fail((item,), reason)
            return True
        accused = reason is not None or self._culprits.crashes(who) > 0
        if accused and item.group.apart == 0:
            # A copy of one that may kill the process must not take others with it.
            self._batcher.add_apart((item,))
            return True
        return False

    def acquit(self, batch: Batch) -> None:
        """These ran, and nothing happened."""
        if self._culprits:
            for item in batch:
                self._culprits.acquit(_culprit(item))

    def retry_or_fail(self, batch: Batch, error: BatchFailed) -> None:
        """Let those of a batch that failed wait again, apart, until the culprit is alone."""
        judged = self._judge(batch, error)
        report = log.warning if error.suspect else log.debug
        report(
            "batch failed",
            model=batch[0].group.model,
            requests=len(batch),
            verdict=type(judged).__name__.lower(),
            reason=str(error),
        )
        match judged:
            case Again(items):
                for item in items:
                    self._batcher.add(item)
            case Apart(parts):
                for part in parts:
                    self._batcher.add_apart(part)
            case Guilty(culprit):
                if error.crashed:
                    self._culprits.convict(_culprit(culprit), str(error))
                self._give_up(culprit, str(error))

    def _judge(self, batch: Batch, error: BatchFailed) -> Verdict[Item[Held]]:
        if error.suspect:
            at_ms = self._clock.wall_ms()
            mishap = Mishap(at_ms, len(batch), error.crashed, str(error))
            batch = tuple(_struck(item, mishap) for item in batch)
            if error.crashed:
                self._culprits.suspect(map(_culprit, batch))
        return verdict(
            batch,
            suspect=error.suspect,
            crashed=error.crashed,
            crashes=lambda item: self._culprits.crashes(_culprit(item)),
        )

    def _give_up(self, item: Item[Held], reason: str) -> None:
        """Answer `failed` once the request is among the dead letters, if it can be."""
        if not item.work.end():
            return
        finished = self._failed(item, reason)

        async def keep_and_finish() -> None:
            await self._dead_letters.keep(item.work, reason)
            self._replies.finish((finished,))

        if self.tasks is not None and self._dead_letters.roomy:
            self.tasks.create_task(keep_and_finish())
        else:
            self._dead_letters.lose(item.work)
            self._replies.finish((finished,))

    def fail(self, items: Iterable[Item[Held]], reason: str) -> None:
        """Answer `failed`: no request of these is to blame."""
        self._replies.finish(
            self._failed(item, reason) for item in items if item.work.end()
        )

    def _failed(self, item: Item[Held], reason: str) -> Finished[Parcel]:
        model = item.work.model
        result = failed(
            item.work.subject,
            f"model {model.name!r} version {model.version}: {reason}",
            self._replies.stamps.now(),
            Served(model.version, 1, Timings()),
        )
        return finished(item, result, Cause.MODEL)


def _struck(item: Item[Held], mishap: Mishap) -> Item[Held]:
    mishaps = (*item.work.mishaps, mishap)[-MAX_MISHAPS:]
    return replace(item, work=replace(item.work, mishaps=mishaps))


def _culprit(item: Item[Held]) -> Culprit:
    subject, model = item.work.subject, item.work.model
    agent = item.work.parcel.agent
    return (agent, subject.device, subject.id, model.name, model.version)
