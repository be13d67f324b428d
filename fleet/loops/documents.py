"""What agents should serve, where they read it, and in the database what they were given.

The registry is written before the commit: a crash in between repeats that, and forgets
nothing.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence

from broker.messages import DesiredModel
from fleet.adapters.registry import Registry, desired_document
from fleet.adapters.state.devices import WrittenDesired
from fleet.adapters.state.ledger import Ledger


def write_documents(
    ledger: Ledger,
    registry: Registry,
    wanted: Mapping[str, Sequence[DesiredModel]],
    *,
    anew: bool = False,
) -> tuple[str, ...]:
    """Give agents what they should serve, where that changed.

    A retired agent is given nothing, and one of which nothing was ever desired no empty
    document.

    Args:
        ledger: in a writing transaction.
        registry: where agents read it.
        wanted: all models that an agent should serve, by agent.
        anew: write also what did not change, because the registry may have lost it.

    Returns:
        The agents for whom it changed, sorted.

    Raises:
        OSError: the registry cannot be written.
    """
    retired = ledger.retired()
    given = ledger.desired(wanted.keys() - retired.keys())
    documents: dict[str, bytes] = {}
    changed: list[WrittenDesired] = []
    for agent, models in sorted(wanted.items()):
        before = given.get(agent)
        if agent in retired or (before is None and not models):
            continue
        document = desired_document(agent, models)
        digest = hashlib.sha256(document).hexdigest()
        news = before is None or before.sha256 != digest
        if news or anew:
            documents[agent] = document
        if news:
            generation = max((each.generation for each in models), default=0)
            changed.append(WrittenDesired(agent, generation, digest, tuple(models)))
    registry.write_desired(documents)
    ledger.keep_desired(changed)
    return tuple(each.agent for each in changed)
