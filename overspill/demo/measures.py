"""What a run measured, from what devices wrote down. Nothing else is believed.

The agents' own accounts of their promises stand beside it.

An answer is right when its label names what is on the image; a request without an
answer is wrong. Accuracies and shares are 0..1, times are milliseconds as the device
saw them.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any, Final, assert_never

import numpy as np
from numpy.typing import NDArray

from cascade.curves import random_curve
from overspill.demo.history import Asked, Reply
from overspill.demo.promises import BROKEN, ByDevices, Kept, Kind, Promised, Target

FIRST: Final = "first"
SWAP: Final = "swap"
SECOND: Final = "second"
CLOUD: Final = "cloud"
STREAM: Final = (FIRST, SWAP, SECOND)

EDGE_SOURCES: Final = ("edge", "edge_fallback")
LOST: Final = "lost"
# How an agent's reason says that it never asked the cloud.
HELD_BACK: Final = "not spilled: "
NORMAL_95: Final = 1.96

Flags = NDArray[np.bool_]


@dataclass(frozen=True, slots=True)
class Push:
    """How the second version went through the fleet.

    Attributes:
        from_: the version before.
        to: the version pushed.
        began_ms: when the operator started the rollout.
        ended_ms: when it was over.
        agents_updated: how many agents reported the new version.
        reason: why it did not reach all, for people.
    """

    from_: str
    to: str
    began_ms: float
    ended_ms: float
    agents_updated: int
    reason: str | None = None


@dataclass(frozen=True, slots=True)
class Spread:
    """Latency; None when nothing was measured."""

    p50: float | None
    p99: float | None


@dataclass(frozen=True, slots=True)
class PhaseMeasures:
    """One part of the stream.

    Attributes:
        stage: `first` with the first version alone, `swap` while the second was
            pushed, `second` with the second alone.
        edge_versions: versions that answered on the edge.
        random_spill_accuracy: what spilling as many at random gives on average.
        target: what the version promises; None for none, or while two versions served.
        realised: what became of it.
    """

    stage: str
    edge_versions: list[str]
    requests: int
    answered_edge: int
    answered_cloud: int
    answered_fallback: int
    edge_only_accuracy: float
    cascade_accuracy: float
    random_spill_accuracy: float
    spill_rate: float
    target: Target | None = None
    realised: Kept | None = None


@dataclass(frozen=True, slots=True)
class Measures:
    """A whole run; see `document` for the names it is published under."""

    requests: int
    answered_edge: int
    answered_cloud: int
    answered_fallback: int
    failed: int
    expired: int
    refused: int
    lost: int
    duplicated: int
    resent: int
    edge_only_accuracy: float
    cloud_only_accuracy: float
    cascade_accuracy: float
    spill_rate: float
    edge_ms: Spread
    cloud_ms: Spread
    push: Push
    dropped_during_swap: int
    phases: list[PhaseMeasures]
    cloud_pass: dict[str, int]

    def document(self) -> dict[str, Any]:
        """As `--json` writes it."""
        fields = asdict(self)
        dropped = fields.pop("dropped_during_swap")
        push = self.push
        fields["push"] = {
            "from": push.from_,
            "to": push.to,
            "agents_updated": push.agents_updated,
            "dropped_during_swap": dropped,
            "seconds": round((push.ended_ms - push.began_ms) / 1000.0, 2),
        }
        return fields


def fate(asked: Asked) -> str:
    """How a request ended: a source, `failed`, `expired`, `refused` or `lost`."""
    outcome = asked.outcome
    if outcome is None:
        return LOST
    if outcome.status != "answered":
        return outcome.status
    return outcome.source or "failed"


def measure(
    asked: Sequence[Asked],
    *,
    labels: Sequence[str],
    edge_right: Mapping[str, Flags],
    push: Push,
    promised: Mapping[str, Promised] | None = None,
) -> Measures:
    """Measure a run.

    Args:
        asked: every request of every device, each device's in the order sent.
        labels: the name of each class.
        edge_right: by version, for each image whether that edge model alone is right.
        push: how the second version was pushed.
        promised: by version, its target and what the agents say of it.
    """
    stream = [each for each in asked if each.stage in STREAM]
    forced = [each for each in asked if each.stage == CLOUD]
    versions = edge_versions(stream, default=push.from_)
    cloud_right = right_by_image(forced, labels)
    known = _Known(labels, versions, edge_right, cloud_right, promised or {})
    fates = Counter(map(fate, stream))
    return Measures(
        requests=len(stream),
        answered_edge=fates["edge"],
        answered_cloud=fates["cloud"],
        answered_fallback=fates["edge_fallback"],
        failed=fates["failed"],
        expired=fates["expired"],
        refused=fates["refused"],
        lost=fates[LOST],
        duplicated=duplicated(stream),
        resent=sum(each.attempts > 1 for each in stream),
        edge_only_accuracy=_edge_alone(stream, versions, edge_right),
        cloud_only_accuracy=share(list(cloud_right.values())),
        cascade_accuracy=share([is_right(each, labels) for each in stream]),
        spill_rate=share([spilled(each) for each in stream]),
        edge_ms=_spread(stream, "edge"),
        cloud_ms=_spread(stream, "cloud"),
        push=push,
        dropped_during_swap=dropped(stream, push),
        phases=[
            _phase(stage, [each for each in stream if each.stage == stage], known)
            for stage in STREAM
        ],
        cloud_pass={
            "requests": len(forced),
            "answered": sum(fate(each) == "cloud" for each in forced),
            "lost": sum(fate(each) == LOST for each in forced),
            "duplicated": duplicated(forced),
        },
    )


def faults(measures: Measures, *, agents: int) -> list[str]:
    """What keeps a run from being a success; empty when it was one."""
    found = []
    lost = measures.lost + measures.cloud_pass["lost"]
    twice = measures.duplicated + measures.cloud_pass["duplicated"]
    if lost:
        found.append(f"{lost} requests were lost")
    if twice:
        found.append(f"{twice} requests were answered more than once")
    if measures.cascade_accuracy <= measures.edge_only_accuracy:
        found.append("the cascade was no better than the edge alone")
    push = measures.push
    if push.agents_updated < agents:
        why = f": {push.reason}" if push.reason else ""
        found.append(
            f"version {push.to} reached {push.agents_updated} of {agents} agents{why}"
        )
    if measures.dropped_during_swap:
        found.append(
            f"{measures.dropped_during_swap} requests were dropped during the swap"
        )
    found += [
        f"{each.agent} says that its promise is broken: {phase.target.text}"
        for phase in measures.phases
        if phase.target is not None and phase.realised is not None
        for each in phase.realised.agents
        if each.standing == BROKEN
    ]
    return found


def spilled(asked: Asked) -> bool:
    """Whether the cloud was asked, whoever answered in the end."""
    return any(
        reply.status == "accepted"
        or reply.source == "cloud"
        or (reply.source == "edge_fallback" and not _spares(reply))
        for reply in asked.replies
    )


def held_back(asked: Asked) -> bool:
    """Whether the edge's answer stood although hard, to spare the cloud."""
    return asked.outcome is not None and _spares(asked.outcome)


