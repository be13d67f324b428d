"""Pictures for the report, as text that stands inside one HTML file."""

from __future__ import annotations

import base64
import io
import re
from collections.abc import Mapping, Sequence
from hashlib import blake2b
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray
from PIL import Image

THUMBNAIL_PX: Final = 84
SIZE_INCHES: Final = (6.4, 4.0)
COLOURS: Final = ("#1f6feb", "#d1242f", "#1a7f37", "#8250df", "#bf8700", "#57606a")

_ID: Final = re.compile(r'\sid="([^"]+)"')
_REFERENCE: Final = re.compile(r'(?<=["(]#)([\w-]+)(?=[")])')
_METADATA: Final = re.compile(r"<metadata>.*?</metadata>", re.DOTALL)


def cascade_svg(
    curves: Mapping[str, Sequence[tuple[float, float]]],
    marked: tuple[float, float] | None,
    cloud_accuracy: float,
) -> str:
    """Accuracy against the share spilled.

    Args:
        curves: points (share spilled, accuracy) of each candidate.
        marked: where the chosen threshold stands on the test part.
        cloud_accuracy: of the cloud alone.
    """
    figure, axes = _axes("spilled, %", "accuracy on the test part, %")
    for index, (name, points) in enumerate(curves.items()):
        at = np.array(points) * 100
        axes.plot(at[:, 0], at[:, 1], label=name, color=COLOURS[index % len(COLOURS)])
    axes.axhline(100 * cloud_accuracy, color="#57606a", ls="--", lw=1, label="cloud")
    if marked is not None:
        axes.plot(
            [100 * marked[0]], [100 * marked[1]], "o", color="black", label="threshold"
        )
    axes.legend(fontsize=8)
    return _svg(figure)


def pareto_svg(
    points: Mapping[str, tuple[float, float]], front: Sequence[str], chosen: str | None
) -> str:
    """Cost against file size; the front is filled, the chosen one is ringed.

    Args:
        points: (kilobytes, cost in percent) of each candidate.
        front: names of those that no other beats.
        chosen: its name.
    """
    figure, axes = _axes("file, KB", "cost, % (less is better)")
    # Names go to the right and by turns above and below, so that neighbours part.
    axes.margins(x=0.25, y=0.2)
    ordered = sorted(points.items(), key=lambda each: each[1])
    for index, (name, (kb, cost)) in enumerate(ordered):
        filled = COLOURS[0] if name in front else "none"
        axes.plot([kb], [cost], "o", mfc=filled, mec=COLOURS[0], ms=7)
        if name == chosen:
            axes.plot([kb], [cost], "o", mfc="none", mec=COLOURS[1], ms=14)
        axes.annotate(
            name,
            (kb, cost),
            xytext=(8, -13 if index % 2 else 8),
            textcoords="offset points",
            fontsize=8,
        )
    return _svg(figure)


def reliability_svg(confidence: NDArray[np.float64], right: NDArray[np.float64]) -> str:
    """How often answers of a confidence are right, against that confidence."""
    figure, axes = _axes("confidence, %", "right, %")
    axes.plot([0, 100], [0, 100], color="#57606a", ls="--", lw=1)
    axes.plot(100 * confidence, 100 * right, "o-", color=COLOURS[0])
    return _svg(figure)


def example_html(example: NDArray[Any]) -> str:
    """One example: a picture, a line for a series, numbers for a row."""
    if example.dtype == np.uint8 and example.ndim == 3:
        return f'<img alt="example" src="data:image/png;base64,{_png(example)}">'
    if example.ndim == 2:
        return _series_svg(example.astype(np.float64))
    shown = ", ".join(f"{each:.3g}" for each in example.reshape(-1)[:8])
    return f"<code>{shown}{', …' if example.size > 8 else ''}</code>"


def heat_svg(example: NDArray[Any], heat: NDArray[np.float64]) -> str:
    """An occlusion map beside its example: red where the answer hangs on it."""
    from matplotlib import colormaps
    from matplotlib.figure import Figure

    most = float(np.abs(heat).max()) or 1.0
    if heat.ndim != 2:
        figure, axes = _axes("part of the input", "points the probability falls by")
        axes.bar(np.arange(heat.size), 100 * heat.reshape(-1), color=COLOURS[1])
        return _svg(figure)
    figure = Figure(figsize=(6.4, 3.2), layout="constrained")
    for axes, title in zip(
        figure.subplots(1, 2), ("the input", "what the answer hangs on"), strict=True
    ):
        axes.imshow(_grey(example), cmap="gray")
        axes.set_title(title, fontsize=9)
        axes.set_axis_off()
    # The more it matters the less of the picture shines through.
    colours = colormaps["bwr"]((heat / most + 1) / 2)
    colours[..., 3] = 0.8 * np.abs(heat) / most
    axes.imshow(colours)
    return _svg(figure)


def _grey(example: NDArray[Any]) -> NDArray[Any]:
    """A picture as matplotlib takes it: [h, w], or [h, w, 3] in colours."""
    return example if example.shape[-1] == 3 else example.mean(axis=-1)


def _axes(x: str, y: str) -> tuple[Any, Any]:
    from matplotlib.figure import Figure

    figure = Figure(figsize=SIZE_INCHES, layout="constrained")
    axes = figure.add_subplot()
    axes.set_xlabel(x)
    axes.set_ylabel(y)
    axes.grid(visible=True, alpha=0.3)
    return figure, axes


def _svg(figure: Any) -> str:  # noqa: ANN401 - a matplotlib figure
    import matplotlib as mpl

    drawn = io.StringIO()
    # The same picture gives the same bytes: no date, no random ids.
    with mpl.rc_context({"svg.fonttype": "none", "svg.hashsalt": "overspill"}):
        figure.savefig(drawn, format="svg", metadata={"Date": None})
    text = drawn.getvalue()
    return _with_own_ids(_METADATA.sub("", text[text.index("<svg") :]))


def _with_own_ids(svg: str) -> str:
    """Only the ids that are referred to, and none that another picture has as well."""
    own = blake2b(svg.encode(), digest_size=4).hexdigest()
    meant = set(_REFERENCE.findall(svg))

    def renamed(found: re.Match[str]) -> str:
        return f' id="{found[1]}-{own}"' if found[1] in meant else ""

    return _REFERENCE.sub(rf"\g<0>-{own}", _ID.sub(renamed, svg))


def _png(example: NDArray[np.uint8]) -> str:
    grey = example.shape[-1] == 1
    picture = Image.fromarray(example[..., 0] if grey else example)
    if max(picture.size) > THUMBNAIL_PX:
        picture.thumbnail((THUMBNAIL_PX, THUMBNAIL_PX))
    file = io.BytesIO()
    picture.save(file, "PNG", optimize=True)
    return base64.b64encode(file.getvalue()).decode("ascii")


def _series_svg(steps: NDArray[np.float64]) -> str:
    low, high = float(steps.min()), float(steps.max())
    scaled = 40 - 36 * (steps - low) / ((high - low) or 1.0)
    x = np.linspace(2, THUMBNAIL_PX - 2, len(steps))
    lines = "".join(
        f'<polyline fill="none" stroke="{COLOURS[index % len(COLOURS)]}" points="'
        + " ".join(f"{a:.1f},{b:.1f}" for a, b in zip(x, column, strict=True))
        + '"/>'
        for index, column in enumerate(scaled.T[:6])
    )
    return f'<svg width="{THUMBNAIL_PX}" height="44">{lines}</svg>'
