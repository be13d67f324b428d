"""Which answered requests are worth keeping as examples. The most informative stay.

Somebody has to have allowed it and nobody may have forbidden it. Of what is allowed,
one order says what goes first when there is no room (`Worth`).
"""

from __future__ import annotations

from bisect import bisect_left, insort
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from enum import IntEnum
from typing import Final, TypeAlias

import numpy as np

from broker.messages import Tensor
from bundle.manifest import Decision
from cascade.scores import NoClasses, NotANumber, confidence

# What is not known lies in the middle.
UNKNOWN_MARGIN: Final = 0.5


def may_keep(*, request: bool | None, model: bool | None, worker: bool | None) -> bool:
    """Whether a request may be kept. Any "no" wins, and silence is one.

    Args:
        request: False where its device, agent or bundle forbids it. True allows
            nothing: who sends cannot decide for who keeps.
        model: what `model.json` says.
        worker: what the worker's settings say.
    """
    return False not in (request, model, worker) and True in (model, worker)


class Agreement(IntEnum):
    """What the edge had said of it, from the least to the most informative."""

    AGREED = 0
    UNKNOWN = 1
    DISAGREED = 2

    @classmethod
    def of(cls, edge_label: str | None, cloud_label: str | None) -> Agreement:
        """By the two labels; None where one has said nothing."""
        if edge_label is None or cloud_label is None:
            return cls.UNKNOWN
        return cls.AGREED if edge_label == cloud_label else cls.DISAGREED


@dataclass(frozen=True, slots=True, order=True)
class Worth:
    """How informative an example is: compared field by field, in this order.

    Attributes:
        agreement: a mistake of the edge is worth most.
        margin: the cloud's, 0..1. Its answer becomes the label, so the surer first.
        at_ms: Unix time; the newer is likelier to be what is asked next.
        digest: of the inputs, so that no two are equal.
    """

    agreement: Agreement
    margin: float
    at_ms: int
    digest: str


def cloud_margin(
    outputs: Mapping[str, Tensor], decision: Decision | None, sure: float | None
) -> float:
    """How far the cloud's first class is ahead of its second, 0..1.

    Args:
        outputs: of the cloud model.
        decision: how its classes are read; None where `model.json` does not say.
        sure: its confidence, which stands in where there are no classes.
    """
    instead = UNKNOWN_MARGIN if sure is None or not 0 <= sure <= 1 else sure
    if decision is None or decision.score in ("value", "expected_misses"):
        return instead
    tensor = outputs.get(decision.output)
    if tensor is None or decision.confidence_output is not None:
        return instead
    try:
        return confidence(
            np.frombuffer(tensor.data, tensor.dtype).reshape(tensor.shape),
            score="margin",
            activation=decision.activation,
            temperature=decision.temperature,
        )
    except (NotANumber, NoClasses):
        return instead


@dataclass(frozen=True, slots=True)
class Quota:
    """So many examples and so many bytes, whichever is reached first."""

    examples: int
    size_bytes: int


@dataclass(frozen=True, slots=True)
class Quotas:
    """What may be kept of one model.

    Attributes:
        model: in all.
        label: of each class, by the cloud's answer; no answer is a class too.
        reason: of each reason to spill.
    """

    model: Quota
    label: Quota
    reason: Quota

    @classmethod
    def of(cls, model: Quota, *, label_share: float, reason_share: float) -> Quotas:
        """Quotas by their shares of the whole, 0..1."""
        return cls(model, _part(model, label_share), _part(model, reason_share))


def _part(whole: Quota, share: float) -> Quota:
    return Quota(
        max(1, int(whole.examples * share)), max(1, int(whole.size_bytes * share))
    )


@dataclass(frozen=True, slots=True)
class Entry:
    """An example as far as quotas go.

    Attributes:
        label: the cloud's; None where it gave none.
        reason: why it was spilled.
        size_bytes: of its file.
        worth: with its digest.
        count: how often the same inputs were answered.
    """

    label: str | None
    reason: str
    size_bytes: int
    worth: Worth
    count: int = 1

    @property
    def digest(self) -> str:
        """Of its inputs."""
        return self.worth.digest


@dataclass(frozen=True, slots=True)
class Placed:
    """It is kept, and these are not any more."""

    entry: Entry
    evicted: tuple[Entry, ...] = ()


@dataclass(frozen=True, slots=True)
class Again:
    """The same inputs are kept already, and counted once more."""

    entry: Entry


@dataclass(frozen=True, slots=True)
class TurnedAway:
    """There is no room for it: everything that could go is worth more."""


Offered: TypeAlias = Placed | Again | TurnedAway
_Scope: TypeAlias = tuple[str, str | None]


