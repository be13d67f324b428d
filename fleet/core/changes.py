"""What is new between two looks at a rollout, each in a sentence and for programs."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any, Final

from fleet.core.gates import Decision
from fleet.core.outlook import Outlook, counted, counts_of, verdict_document, why

NOBODY: Final = (
    "no agent has been heard of lately: is `overspill fleet run` up, and RabbitMQ?"
)


@dataclass(frozen=True, slots=True)
class Change:
    """One thing that is new; `text` is a sentence, `details` the same for programs."""

    kind: str
    text: str
    details: Mapping[str, Any]


def changes(before: Outlook, after: Outlook) -> Iterator[Change]:
    """What is new since an earlier look, in the order in which it is told."""
    was = {each.agent: each.state for each in before.told}
    for index in range(before.course.wave + 1, after.course.wave + 1):
        number, of = index + 1, len(after.waves)
        yield Change(
            "wave", f"wave {number} of {of} begins", {"wave": number, "waves": of}
        )
    for each in after.failed:
        reason = why(each)
        if was.get(each.agent) is not each.state:
            yield Change(
                "agent",
                f"{each.agent} {each.state.value}: {reason}",
                {"agent": each.agent, "state": each.state.value, "reason": reason},
            )
    counts = counts_of(after)
    if counts != counts_of(before):
        yield Change("agents", counted(after), counts)
    if after.quiet_s is not None and before.quiet_s is None:
        yield Change("quiet", NOBODY, {"quiet_s": after.quiet_s})
    yield from _gate_changes(before, after)
    if after.state is not before.state or after.course.reason != before.course.reason:
        said = after.state.value.replace("_", " ")
        because = f": {after.course.reason}" if after.course.reason else ""
        yield Change(
            "state",
            f"{said}{because}",
            {"state": after.state.value, "reason": after.course.reason},
        )


def _gate_changes(before: Outlook, after: Outlook) -> Iterator[Change]:
    was = {each.kind: each.decision for each in before.course.verdicts}
    for each in after.course.verdicts:
        # Not yet known and not yet sure are the same to who waits.
        if was.get(each.kind, Decision.INCONCLUSIVE) is each.decision:
            continue
        said = "not sure" if each.decision is Decision.INCONCLUSIVE else each.decision
        yield Change(
            "gate",
            f"gate {each.kind.value}: {said}, {each.reason}",
            verdict_document(each),
        )
