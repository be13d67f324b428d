"""Decide which versions of each model answer: who is wanted, or who stands in for them.

A model that answers goes on doing so until another version of it can.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping

from cloud_worker.core.policy import Shares, summing_to_one
from cloud_worker.core.shelf import Key
from cloud_worker.core.version_steps import Route

Asked = Callable[[Key], bool]


class Routes:
    """Who answers now, by model.

    Args:
        can_answer: whether a version is in memory, or known and could be at any time.
        stored: whether it lies in the repository.
    """

    def __init__(self, *, can_answer: Asked, stored: Asked) -> None:
        self._can_answer = can_answer
        self._stored = stored
        self._now: dict[str, Shares] = {}
        # The last route of each model on which all that was wanted answered.
        self._whole: dict[str, Shares] = {}

    @property
    def now(self) -> Mapping[str, Shares]:
        """The versions of each model that answer, with their shares."""
        return self._now

    def of(self, name: str) -> Shares:
        """Who answers for a model; empty when nobody does."""
        return self._now.get(name, {})

    def has(self, key: Key) -> bool:
        """Whether a version answers."""
        return key.version in self.of(key.name)

    def follow(self, name: str, wanted: Shares) -> Route | None:
        """Come as near to what is wanted as can be; None when nothing changes."""
        shares = self._next(name, wanted)
        if not shares:
            self._whole.pop(name, None)
        elif shares == wanted or name not in self._whole:
            self._whole[name] = shares
        if shares == self.of(name):
            return None
        if shares:
            self._now[name] = shares
        else:
            del self._now[name]
        return Route(name, shares)

    def _next(self, name: str, wanted: Shares) -> Shares:
        able = self._able(name, wanted)
        if len(able) == len(wanted) > 0:
            return wanted
        # The share of those that are still to come stays with who answers now.
        stay = self._staying(name, wanted)
        missing = 1 - sum(able.values())
        return summing_to_one(
            {
                version: able.get(version, 0.0) + missing * stay.get(version, 0.0)
                for version in {**able, **stay}
            }
        )

    def _able(self, name: str, shares: Shares) -> Shares:
        return {
            version: share
            for version, share in shares.items()
            if self._can_answer(Key(name, version))
        }

    def _staying(self, name: str, wanted: Shares) -> Shares:
        """Who answered before and may go on, while what is wanted is not there."""
        for shares in (self._whole.get(name, {}), self.of(name)):
            able = {
                version: share
                for version, share in self._able(name, shares).items()
                # A deleted one goes on only for as long as another is to come.
                if wanted or self._stored(Key(name, version))
            }
            if able:
                return summing_to_one(able)
        return {}