class _Pile:
    """The entries of one scope, the least worth first, and their bytes."""

    __slots__ = ("size_bytes", "worths")

    def __init__(self) -> None:
        self.worths: list[Worth] = []
        self.size_bytes = 0

    def add(self, entry: Entry) -> None:
        insort(self.worths, entry.worth)
        self.size_bytes += entry.size_bytes

    def remove(self, entry: Entry) -> None:
        del self.worths[bisect_left(self.worths, entry.worth)]
        self.size_bytes -= entry.size_bytes


class Collection:
    """What is kept of one model. Never over a quota.

    Args:
        quotas: of the model.
    """

    def __init__(self, quotas: Quotas) -> None:
        self._quotas = quotas
        self._entries: dict[str, Entry] = {}
        self._piles: dict[_Scope, _Pile] = {}

    def __len__(self) -> int:
        return len(self._entries)

    def __contains__(self, digest: object) -> bool:
        return digest in self._entries

    @property
    def entries(self) -> Iterable[Entry]:
        """All that is kept."""
        return self._entries.values()

    @property
    def size_bytes(self) -> int:
        """Of all files."""
        whole = self._piles.get(("model", None))
        return 0 if whole is None else whole.size_bytes

    def refill(self, entries: Iterable[Entry]) -> tuple[Entry, ...]:
        """Take in what an earlier life has kept; gives what is over quotas since then."""
        for entry in entries:
            self._add(entry)
        return tuple(self._over())

    def offer(self, entry: Entry) -> Offered:
        """Decide on an example that has been answered."""
        known = self._entries.get(entry.digest)
        if known is None:
            return self._place(entry)
        again = replace(known, count=known.count + 1)
        if known.label == entry.label:
            self._entries[entry.digest] = again
            return Again(again)
        # The cloud says something else of it now, so its newest word is the label.
        self._drop(known)
        placed = self._place(replace(entry, count=again.count))
        if isinstance(placed, TurnedAway):
            self._add(again)
            return Again(again)
        return placed

    def _place(self, entry: Entry) -> Offered:
        victims: dict[str, Entry] = {}
        for scope, quota in self._scopes(entry):
            if not self._make_room(entry, scope, quota, victims):
                return TurnedAway()
        for victim in victims.values():
            self._drop(victim)
        self._add(entry)
        return Placed(entry, tuple(victims.values()))

    def _make_room(
        self, entry: Entry, scope: _Scope, quota: Quota, victims: dict[str, Entry]
    ) -> bool:
        """Choose who has to go for an entry; False when that cannot be."""
        pile = self._piles.get(scope, _Pile())
        gone = [each for each in victims.values() if _is_in(each, scope)]
        count = len(pile.worths) - len(gone) + 1
        size_bytes = (
            pile.size_bytes - sum(each.size_bytes for each in gone) + entry.size_bytes
        )
        for worth in pile.worths:
            if count <= quota.examples and size_bytes <= quota.size_bytes:
                return True
            if worth > entry.worth:
                return False
            if worth.digest not in victims:
                victim = victims[worth.digest] = self._entries[worth.digest]
                count -= 1
                size_bytes -= victim.size_bytes
        return count <= quota.examples and size_bytes <= quota.size_bytes

    def _over(self) -> Iterable[Entry]:
        for scope, pile in list(self._piles.items()):
            quota = self._quota(scope)
            while pile.worths and (
                len(pile.worths) > quota.examples or pile.size_bytes > quota.size_bytes
            ):
                entry = self._entries[pile.worths[0].digest]
                self._drop(entry)
                yield entry

    def _scopes(self, entry: Entry) -> tuple[tuple[_Scope, Quota], ...]:
        """From the narrowest on."""
        return tuple((each, self._quota(each)) for each in _scopes(entry))

    def _quota(self, scope: _Scope) -> Quota:
        quotas = self._quotas
        by_kind = {"label": quotas.label, "reason": quotas.reason}
        return by_kind.get(scope[0], quotas.model)

    def _add(self, entry: Entry) -> None:
        self._entries[entry.digest] = entry
        for scope in _scopes(entry):
            self._piles.setdefault(scope, _Pile()).add(entry)

    def _drop(self, entry: Entry) -> None:
        del self._entries[entry.digest]
        for scope in _scopes(entry):
            pile = self._piles[scope]
            pile.remove(entry)
            if not pile.worths:
                del self._piles[scope]


def _scopes(entry: Entry) -> tuple[_Scope, ...]:
    return ("label", entry.label), ("reason", entry.reason), ("model", None)


def _is_in(entry: Entry, scope: _Scope) -> bool:
    return scope in _scopes(entry)
