"""Count what becomes of requests: each one taken is answered, failed, expired, held or given back.

Those who take, end and give back count here, and what is held is counted apart; so a
request that is lost or ended twice shows as a mismatch.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Final

from broker.messages import Status


class Cause(StrEnum):
    """Why a request ended as it did."""

    ANSWERED = "answered"
    UNREADABLE = "failed_unreadable"
    """The item or its envelope is no request."""
    WRONG_TOPIC = "failed_wrong_topic"
    """It names another model than its topic."""
    INVALID = "failed_invalid"
    """It does not fit its model."""
    MODEL = "failed_model"
    """The model failed on it, or gave what cannot be read."""
    TOO_LARGE = "failed_too_large"
    """No broker would carry the result."""
    OVERLOADED = "failed_overloaded"
    """More waited than could be answered in time, and this was cheapest to lose."""
    UNROUTED = "failed_unrouted"
    """No worker serves its model."""
    DEAD = "failed_dead_letter"
    """Its queue gave it up."""
    LATE = "expired_on_arrival"
    WAITED = "expired_waiting"
    """No batch had room for it in time."""
    DEAD_LATE = "expired_dead_letter"
    """It waited in its queue for longer than the queue keeps."""


STATUS: Final[Mapping[Cause, Status]] = {
    cause: Status.OK
    if cause is Cause.ANSWERED
    else Status(cause.value.partition("_")[0])
    for cause in Cause
}
"""How a request of each cause ends."""


class Aside(StrEnum):
    """What came and was not taken as a request, or not only."""

    BURIED = "deliveries_buried"
    """Rejected to the dead letters, as nobody can be told."""
    ILLEGIBLE = "items_illegible"
    """An item of an envelope without an id, left out."""
    DEAD_LETTERS = "deliveries_dead_letters"
    """Taken from the dead letters, to answer what can be read in them."""
    UNROUTED = "deliveries_unrouted"
    """Taken from the unrouted, to serve or to answer."""
    SENT_AGAIN = "deliveries_sent_again"
    """Unrouted requests that are on their way again."""
    RESULTS_DROPPED = "deliveries_results_dropped"
    """Results that no agent's session took; the agent will ask again."""
    STRAYS_DROPPED = "deliveries_strays_dropped"
    """Unrouted, and neither a request nor a result."""
    ANSWERED_ALREADY = "deliveries_answered_already"
    """Dead letters of workers, who have told the agent themselves."""
    LETTERS_KEPT = "letters_kept"
    """Requests that broke their model, kept for the operators."""
    LETTERS_LOST = "letters_lost"
    """The same, answered but not kept: the broker did not take them in time."""
    NOISE_DROPPED = "deliveries_noise_dropped"
    """Nobody can be told, and there are enough of them among the dead letters."""
    UNTELLABLE = "deliveries_untellable"
    """Dead or unrouted, and nobody in them can be told."""


@dataclass(slots=True)
class Ledger:
    """The counts of one worker since its start.

    Attributes:
        taken: requests taken over; one that is delivered again is taken again.
        given_back: requests whose channel died first: the broker delivers them again.
        ended: requests whose result is confirmed.
        aside: what was not taken.
        mismatches: how often the books did not balance.
    """

    taken: int = 0
    given_back: int = 0
    ended: Counter[Cause] = field(default_factory=Counter)
    aside: Counter[Aside] = field(default_factory=Counter)
    mismatches: int = 0

    def take(self, requests: int) -> None:
        """So many were taken over."""
        self.taken += requests

    def end(self, cause: Cause, requests: int = 1) -> None:
        """The results of so many are confirmed."""
        self.ended[cause] += requests

    def give_back(self, requests: int = 1) -> None:
        """So many were given up because their delivery is no longer ours."""
        self.given_back += requests

    def put_aside(self, what: Aside, count: int = 1) -> None:
        """Something came that is no request in hand."""
        self.aside[what] += count

    def mismatch(self, held: int) -> int:
        """Requests that are missing from the books; negative when there are too many."""
        return self.taken - sum(self.ended.values()) - self.given_back - held

    def counts(self, held: int) -> dict[str, int]:
        """The books as flat counters; every cause is there."""
        by_status = dict.fromkeys(Status, 0)
        for cause, requests in self.ended.items():
            by_status[STATUS[cause]] += requests
        return {
            "taken": self.taken,
            "answered": by_status[Status.OK],
            "failed": by_status[Status.FAILED],
            "expired": by_status[Status.EXPIRED],
            "held": held,
            "given_back": self.given_back,
            "mismatches": self.mismatches,
            **{
                cause.value: self.ended[cause]
                for cause in Cause
                if cause is not Cause.ANSWERED
            },
            **{each.value: self.aside[each] for each in Aside},
        }
