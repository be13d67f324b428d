"""What came of a version that had to be stopped. Pure.

The promise: its first wave shows that it is bad, nobody else gets it, those who have it
go back by themselves, and no request is lost meanwhile.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any, Final

from overspill.demo.history import Asked
from overspill.demo.measures import LOST, duplicated, fate, is_right, share

BAD: Final = "bad"
GONE_BACK: Final = "rolled_back"


@dataclass(frozen=True, slots=True)
class Course:
    """One rollout, as the operator's own commands told it. Times are milliseconds.

    Attributes:
        version: that was rolled out.
        state: in which it ended.
        reason: why, for people.
        waves: how many it came to.
        told: the agents that were told to serve it.
        updated: those that served it at the end.
        began_ms: when the operator started it.
        turned_ms: when it began to go back; None when it never did.
        ended_ms: when it was over.
    """

    version: str
    state: str
    reason: str
    waves: int
    told: list[str]
    updated: list[str]
    began_ms: float
    turned_ms: float | None
    ended_ms: float


@dataclass(frozen=True, slots=True)
class Stopped:
    """The bad version's course, and what devices noticed of it.

    Attributes:
        course: as the operator saw it.
        agents: how many there are.
        requests: sent by all devices meanwhile.
        unanswered: failed, expired or refused of those.
        lost: without any end.
        duplicated: with more than one.
        exposed_accuracy: of what the devices of agents that were told heard.
        spared_accuracy: of what the others heard; None when there were none.
    """

    course: Course
    agents: int
    requests: int
    unanswered: int
    lost: int
    duplicated: int
    exposed_accuracy: float
    spared_accuracy: float | None

    def document(self) -> dict[str, Any]:
        """As `--json` writes it."""
        fields = asdict(self)
        course = fields.pop("course")
        began_ms = course.pop("began_ms")
        turned_ms, ended_ms = course.pop("turned_ms"), course.pop("ended_ms")
        return {
            **course,
            **fields,
            "stopped_after_s": _seconds(began_ms, turned_ms),
            "seconds": _seconds(began_ms, ended_ms),
        }


def stopped(
    asked: Sequence[Asked],
    labels: Sequence[str],
    course: Course,
    agents: Mapping[str, str],
) -> Stopped:
    """Measure what devices noticed.

    Args:
        asked: every request of every device.
        labels: the name of each class, as they should be.
        course: of the bad version.
        agents: the agent of each device, by the device's name.
    """
    during = [each for each in asked if each.stage == BAD]
    fates = [fate(each) for each in during]
    exposed = [each for each in during if agents[each.device] in course.told]
    spared = [each for each in during if agents[each.device] not in course.told]
    return Stopped(
        course=course,
        agents=len(agents),
        requests=len(during),
        unanswered=sum(each in {"failed", "expired", "refused"} for each in fates),
        lost=fates.count(LOST),
        duplicated=duplicated(during),
        exposed_accuracy=share([is_right(each, labels) for each in exposed]),
        spared_accuracy=share([is_right(each, labels) for each in spared])
        if spared
        else None,
    )


def faults(found: Stopped) -> list[str]:
    """What keeps this part of a run from being a success."""
    course = found.course
    said = []
    if course.state != GONE_BACK:
        said.append(
            f"version {course.version} should have been rolled back and is "
            f"{course.state.replace('_', ' ')}: {course.reason}"
        )
    if len(course.told) >= found.agents:
        said.append(
            f"version {course.version} reached every agent before it was stopped"
        )
    if found.lost:
        said.append(f"{found.lost} requests were lost while a version was rolled back")
    if found.unanswered:
        said.append(
            f"{found.unanswered} requests had no answer while a version was rolled back"
        )
    if found.duplicated:
        said.append(
            f"{found.duplicated} requests were answered more than once while a version "
            "was rolled back"
        )
    return said


def _seconds(began_ms: float, ended_ms: float | None) -> float | None:
    return None if ended_ms is None else round((ended_ms - began_ms) / 1000.0, 2)
