"""What is ready to be sent: the most urgent class first, in it the earliest deadline.

An envelope holds requests of one topic. The topic whose first request is due soonest
in its class fills the next one. Bounded by whoever adds.
"""

from __future__ import annotations

import heapq
from dataclasses import dataclass, field
from typing import TypeAlias

from broker.messages import Priority
from edge_agent.core.delivery import Key


@dataclass(frozen=True, slots=True, order=True)
class Ready:
    """One packed request. Ordered by deadline, then by when it came."""

    deadline_ms: float
    number: int
    topic: str = field(compare=False)
    key: Key = field(compare=False)
    packed: bytes = field(compare=False)


_Heap: TypeAlias = list[Ready]


class ReadySet:
    """Requests that wait for a place in the window."""

    def __init__(self) -> None:
        self._classes: dict[Priority, dict[str, _Heap]] = {p: {} for p in Priority}
        self.rows = 0
        self.bytes = 0

    def add(self, priority: Priority, entry: Ready) -> None:
        """One more waits."""
        heap = self._classes[priority].setdefault(entry.topic, [])
        heapq.heappush(heap, entry)
        self.rows += 1
        self.bytes += len(entry.packed)

    def take(self, *, max_items: int, max_bytes: int) -> list[Ready]:
        """The next envelope: full if enough of its topic wait, empty if none do.

        Args:
            max_items: how many requests it holds.
            max_bytes: how many bytes; one request always fits.
        """
        for topics in self._classes.values():
            if topics:
                topic = min(topics, key=lambda name: topics[name][0])
                batch = self._fill(topics[topic], max_items, max_bytes)
                if not topics[topic]:
                    del topics[topic]
                return batch
        return []

    def _fill(self, heap: _Heap, max_items: int, max_bytes: int) -> list[Ready]:
        batch = [heapq.heappop(heap)]
        size = len(batch[0].packed)
        while (
            heap and len(batch) < max_items and size + len(heap[0].packed) <= max_bytes
        ):
            batch.append(heapq.heappop(heap))
            size += len(batch[-1].packed)
        self.rows -= len(batch)
        self.bytes -= size
        return batch
