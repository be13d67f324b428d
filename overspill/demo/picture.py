"""The picture of a run: accuracy against the share spilled, and where the run was."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import numpy as np
from numpy.typing import NDArray

from cascade.curves import oracle_curve, random_curve, threshold_curve
from overspill.demo.edge_alone import EdgeAlone

COLOURS: Final = ("tab:orange", "tab:blue", "tab:green")
INCHES: Final = (8.0, 5.5)
DPI: Final = 130


@dataclass(frozen=True, slots=True)
class Realised:
    """Where one part of a run came to lie."""

    version: str
    spill_rate: float
    accuracy: float


def draw(
    path: Path,
    edges: Sequence[EdgeAlone],
    truth: NDArray[np.integer],
    cloud_right: NDArray[np.bool_],
    realised: Sequence[Realised],
) -> None:
    """Write the picture as PNG. Blocks.

    Args:
        path: where; an existing file is replaced.
        edges: each version's own answers to the same images.
        truth: the class of each image, [n].
        cloud_right: whether the cloud's answer to each is right, [n].
        realised: this run's points.

    Raises:
        OSError: it cannot be written.
    """
    # A second of imports that only the end of a demo needs; and no display.
    from matplotlib.backends.backend_agg import (  # noqa: PLC0415 - as said
        FigureCanvasAgg,
    )
    from matplotlib.figure import Figure  # noqa: PLC0415 - as said

    figure = Figure(figsize=INCHES, dpi=DPI, layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.add_subplot()
    for edge, colour in zip(edges, COLOURS, strict=False):
        right = edge.right(truth)
        name = f"edge model {edge.version}"
        for curve, style, what in (
            (threshold_curve(edge.confidence, right, cloud_right), "-", name),
            (random_curve(right, cloud_right), "--", f"{name}, spilling at random"),
            (oracle_curve(right, cloud_right), ":", f"{name}, oracle"),
        ):
            axes.plot(
                100 * curve.spilled,
                100 * curve.accuracy,
                style,
                color=colour,
                label=what,
                linewidth=2 if style == "-" else 1,
            )
        for point in realised:
            if point.version == edge.version:
                axes.plot(
                    100 * point.spill_rate,
                    100 * point.accuracy,
                    "o",
                    color=colour,
                    markeredgecolor="black",
                    markersize=10,
                    zorder=5,
                    label=f"this run with {name}",
                )
    axes.axhline(
        100 * float(cloud_right.mean()), color="grey", linewidth=1, label="cloud alone"
    )
    axes.set_xlabel("requests spilled to the cloud, %")
    axes.set_ylabel("right answers, %")
    axes.set_title(f"Accuracy against the share spilled, {len(truth)} images")
    axes.set_xlim(0, 100)
    axes.grid(alpha=0.3)
    axes.legend(loc="lower right", fontsize="small")
    figure.savefig(path, format="png")
