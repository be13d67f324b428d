"""Which blobs and deltas of a registry nobody can need any more.

A blob is needed while a seal names it that is signed or drafted, while a rollout on its
way may send agents to it, or while a delta that is still of use is made of it. A delta
is of use while its result is needed and agents may still have its base.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable
from dataclasses import dataclass
from typing import Protocol

from bundle import layout


class Leaf(Protocol):
    """A file of a registry (`bundle.tree.Leaf`)."""

    @property
    def path(self) -> str:
        """Where."""
        ...

    @property
    def size_bytes(self) -> int:
        """How long."""
        ...

    @property
    def changed_ms(self) -> int:
        """Since when; Unix time by the store's clock."""
        ...


@dataclass(frozen=True, slots=True)
class Offered:
    """A delta that is offered; digests of packed bundles, and of the delta's own blob.

    `blob` is None when the offer says that there is none.
    """

    leaf: Leaf
    base: str
    wanted: str
    blob: str | None


@dataclass(frozen=True, slots=True)
class Unneeded:
    """What can go. Offers before blobs, so that no offer names what is gone."""

    offers: tuple[Leaf, ...]
    blobs: tuple[Leaf, ...]

    @property
    def size_bytes(self) -> int:
        """How much that is."""
        return sum(each.size_bytes for each in (*self.offers, *self.blobs))


def unneeded(
    blobs: Iterable[Leaf],
    offers: Collection[Offered],
    *,
    needed: Collection[str],
    held: Collection[str],
    before_ms: int,
) -> Unneeded:
    """What can go.

    Args:
        blobs: what lies in the registry.
        offers: what is offered there.
        needed: digests that seals and rollouts on their way name.
        held: digests of what agents have.
        before_ms: what changed since then stays: it may be part of a publication that
            is just being made. Unix time by the store's clock.
    """
    wanted, bases = frozenset(needed), frozenset(needed) | frozenset(held)
    of_use = {
        each.leaf.path
        for each in offers
        if each.wanted in wanted and each.base in bases
    }
    kept = wanted | {each.blob for each in offers if each.leaf.path in of_use}
    return Unneeded(
        offers=tuple(
            each.leaf
            for each in offers
            if each.leaf.path not in of_use and each.leaf.changed_ms < before_ms
        ),
        blobs=tuple(
            leaf
            for leaf in blobs
            if leaf.path.removeprefix(f"{layout.BLOBS}/") not in kept
            and leaf.changed_ms < before_ms
        ),
    )