def _spares(reply: Reply) -> bool:
    return reply.source == "edge_fallback" and HELD_BACK in (reply.reason or "")


def is_right(asked: Asked, labels: Sequence[str]) -> bool:
    """Whether the device was told what is on its image."""
    outcome = asked.outcome
    return outcome is not None and outcome.label == labels[asked.truth]


def right_by_image(asked: Sequence[Asked], labels: Sequence[str]) -> dict[int, bool]:
    """By image, whether its answer is right; images without an answer are left out."""
    return {
        each.index: is_right(each, labels)
        for each in asked
        if each.outcome is not None and each.outcome.status == "answered"
    }


def edge_versions(asked: Sequence[Asked], *, default: str) -> dict[str, str]:
    """By request id, the edge's version when it was asked.

    The cloud's answer names the cloud's version, so what it answered is taken to have
    met the version that the same device's last edge answer came from.
    """
    current: dict[str, str] = {}
    found: dict[str, str] = {}
    for each in asked:
        outcome = each.outcome
        if outcome is not None and outcome.source in EDGE_SOURCES and outcome.version:
            current[each.device] = outcome.version
        found[each.id] = current.get(each.device, default)
    return found


def dropped(asked: Sequence[Asked], push: Push) -> int:
    """Requests sent during the push that were refused or never answered."""
    return sum(
        fate(each) in {LOST, "refused"}
        for each in asked
        if push.began_ms <= each.at_ms <= push.ended_ms
    )


