"""Clears blobs and deltas from the registry that nobody can need any more."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Final

from bundle import layout
from bundle.delta.offer import MAX_OFFER_BYTES, DeltaRejected, read_offer
from bundle.source import NotThere
from bundle.tree import Tree
from fleet.adapters.registry import Registry
from fleet.adapters.state.database import FleetDatabase
from fleet.adapters.state.ledger import Ledger
from fleet.core.collection import Offered, Unneeded, unneeded
from fleet.core.rollouts import LIVE

SUFFIX: Final = ".json"


def find_unneeded(
    database: FleetDatabase, registry: Registry, tree: Tree, *, before_ms: int
) -> Unneeded:
    """What nobody can need any more.

    Raises:
        NoTrust, TrustRefused, NotThere: what is signed cannot be told, so nothing can.
        DatabaseUnavailable: the database cannot be read.
        OSError: the registry cannot be read.
    """
    # First what there is, then what is needed: what comes in between is kept, as new.
    blobs = list(tree.list(layout.BLOBS))
    offers = list(_offers(tree))
    named = registry.named_blobs()
    with database.reading() as ledger:
        needed = named | _rolled_out(ledger)
        held = _held(ledger)
    return unneeded(blobs, offers, needed=needed, held=held, before_ms=before_ms)


def collect(
    database: FleetDatabase,
    tree: Tree,
    found: Unneeded,
    *,
    who: str,
    now_ms: int,
) -> None:
    """Remove what was found, and write that down.

    Raises:
        DatabaseUnavailable: removed, but not recorded.
        OSError: the registry cannot be written; some of it may be gone already.
    """
    for leaf in (*found.offers, *found.blobs):
        tree.delete(leaf.path)
    with database.writing() as ledger:
        ledger.record(
            who,
            "model.gc",
            tree.place,
            {
                "blobs": [each.path for each in found.blobs],
                "offers": len(found.offers),
                "size_bytes": found.size_bytes,
            },
            at_ms=now_ms,
        )


def _offers(tree: Tree) -> Iterator[Offered]:
    for leaf in tree.list(layout.DELTAS):
        parts = leaf.path.split("/")
        if len(parts) != 3 or not leaf.path.endswith(SUFFIX):
            continue
        try:
            offer = read_offer(tree.read(leaf.path, max_bytes=MAX_OFFER_BYTES))
            blob = None if offer.kind == "full" else offer.sha256
        except NotThere:
            continue  # Somebody else has just removed it.
        except DeltaRejected:
            blob = None  # Nobody can use it, whatever it names.
        yield Offered(leaf, parts[1], parts[2].removesuffix(SUFFIX), blob)


def _rolled_out(ledger: Ledger) -> set[str]:
    """Digests of what rollouts on their way may send agents to."""
    states = ledger.rollout_states()
    wanted: set[tuple[str, str]] = set()
    for rollout in ledger.rollouts():
        if states[rollout.generation] in LIVE:
            wanted.add((rollout.model, rollout.version))
            if rollout.way_back is not None:
                wanted.add((rollout.model, rollout.way_back.version))
    return {
        each.sha256
        for each in ledger.versions()
        if (each.model, each.version) in wanted
    }


def _held(ledger: Ledger) -> set[str]:
    """Digests of what agents say that they have."""
    has = {
        (slot.model, version)
        for device in ledger.devices().values()
        for slot in device.slots
        for version in (slot.active, slot.previous)
        if version is not None
    }
    return {
        each.sha256 for each in ledger.versions() if (each.model, each.version) in has
    }
