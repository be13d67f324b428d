"""From which versions a new one is worth a delta. Pure."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence
from typing import Final

from fleet.core.devices import Device

MAX_BASES: Final = 3


def delta_bases(
    model: str,
    version: str,
    *,
    published: Sequence[str],
    devices: Iterable[Device],
    back_to: str | None,
) -> tuple[str, ...]:
    """The versions that most agents come from, at most `MAX_BASES`.

    First what agents serve, by how many do; then what the way back leads to; then what
    was published last, for a fleet that has not reported yet.

    Args:
        model: of which model.
        version: the new one.
        published: its versions, the oldest first.
        devices: the inventory.
        back_to: the version of the way back, if there is one.
    """
    serving: Counter[str] = Counter()
    for device in devices:
        slot = device.slot(model)
        if slot is not None and slot.active is not None:
            serving[slot.active] += 1
    likely = [each for each, _ in serving.most_common()]
    likely += [back_to] if back_to is not None else []
    likely += reversed(published)
    known = set(published) - {version}
    return tuple(each for each in dict.fromkeys(likely) if each in known)[:MAX_BASES]
