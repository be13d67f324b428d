"""What a person sees while it runs: rates, sources, queue, versions, outboxes.

On a terminal a table that renews itself; elsewhere a plain line now and then.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, Final, Self

from rich.console import Console, Group, RenderableType
from rich.live import Live
from rich.table import Table
from rich.text import Text

from lifecycle.clock import Clock, SystemClock

REFRESH_PER_S: Final = 4
PLAIN_EVERY_S: Final = 3.0
RATE_OVER_S: Final = 2.0
MARKS: Final = {"waiting": " ", "starting": "…", "ready": "✓", "stopping": "·"}


@dataclass(slots=True)
class DeviceLine:
    """One device and its agent.

    Attributes:
        progress: as the device says it.
        status: as the agent says it; empty until it was asked.
    """

    device: str
    agent: str
    local: str
    progress: dict[str, Any] = field(default_factory=dict)
    status: dict[str, Any] = field(default_factory=dict)

    @property
    def asked(self) -> int:
        """Requests sent so far."""
        return int(self.progress.get("asked", 0))

    def count(self, how: str) -> int:
        """Requests that ended so."""
        return int(self.progress.get("counts", {}).get(how, 0))

    @property
    def version(self) -> str:
        """Of the edge model that answered last."""
        return self.progress.get("version") or "-"

    @property
    def outbox(self) -> str:
        """Spills that the agent holds."""
        held = self.status.get("outbox", {}).get("open")
        return "-" if held is None else str(held)

    def took(self, how: str) -> str:
        """Recent milliseconds until such an answer."""
        ms = self.progress.get("ms", {}).get(how)
        return "-" if ms is None else f"{ms:.1f}"


@dataclass(slots=True)
class Scene:
    """All that is shown."""

    parts: dict[str, str] = field(default_factory=dict)
    lines: list[DeviceLine] = field(default_factory=list)
    headline: str = "starting"
    queues: dict[str, int | None] = field(default_factory=dict)
    rollout: str = ""

    @property
    def asked(self) -> int:
        """Requests sent by all devices."""
        return sum(line.asked for line in self.lines)


class Rate:
    """Requests a second over the last moments."""

    def __init__(self) -> None:
        self._seen: list[tuple[float, int]] = []

    def after(self, now_s: float, count: int) -> float:
        """The rate, now that `count` were seen in all."""
        self._seen.append((now_s, count))
        while len(self._seen) > 2 and self._seen[1][0] <= now_s - RATE_OVER_S:
            self._seen.pop(0)
        (then_s, then), (last_s, last) = self._seen[0], self._seen[-1]
        return (last - then) / (last_s - then_s) if last_s > then_s else 0.0


class LiveView:
    """Shows a scene while its `with` block lasts. Call `look` now and then.

    Args:
        scene: changed by others, shown by this.
        console: standard error, so that results stay clean.
        clock: for rates.
    """

    def __init__(
        self, scene: Scene, console: Console, clock: Clock | None = None
    ) -> None:
        self._scene = scene
        self._console = console
        self._clock = clock or SystemClock()
        self._began_s = self._clock.monotonic()
        self._rate = Rate()
        self._shown_rate = 0.0
        self._plain_due_s = 0.0
        self._plain_last = ("", "")
        self._closed = False
        self._live = Live(
            console=console,
            refresh_per_second=REFRESH_PER_S,
            get_renderable=self._render,
            transient=True,
        )

    def __enter__(self) -> Self:
        if self._console.is_terminal:
            self._live.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Show nothing any more."""
        self._closed = True
        if self._console.is_terminal:
            self._live.stop()

    def look(self) -> None:
        """Take new figures; without a terminal, print a line when it is time."""
        now_s = self._clock.monotonic()
        self._shown_rate = self._rate.after(now_s, self._scene.asked)
        if self._console.is_terminal or self._closed:
            return
        news = (self._scene.headline, self._scene.rollout)
        if news != self._plain_last or now_s >= self._plain_due_s:
            self._plain_last = news
            self._plain_due_s = now_s + PLAIN_EVERY_S
            self._console.print(self._plain(now_s), highlight=False, soft_wrap=True)

    def _plain(self, now_s: float) -> str:
        scene = self._scene
        text = f"{now_s - self._began_s:5.1f} s  {scene.headline}"
        if not scene.lines:
            starting = any(
                state in {"waiting", "starting"} for state in scene.parts.values()
            )
            if not starting:
                return text
            late = [name for name, state in scene.parts.items() if state != "ready"]
            return text + (f": waiting for {', '.join(late)}" if late else "")
        total: Callable[[str], int] = lambda how: sum(  # noqa: E731 - two words
            line.count(how) for line in scene.lines
        )
        versions = ", ".join(line.version for line in scene.lines)
        return (
            f"{text}: {scene.asked} asked ({self._shown_rate:.0f}/s), "
            f"{total('edge')} edge, {total('cloud')} cloud, "
            f"{total('edge_fallback')} fallback; versions {versions}"
            + (f"; {self._queues()}" if scene.queues else "")
            + (f"; {scene.rollout}" if scene.rollout else "")
        )

    def _render(self) -> RenderableType:
        scene = self._scene
        seconds = self._clock.monotonic() - self._began_s
        head = Text(f"{seconds:5.1f} s  {scene.headline}", style="bold")
        if not scene.lines:
            return Group(head, self._parts())
        feet = [f"{self._shown_rate:.0f} requests/s", self._queues(), scene.rollout]
        return Group(head, self._table(), Text("   ".join(filter(None, feet))))

    def _parts(self) -> Text:
        text = Text()
        for name, state in self._scene.parts.items():
            style = "green" if state == "ready" else "dim"
            text.append(f"  {MARKS[state]} {name}", style=style)
        return text

    def _queues(self) -> str:
        shown = (
            f"{name} {'-' if depth is None else depth}"
            for name, depth in self._scene.queues.items()
        )
        return "queue " + ", ".join(shown) if self._scene.queues else ""

    def _table(self) -> Table:
        table = Table(box=None, pad_edge=False, padding=(0, 2, 0, 0))
        for name in ("device", "agent", "local broker"):
            table.add_column(name)
        for name in (
            *("asked", "edge", "cloud", "fallback", "open", "outbox"),
            *("edge ms", "cloud ms", "version"),
        ):
            table.add_column(name, justify="right")
        for line in self._scene.lines:
            table.add_row(
                line.device,
                line.agent,
                line.local,
                str(line.asked),
                str(line.count("edge")),
                str(line.count("cloud")),
                str(line.count("edge_fallback")),
                str(line.progress.get("open", 0)),
                line.outbox,
                line.took("edge"),
                line.took("cloud"),
                line.version,
            )
        return table
