"""Decide how many envelopes of a queue to hold: enough to choose from, and no more.

Two batches, so that the next one is here before it is wanted, and what is served
while the broker hears that there is room again. More would only age here, where no
other worker can take it.
"""

from __future__ import annotations

import math
from typing import Final

MOST_BATCHES: Final = 8
MOST: Final = 65535
"""As AMQP can say it."""


def prefetch(max_batch: int, *, round_trip_s: float, cost_s: float) -> int:
    """Envelopes to hold unacknowledged.

    How many requests an envelope carries is not known before it is opened, so each
    counts as one.

    Args:
        max_batch: rows of the largest batch.
        round_trip_s: to the broker and back.
        cost_s: what a batch of `max_batch` costs.
    """
    on_the_way = math.ceil(max_batch * round_trip_s / cost_s)
    return min(2 * max_batch + on_the_way, MOST_BATCHES * max_batch, MOST)
