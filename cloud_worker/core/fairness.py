"""Share a queue between those who fill it, so that one that floods starves no other.

A tree of accounts: tenants, in each its agents, in each their devices. Each account
counts the rows it was served. While others wait, none gets more than `burst` rows
ahead of the sibling that is furthest behind; within that bound the earliest deadline
decides, so fairness costs nothing until somebody floods. Weighted deficit counters,
after Shreedhar and Varghese, "Efficient Fair Queuing Using Deficit Round Robin" (1995).
"""

from __future__ import annotations

from typing import Final

MOST_IDLE: Final = 256

Flow = tuple[str, ...]
"""Whose a request is, from the outside in: tenant, agent, device."""


class Share:
    """One account: rows served, and requests that wait below it."""

    __slots__ = ("above", "children", "floor", "served", "top", "waiting")

    def __init__(self, above: Share | None, served: float = 0.0) -> None:
        self.above = above
        self.children: dict[str, Share] = {}
        self.served = served
        self.waiting = 0
        # Of the children that wait: the least and the most served, as last looked at.
        self.floor = 0.0
        self.top = 0.0


class Shares:
    """The accounts of one queue.

    Args:
        burst: rows that one may be ahead of its siblings.
    """

    def __init__(self, burst: float) -> None:
        self._burst = burst
        self._root = Share(None)
        self._uneven: set[Share] = set()

    def arrive(self, flow: Flow) -> Share:
        """One more request of this flow waits."""
        share = self._root
        share.waiting += 1
        for name in flow:
            child = share.children.get(name)
            if child is None:
                if len(share.children) > MOST_IDLE:
                    self._look(share)
                child = share.children[name] = Share(share, share.floor)
            elif not child.waiting:
                # Who was away has not saved up turns, but still owes what it took.
                child.served = max(child.served, share.floor)
            child.waiting += 1
            share = child
        return share

    def leave(self, share: Share) -> None:
        """One request of this account no longer waits."""
        each: Share | None = share
        while each is not None:
            each.waiting -= 1
            each = each.above

    def serve(self, share: Share, rows: int) -> None:
        """Charge what is about to run."""
        each = share
        while (above := each.above) is not None:
            each.served += rows
            if each.served > above.top:
                above.top = each.served
                if above.top > above.floor + self._burst:
                    self._uneven.add(above)
            each = above

    def even(self) -> bool:
        """Whether nobody is too far ahead, so that deadlines alone may decide."""
        for share in list(self._uneven):
            self._look(share)
            if share.top <= share.floor + self._burst:
                self._uneven.discard(share)
        return not self._uneven

    def ahead(self, share: Share) -> bool:
        """Whether this account, or one it is part of, must let its siblings go first."""
        each = share
        while (above := each.above) is not None:
            if each.served > above.floor + self._burst:
                return True
            each = above
        return False

    def _look(self, share: Share) -> None:
        """Bring the bounds of the children up to date, and forget who owes nothing."""
        waiting = [each.served for each in share.children.values() if each.waiting]
        if waiting:
            share.floor = max(min(waiting), share.floor)
            share.top = max(waiting)
        else:
            share.top = share.floor
        idle = [
            name
            for name, each in share.children.items()
            if not each.waiting and each.served <= share.floor
        ]
        for name in idle:
            del share.children[name]
