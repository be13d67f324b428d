"""Answer, without work, those for whom there is no time: shed or expired."""

from __future__ import annotations

from broker.messages import Result
from cloud_worker.core.ledger import Cause
from cloud_worker.core.line import Item
from cloud_worker.core.overload import retry_after_s
from cloud_worker.core.replies import Finished
from cloud_worker.core.results import Stamp, expired, failed
from cloud_worker.loops.complaints import Complaints
from cloud_worker.loops.parcels import Held, Parcel
from cloud_worker.loops.replies import Replies
from cloud_worker.loops.write_up import Batch, finished
from lifecycle.clock import Clock


class TurningAway:
    """Tells devices that there is no time, and when there may be.

    Args:
        replies: takes the results.
        clock: for how often the log is told.
    """

    def __init__(self, replies: Replies, clock: Clock) -> None:
        self._replies = replies
        self._complaints = Complaints(clock)

    def shed(self, items: Batch, own_wait_s: float, now: float) -> None:
        """Answer `failed` to requests that others leave no time for.

        Args:
            items: of one model.
            own_wait_s: how long one that comes now would wait here.
            now: on the monotonic clock.
        """
        self._complaints.say(
            "overloaded",
            model=items[0].group.model,
            shed=len(items),
            waits_s=round(own_wait_s, 3),
        )
        self._replies.finish(
            # Those that are shed together are told to come back apart.
            self._shed(item, own_wait_s, now, chance=index / len(items))
            for index, item in enumerate(items)
            if item.work.end()
        )

    def _shed(
        self, item: Item[Held], own_wait_s: float, now: float, *, chance: float
    ) -> Finished[Parcel]:
        stamp = self._replies.stamps.now(item.group.model)
        again_s = retry_after_s(
            max(own_wait_s, stamp.pool_wait_ms / 1000),
            max(item.deadline_s - now, 0.0),
            chance,
        )
        reason = (
            "overloaded: more waits here than can be answered in time; "
            f"try again in {again_s:.1f} s"
        )
        result = failed(item.work.subject, reason, stamp, retry_after_s=again_s)
        return finished(item, result, Cause.OVERLOADED)

    def expire(self, items: Batch, now: float) -> None:
        """Answer `expired` to requests that cannot be answered in time any more."""
        stamp = self._replies.stamps.now()
        self._replies.finish(
            finished(item, _too_late(item, now, stamp), Cause.WAITED)
            for item in items
            if item.work.end()
        )


def _too_late(item: Item[Held], now: float, stamp: Stamp) -> Result:
    reason = "its time was over before a batch had room for it"
    left_ms = max(item.deadline_s - now, 0.0) * 1000
    if left_ms:
        reason = f"it had {left_ms:.0f} ms left, and its model takes longer"
    return expired(item.work.subject, reason, stamp, left_ms=left_ms)
