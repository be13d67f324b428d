"""The results as pictures."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import matplotlib as mpl
from matplotlib import pyplot as plt
from matplotlib.figure import Figure

from benchmarks.peers.contenders import BY_NAME, OURS
from benchmarks.peers.results import Results
from benchmarks.peers.rounds import DRAINS, SHARES

mpl.use("Agg")

OURS_COLOUR = "#c0392b"
PEER_COLOUR = "#7f8c8d"
PALE = "#bdc3c7"


def draw(results: Results, names: Sequence[str], folder: Path) -> None:
    """Write throughput.png, load.png and goodput.png, each if it was measured."""
    folder.mkdir(parents=True, exist_ok=True)
    _throughput(results, names, folder / "throughput.png")
    _load(results, names, folder / "load.png")
    _goodput(results, names, folder / "goodput.png")


def _throughput(results: Results, names: Sequence[str], path: Path) -> None:
    figure, axes = plt.subplots(1, len(DRAINS), figsize=(13, 4.5), layout="constrained")
    for axis, model in zip(axes, DRAINS, strict=True):
        rows = [
            (name, mode, value)
            for name in names
            for mode in BY_NAME[name].modes
            if (value := results.value(name, mode, model, "per_s")) is not None
        ]
        rows.sort(key=lambda row: row[2])
        labels = [
            f"{name}{'' if mode == 'equal_safety' else ' *'}" for name, mode, _ in rows
        ]
        colours = [
            OURS_COLOUR
            if name == OURS
            else PEER_COLOUR
            if mode == "equal_safety"
            else PALE
            for name, mode, _ in rows
        ]
        axis.barh(labels, [value for *_, value in rows], color=colours)
        axis.set_title(model)
        axis.set_xlabel("requests a second, deep queue")
    figure.supxlabel("* as it comes; the others at equal safety")
    _save(figure, path)


def _load(results: Results, names: Sequence[str], path: Path) -> None:
    figure, axes = plt.subplots(1, 2, figsize=(12, 4.5), layout="constrained")
    for axis, measure in zip(axes, ("p50_ms", "p99_ms"), strict=True):
        for name in names:
            mode = BY_NAME[name].modes[-1]
            values = [
                results.value(name, mode, f"load_{share:.0%}", measure)
                for share in SHARES
            ]
            if any(each is not None for each in values):
                wide = 2.5 if name == OURS else 1.0
                shown = [float("nan") if each is None else each for each in values]
                percent = [share * 100 for share in SHARES]
                axis.plot(percent, shown, marker="o", linewidth=wide, label=name)
        axis.set_yscale("log")
        axis.set_title(f"stub: {measure.removesuffix('_ms')} from intended send, ms")
        axis.set_xlabel("% of the slowest peer's maximum")
    if axes[1].has_data():
        axes[1].legend(fontsize=8)
    _save(figure, path)


def _goodput(results: Results, names: Sequence[str], path: Path) -> None:
    figure, axes = plt.subplots(1, 2, figsize=(12, 4.5), layout="constrained")
    titles = {
        "mixed": "two models, deadlines 30 and 150 ms, 110 % of the best",
        "bursts": "bursts of 150, good within 250 ms",
    }
    for axis, (workload, title) in zip(axes, titles.items(), strict=True):
        rows = [
            (name, value * 100)
            for name in names
            if (
                value := results.value(
                    name, BY_NAME[name].modes[-1], workload, "goodput"
                )
            )
            is not None
        ]
        rows.sort(key=lambda row: row[1])
        colours = [OURS_COLOUR if name == OURS else PEER_COLOUR for name, _ in rows]
        axis.barh(
            [name for name, _ in rows], [value for _, value in rows], color=colours
        )
        axis.set_title(f"{title}: goodput %", fontsize=10)
    _save(figure, path)


def _save(figure: Figure, path: Path) -> None:
    figure.savefig(path, dpi=110)
    plt.close(figure)
