"""Offers deltas of a version that was just published, to those that are likely to pull it."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Final

import structlog

from bundle.delta.build import BuildLimits
from bundle.delta.offer import DeltaRejected, Offer
from bundle.delta.offering import offer_delta
from bundle.source import NotThere
from bundle.tree import Tree

log = structlog.get_logger(__name__)

# A person waits for a publish.
LIMITS: Final = BuildLimits(max_s=30.0)


def offer_deltas(tree: Tree, wanted_sha256: str, bases: Iterable[str]) -> list[Offer]:
    """See that the registry offers a delta from each of some packed bundles. Blocking.

    One that cannot be made is logged and left out: agents then pull the whole file.

    Args:
        tree: the registry.
        wanted_sha256: the digest of the packed bundle that agents should have.
        bases: digests of those that they have.
    """
    offers = []
    for base in bases:
        if base == wanted_sha256:
            continue
        try:
            offers.append(offer_delta(tree, base, wanted_sha256, limits=LIMITS))
        except (NotThere, DeltaRejected, OSError) as error:
            log.warning("no delta is offered", base=base[:16], reason=str(error))
    return offers
