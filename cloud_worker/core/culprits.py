"""Remember which requests kill the model process, so that none does it for each copy.

While the process comes back, agents send again what has no answer yet. Without this
every copy of such a request would kill it again, and nothing else would be answered.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Iterable
from typing import Final, TypeAlias

Culprit: TypeAlias = tuple[str, str, str, str, str]
"""Agent, device and id of a request; the model and its version."""

REMEMBERED: Final = 4096


class Culprits:
    """The latest requests that were in a batch that killed the process, or alone did it.

    Args:
        most: how many of either are remembered; the oldest are forgotten.
    """

    def __init__(self, most: int = REMEMBERED) -> None:
        self._most = most
        self._crashes: OrderedDict[Culprit, int] = OrderedDict()
        self._reasons: OrderedDict[Culprit, str] = OrderedDict()

    def __bool__(self) -> bool:
        return bool(self._crashes or self._reasons)

    def suspect(self, several: Iterable[Culprit]) -> None:
        """One of these has killed the process."""
        for each in several:
            self._crashes[each] = self._crashes.pop(each, 0) + 1
        while len(self._crashes) > self._most:
            self._crashes.popitem(last=False)

    def acquit(self, who: Culprit) -> None:
        """It ran, and the process lives."""
        self._crashes.pop(who, None)
        self._reasons.pop(who, None)

    def convict(self, who: Culprit, reason: str) -> None:
        """It has killed the process by itself, as `reason` says."""
        self._reasons[who] = reason
        while len(self._reasons) > self._most:
            self._reasons.popitem(last=False)

    def crashes(self, who: Culprit) -> int:
        """In how many deaths of the process it was seen since it last ran."""
        return self._crashes.get(who, 0)

    def reason(self, who: Culprit) -> str | None:
        """What it did; None when nothing is proved against it."""
        return self._reasons.get(who)
