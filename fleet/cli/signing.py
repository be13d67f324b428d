"""How commands tell what was signed, and what still waits for whom."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from bundle.trust import roles
from bundle.trust.signing import Waiting
from fleet.adapters.trust_home import Signature, TrustHome
from fleet.cli import terminal


def waiting_json(
    waiting: Sequence[Waiting], names: Mapping[str, str]
) -> list[dict[str, Any]]:
    """What waits, for scripts."""
    return [
        {
            "role": each.role,
            "version": each.version,
            "signed_by": [names.get(key, key) for key in each.signed_by],
            "may_sign": [names.get(key, key) for key in each.may_sign],
            "missing": each.missing,
        }
        for each in waiting
    ]


def signature_json(trust: TrustHome, done: Signature) -> dict[str, Any]:
    """What signing did, for scripts."""
    names = trust.repository.key_names()
    return {
        "signed": [
            {"role": role, "key": names.get(key, key)}
            for role, key in done.signed.added
        ],
        "locked": {names.get(key, key): why for key, why in done.signed.locked.items()},
        "shown": list(done.settled.shown),
        "waiting": waiting_json(done.settled.waiting, names),
        "online_missing": list(done.settled.online_missing),
    }


def tell_signature(trust: TrustHome, done: Signature) -> None:
    """What signing did, and the command that comes next."""
    names = trust.repository.key_names()
    for role, key in done.signed.added:
        terminal.note(f"signed {what(role)} with {names.get(key, key)}")
    for why in done.signed.locked.values():
        terminal.warn(why)
    tell_waiting(done.settled.waiting, names)
    if done.settled.online_missing:
        terminal.warn(
            "all signatures are there, but agents cannot see them yet: the key of "
            f"{' and '.join(done.settled.online_missing)} is not at hand or does not "
            "open. Run overspill trust sign where the fleet's daemon runs"
        )


def tell_waiting(waiting: Sequence[Waiting], names: Mapping[str, str]) -> None:
    """Which signatures are missing, and how to give them."""
    for each in waiting:
        if each.missing == 0:
            terminal.warn(f"{what(each.role)} is signed and waits for the others")
            continue
        keys = " or ".join(names.get(key, key) for key in each.may_sign)
        terminal.warn(
            f"{what(each.role)} needs {each.missing} more signature(s), by {keys}: "
            "overspill trust sign --key FILE"
        )


def what(role: str) -> str:
    """A role, for a person."""
    model = roles.model_of(role)
    return f"model {model}" if model is not None else f"the fleet's {role}"
