"""What came of a demo, from what its devices wrote down, and whether it was a success."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from overspill.demo import overload, stopped
from overspill.demo.director import DEADLINE_S, Played
from overspill.demo.edge_alone import EdgeAlone
from overspill.demo.history import Asked
from overspill.demo.measures import (
    CLOUD,
    SECOND,
    SWAP,
    Measures,
    faults,
    measure,
    right_by_image,
)
from overspill.demo.overload import OVERLOAD, PROBE, Overload, moment
from overspill.demo.picture import Realised, draw
from overspill.demo.stopped import Stopped


@dataclass(frozen=True, slots=True)
class Evidence:
    """All that is known when a demo is over.

    Attributes:
        asked: what the devices asked and heard, as they wrote it down.
        edges: what each edge model says without the cloud.
        played: how the operator's side of it went.
        truth: the class of each image, [n].
        labels: the name of each class, as the models should have it.
        agents: the agent of each device, by the device's name.
    """

    asked: Sequence[Asked]
    edges: Sequence[EdgeAlone]
    played: Played
    truth: NDArray[np.integer[Any]]
    labels: Sequence[str]
    agents: Mapping[str, str]


@dataclass(frozen=True, slots=True)
class Findings:
    """What the evidence says.

    Attributes:
        measures: what was measured.
        stopped: what came of a version that had to be stopped.
        overload: what came of the devices while the pool had too much to do.
        faults: what keeps it from being a success, for people.
    """

    measures: Measures
    stopped: Stopped
    overload: Overload
    faults: list[str]

    def document(self) -> dict[str, Any]:
        """As `--json` writes it."""
        return {
            **self.measures.document(),
            "stopped": self.stopped.document(),
            "overload": self.overload.document(),
            "ok": not self.faults,
            "faults": self.faults,
        }


def find(evidence: Evidence) -> Findings:
    """Read the evidence."""
    played, labels = evidence.played, evidence.labels
    measures = measure(
        evidence.asked,
        labels=labels,
        edge_right={
            edge.version: edge.right(evidence.truth) for edge in evidence.edges
        },
        push=played.push,
        promised=played.promised,
    )
    halted = stopped.stopped(evidence.asked, labels, played.bad, evidence.agents)
    overloaded = _overload(evidence)
    found = faults(measures, agents=len(evidence.agents))
    found += stopped.faults(halted)
    found += overload.faults(overloaded)
    return Findings(measures, halted, overloaded, found)


def _overload(evidence: Evidence) -> Overload:
    played, labels = evidence.played, evidence.labels
    (right,) = (
        edge.right(evidence.truth)
        for edge in evidence.edges
        if edge.version == played.push.to
    )
    before, probe, during = (
        moment([each for each in evidence.asked if each.stage == stage], labels, right)
        for stage in (SECOND, PROBE, OVERLOAD)
    )
    flooded = played.flooded
    return Overload(
        deadline_s=DEADLINE_S,
        crowd=flooded.crowd,
        before=before,
        probe=probe,
        during=during,
        changes=flooded.changes,
        queue_empty_after_s=flooded.queue_empty_after_s,
        agents=flooded.agents,
    )


def draw_curves(evidence: Evidence, measures: Measures, plot: Path) -> None:
    """Draw what the cloud was worth, and what each version promised of it."""
    forced = [each for each in evidence.asked if each.stage == CLOUD]
    right = right_by_image(forced, evidence.labels)
    known = sorted(right)
    if not known:
        return
    draw(
        plot,
        [edge.of(known) for edge in evidence.edges],
        evidence.truth[known],
        np.array([right[index] for index in known]),
        [
            Realised(phase.edge_versions[0], phase.spill_rate, phase.cascade_accuracy)
            for phase in measures.phases
            if len(phase.edge_versions) == 1 and phase.stage != SWAP
        ],
    )
