"""Labels given to agents, and agents chosen by what is said of them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from fleet.adapters.state.database import FleetDatabase
from fleet.adapters.state.ledger import Ledger
from fleet.core.devices import Device
from fleet.core.labelling import MAX_LABELS, Labelling
from fleet.core.labels import BadQuery, read_query, sees
from fleet.core.orders import SHOWN, BadOrder


def chosen(
    ledger: Ledger, named: Sequence[str], where: str | None
) -> dict[str, Device]:
    """The agents that are named, or that a query matches, by name.

    Args:
        ledger: what is known.
        named: agents; none means all that `where` matches.
        where: a label query; None matches all.

    Raises:
        BadOrder: an agent is not known, or the query cannot be read.
    """
    known = ledger.devices()
    unknown = [agent for agent in named if agent not in known]
    if unknown:
        raise BadOrder(_unknown(unknown, ledger))
    found = {agent: known[agent] for agent in named} if named else known
    if where is None:
        return found
    try:
        query = read_query(where)
    except BadQuery as error:
        raise BadOrder(f"--where: {error}") from error
    labels = ledger.labels()
    return {
        agent: device
        for agent, device in found.items()
        if query.matches(sees(labels.get(agent, {}), device.facts))
    }


def label(
    database: FleetDatabase,
    named: Sequence[str],
    where: str | None,
    labelling: Labelling,
    *,
    who: str,
    now_ms: int,
) -> Mapping[str, Mapping[str, str]]:
    """Change labels of the agents that are chosen.

    Returns:
        The labels that each of them has now, by agent; those of whom nothing changed
        as well.

    Raises:
        BadOrder: an agent is not known, the query cannot be read, or one would have
            too many labels; nothing was changed.
        DatabaseUnavailable: nothing was changed.
    """
    with database.writing() as ledger:
        agents = chosen(ledger, named, where)
        before = ledger.labels()
        after = {agent: labelling.of(before.get(agent, {})) for agent in agents}
        crowded = next((a for a, has in after.items() if len(has) > MAX_LABELS), None)
        if crowded is not None:
            raise BadOrder(
                f"agent {crowded!r} would have more than {MAX_LABELS} labels"
            )
        changed = sorted(a for a, has in after.items() if has != before.get(a, {}))
        ledger.set_labels(changed, labelling.given)
        ledger.drop_labels(changed, labelling.taken)
        if changed:
            ledger.record(
                who,
                "device.label",
                changed[0] if len(changed) == 1 else f"{len(changed)} agents",
                {
                    "given": labelling.given,
                    "taken": sorted(labelling.taken),
                    "where": where,
                    "agents": changed,
                },
                at_ms=now_ms,
            )
    return after


def _unknown(agents: Sequence[str], ledger: Ledger) -> str:
    retired = [agent for agent in agents if agent in ledger.retired()]
    if retired:
        return (
            f"agent {retired[0]!r} is retired: take it back with "
            f"`overspill device retire --undo {retired[0]}`"
        )
    names = ", ".join(map(repr, agents[:SHOWN]))
    return f"agent {names} has never reported: see `overspill device list`"
