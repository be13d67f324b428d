"""What an operator asked for, checked against what the fleet knows."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping, Sequence
from typing import Final

SHOWN: Final = 20


class BadOrder(ValueError):
    """The operator named something that is not there; says what is."""


def check_version(
    model: str,
    version: str,
    published: Mapping[str, Sequence[str]],
    drafted: Collection[str] = (),
) -> None:
    """Return if this version of this model is published.

    Args:
        model: the model asked for.
        version: the version asked for.
        published: the versions there are, by model.
        drafted: versions of this model that may wait for signatures.

    Raises:
        BadOrder: it is not; names what is.
    """
    if version not in published.get(model, ()) and version in drafted:
        raise BadOrder(
            f"{model} {version} still waits for signatures, so no agent would take it: "
            "see `overspill trust status`"
        )
    if not published:
        raise BadOrder(
            f"model {model!r} is unknown: nothing is published yet; "
            "use `overspill model publish DIR`"
        )
    if model not in published:
        raise BadOrder(f"model {model!r} is unknown; published are {_some(published)}")
    if version not in published[model]:
        raise BadOrder(
            f"{model} has no version {version!r}; published are "
            f"{_some(published[model])}"
        )


def read_agents(text: str | None, known: Iterable[str]) -> frozenset[str] | None:
    """The agents in `a,b,c`; None means all.

    Raises:
        BadOrder: none is named, or one has never reported; names those that have.
    """
    if text is None:
        return None
    named = frozenset(filter(None, (each.strip() for each in text.split(","))))
    if not named:
        raise BadOrder("no agent is named: use --agents a,b or leave it out for all")
    there = sorted(known)
    unknown = sorted(named.difference(there))
    if unknown:
        raise BadOrder(
            f"agent {', '.join(map(repr, unknown))} has never reported; "
            f"known are {_some(there) or 'none yet (is `overspill fleet run` up?)'}"
        )
    return named


def _some(names: Iterable[str]) -> str:
    listed = list(names)
    more = len(listed) - SHOWN
    return ", ".join(listed[:SHOWN]) + (f" and {more} more" if more > 0 else "")
