"""The picture of a sweep: latency and goodput against the load that was offered."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import Any, Final

INCHES: Final = (8.0, 7.0)
DPI: Final = 130
FORMATS: Final = (".png", ".svg")
_LINES: Final = {
    "p50": "tab:blue",
    "p90": "tab:green",
    "p99": "tab:orange",
    "p99.9": "tab:red",
}


class CannotDraw(Exception):
    """No picture can be made."""


def check_can_draw(path: Path) -> None:
    """Find out before a run and not after it.

    Raises:
        CannotDraw: matplotlib is missing, or the name says no known format.
    """
    if path.suffix.lower() not in FORMATS:
        raise CannotDraw(f"{path} must end in {' or '.join(FORMATS)}")
    if find_spec("matplotlib") is None:
        raise CannotDraw(
            "--picture needs matplotlib, which is not installed: "
            "run `pip install 'overspill[all]'`"
        )


def draw(path: Path, runs: Sequence[Mapping[str, Any]], *, title: str) -> None:
    """Write the picture, PNG or SVG by its name. Blocks.

    Args:
        path: where; an existing file is replaced.
        runs: documents of runs at different rates.
        title: above it.

    Raises:
        OSError: it cannot be written.
    """
    # A second of imports that only the end of a run needs; and no display.
    from matplotlib.backends.backend_agg import (  # noqa: PLC0415 - as said
        FigureCanvasAgg,
    )
    from matplotlib.figure import Figure  # noqa: PLC0415 - as said
    from matplotlib.ticker import (  # noqa: PLC0415 - as said
        LogLocator,
        NullFormatter,
        StrMethodFormatter,
    )

    runs = sorted(runs, key=lambda run: run["rate_per_s"])
    rates = [run["rate_per_s"] for run in runs]
    figure = Figure(figsize=INCHES, dpi=DPI, layout="constrained")
    FigureCanvasAgg(figure)
    latency, share = figure.subplots(2, 1, sharex=True, height_ratios=(3, 2))
    for name, colour in _LINES.items():
        # NaN where nothing was answered: a gap, and not a zero.
        values = [run["latency_ms"][name] or float("nan") for run in runs]
        latency.plot(rates, values, "o-", color=colour, label=name)
    latency.set_yscale("log")
    latency.yaxis.set_major_locator(LogLocator(subs=(1.0, 2.0, 5.0)))
    latency.yaxis.set_major_formatter(StrMethodFormatter("{x:g}"))
    latency.yaxis.set_minor_formatter(NullFormatter())
    latency.set_ylabel("latency of what was answered, ms")
    latency.set_title(title)
    latency.grid(alpha=0.3, which="both")
    latency.legend(loc="best", fontsize="small")
    goodput = [100.0 * (run["goodput"] or 0.0) for run in runs]
    share.plot(rates, goodput, "o-", color="black", label="answered in time")
    late = [at for at, run in enumerate(runs) if not run["valid"]]
    if late:
        share.plot(
            [rates[at] for at in late],
            [goodput[at] for at in late],
            "rx",
            markersize=10,
            label="not valid: the generator was late",
        )
    share.set_ylim(0, 103)
    share.set_ylabel("goodput, % of offered")
    share.set_xlabel("offered, requests/s")
    share.grid(alpha=0.3)
    share.legend(loc="best", fontsize="small")
    figure.savefig(path, format=path.suffix.lower().removeprefix("."))