@dataclass(frozen=True, slots=True)
class _Known:
    """What every phase is measured against."""

    labels: Sequence[str]
    versions: Mapping[str, str]
    edge_right: Mapping[str, Flags]
    cloud_right: Mapping[int, bool]
    promised: Mapping[str, Promised]


def _phase(stage: str, asked: Sequence[Asked], known: _Known) -> PhaseMeasures:
    fates = Counter(map(fate, asked))
    rate = share([spilled(each) for each in asked])
    versions = sorted({known.versions[each.id] for each in asked})
    promised = known.promised.get(versions[0]) if len(versions) == 1 else None
    return PhaseMeasures(
        stage=stage,
        edge_versions=versions,
        requests=len(asked),
        answered_edge=fates["edge"],
        answered_cloud=fates["cloud"],
        answered_fallback=fates["edge_fallback"],
        edge_only_accuracy=_edge_alone(asked, known.versions, known.edge_right),
        cascade_accuracy=share([is_right(each, known.labels) for each in asked]),
        random_spill_accuracy=_at_random(
            asked, rate, known.versions, known.edge_right, known.cloud_right
        ),
        spill_rate=rate,
        target=None if promised is None else promised.target,
        realised=None if promised is None else _kept(promised, asked, known),
    )


def _kept(promised: Promised, asked: Sequence[Asked], known: _Known) -> Kept:
    by_devices = _by_devices(promised.target.kind, asked, known)
    return Kept(by_devices, list(promised.agents))


def _by_devices(kind: Kind, asked: Sequence[Asked], known: _Known) -> ByDevices | None:
    """What was realised of what a target limits; None where nothing can be said."""
    amounts: list[int]
    match kind:
        case "spill":
            amounts = [spilled(each) for each in asked]
        case "error":
            amounts = [not is_right(each, known.labels) for each in asked]
        case "excess":
            # On the same images, so that only what one of the two gets wrong varies.
            amounts = [
                known.cloud_right[each.index] - is_right(each, known.labels)
                for each in asked
                if each.index in known.cloud_right
            ]
        case _:
            assert_never(kind)
    if not amounts:
        return None
    value = float(np.mean(amounts))
    reach = NORMAL_95 * float(np.std(amounts)) / len(amounts) ** 0.5
    return ByDevices(round(value, 4), round(value - reach, 4), round(value + reach, 4))


def _edge_alone(
    asked: Sequence[Asked],
    versions: Mapping[str, str],
    edge_right: Mapping[str, Flags],
) -> float:
    return share([bool(edge_right[versions[each.id]][each.index]) for each in asked])


def _at_random(
    asked: Sequence[Asked],
    rate: float,
    versions: Mapping[str, str],
    edge_right: Mapping[str, Flags],
    cloud_right: Mapping[int, bool],
) -> float:
    known = [each for each in asked if each.index in cloud_right]
    if not known:
        return 0.0
    edge = np.array([edge_right[versions[each.id]][each.index] for each in known])
    cloud = np.array([cloud_right[each.index] for each in known])
    return round(random_curve(edge, cloud).accuracy_at(rate), 4)


def duplicated(asked: Sequence[Asked]) -> int:
    """How many were answered more than once."""
    return sum(len(each.finals) > 1 for each in asked)


def share(flags: Sequence[bool]) -> float:
    """How many of them are true, 0..1; 0 of none."""
    return round(sum(flags) / len(flags), 4) if flags else 0.0


def _spread(asked: Sequence[Asked], source: str) -> Spread:
    took = [
        each.outcome.at_ms - each.at_ms
        for each in asked
        if each.outcome is not None and fate(each) == source
    ]
    if not took:
        return Spread(None, None)
    p50, p99 = np.percentile(took, [50, 99])
    return Spread(round(float(p50), 2), round(float(p99), 2))
