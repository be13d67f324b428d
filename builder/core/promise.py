"""The threshold of the chosen candidate, or why nothing can be promised with it."""

from __future__ import annotations

from builder.core.quality import Answers
from builder.core.refusal import BuildRefused
from cascade.budget import threshold_for_spill
from cascade.risk import threshold_for_risk
from cascade.targets import Calibrated, Examples, MaxSpill, Target, Unsupported


def calibrate(
    edge: Answers, cloud: Answers | None, target: Target, max_spill: float | None
) -> Calibrated | Unsupported:
    """Find the threshold on examples that nothing else was chosen on.

    Args:
        edge: of the calibrate part.
        cloud: of the same examples.
        target: to keep.
        max_spill: also to keep to, with the target's confidence.

    Raises:
        BuildRefused: a target on risk without a cloud model.
    """
    if isinstance(target, MaxSpill):
        return threshold_for_spill(edge.confidence, target)
    if cloud is None:
        raise BuildRefused(
            f"{target.describe()!r} is about the cloud's answers, and there is no cloud "
            "model: name one, or state how much may be spilled"
        )
    return threshold_for_risk(
        Examples(edge.confidence, edge.right, cloud.right, edge.labels),
        target,
        spill=None if max_spill is None else MaxSpill(max_spill, target.confidence),
    )
