"""What a rollout costs, as far as the registry and earlier rollouts can tell."""

from __future__ import annotations

import json
from collections.abc import Iterable
from typing import Final

from bundle import layout
from bundle.source import NotThere
from bundle.tree import Tree
from fleet.adapters.state.ledger import Ledger
from fleet.core.plan import Costs
from fleet.core.rollouts import AgentState, Course, Rollout

MAX_OFFER_BYTES: Final = 1024 * 1024
ROLLOUTS_ASKED: Final = 5
FEWEST: Final = 5
MOST_BASES: Final = 50
# Of agents that took a version, this share took no longer.
USUAL: Final = 0.9


def costs_of(ledger: Ledger, tree: Tree, model: str, version: str) -> Costs:
    """What pulling and installing this version costs.

    Args:
        ledger: what is known of versions and of earlier rollouts.
        tree: the registry, which says what deltas it offers.
        model: of which model.
        version: which version.

    Raises:
        OSError: the registry cannot be read.
    """
    versions = [each for each in ledger.versions() if each.model == model]
    wanted = next((each for each in versions if each.version == version), None)
    deltas: dict[str, int] = {}
    for base in versions[-MOST_BASES:]:
        if wanted is not None and base.version != version:
            size = _offered(tree, layout.delta_offer(base.sha256, wanted.sha256))
            if size is not None:
                deltas[base.version] = size
    earlier = [each for each in ledger.rollouts() if each.model == model]
    some = earlier[-ROLLOUTS_ASKED:]
    courses = ledger.courses(some)
    usual_s = usual_update_s((each, courses[each.generation]) for each in some)
    return (
        Costs(deltas) if usual_s is None else Costs(deltas, install_s=round(usual_s, 1))
    )


def usual_update_s(rollouts: Iterable[tuple[Rollout, Course]]) -> float | None:
    """How long agents took from being told to serving, without probation.

    None when fewer than five agents have.
    """
    took_s = sorted(
        max(0.0, (told.since_ms - told.told_at_ms) / 1000 - rollout.policy.probation_s)
        for rollout, course in rollouts
        if rollout.policy.window is None
        for told in course.told.values()
        if told.state is AgentState.UPDATED
    )
    if len(took_s) < FEWEST:
        return None
    return took_s[min(len(took_s) - 1, int(USUAL * len(took_s)))]


def _offered(tree: Tree, path: str) -> int | None:
    """How many bytes a delta has that the registry offers."""
    try:
        offer = json.loads(tree.read(path, max_bytes=MAX_OFFER_BYTES))
        size = offer["size_bytes"]
    except (NotThere, ValueError, KeyError, TypeError):
        return None  # Agents pull the whole where there is no good offer.
    return size if isinstance(size, int) and size > 0 else None
