"""What a person sees while agents converge: a bar of states, renewed in place.

On a terminal two lines that renew themselves; elsewhere a plain line now and then.
"""

from __future__ import annotations

from typing import Final, Self

from rich.console import Console, Group, RenderableType
from rich.live import Live
from rich.text import Text

from lifecycle.clock import Clock, SystemClock
from overspill.simulate.run import Scene
from overspill.simulate.tally import Became

BAR_COLUMNS: Final = 60
PLAIN_EVERY_S: Final = 3.0
STYLES: Final = {
    Became.CONVERGED: "green",
    Became.RETURNED: "magenta",
    Became.BACK: "blue",
    Became.REFUSED: "red",
    Became.EXCLUDED: "bright_black",
    Became.BROKEN: "bold red",
    Became.WAITING: "yellow",
    Became.UNDER_WAY: "cyan",
    Became.UNREACHED: "dim",
}


class SceneView:
    """Shows a scene while its `with` block lasts. Call `look` now and then."""

    def __init__(
        self, scene: Scene, console: Console, clock: Clock | None = None
    ) -> None:
        self._scene = scene
        self._console = console
        self._clock = clock or SystemClock()
        self._began_s = self._clock.monotonic()
        self._plain_due_s = 0.0
        self._said = ""
        self._live = Live(console=console, auto_refresh=False, transient=True)

    def __enter__(self) -> Self:
        if self._console.is_terminal:
            self._live.start()
        return self

    def __exit__(self, *_: object) -> None:
        if self._console.is_terminal:
            self._live.stop()

    def look(self) -> None:
        """Show how far it is."""
        now_s = self._clock.monotonic()
        if self._console.is_terminal:
            self._live.update(self._picture(now_s), refresh=True)
            return
        if self._scene.headline == self._said and now_s < self._plain_due_s:
            return
        self._said = self._scene.headline
        self._plain_due_s = now_s + PLAIN_EVERY_S
        self._console.print(self._line(now_s), highlight=False, soft_wrap=True)

    def _line(self, now_s: float) -> str:
        return (
            f"{now_s - self._began_s:5.1f} s  {self._scene.headline}{self._figures()}"
        )

    def _figures(self) -> str:
        scene, tally = self._scene, self._scene.tally
        late = [name for name, state in scene.parts.items() if state != "ready"]
        if late:
            return f": waiting for {', '.join(late)}"
        connected = sum(tally.connected.values())
        counts = tally.counts()
        if set(counts) == {Became.UNREACHED} and scene.standing is None:
            # There is nothing yet that could have reached them.
            return f": {connected} connected"
        states = ", ".join(f"{counts[each]} {each}" for each in Became if counts[each])
        if scene.standing is not None:
            states = f"{scene.standing.state}, {scene.standing.told} told, {states}"
        broker = f", broker {scene.broker_mb:.0f} MB" if scene.broker_mb else ""
        return f": {connected} connected, {states}{broker}"

    def _picture(self, now_s: float) -> RenderableType:
        head = Text(self._line(now_s), overflow="ellipsis", no_wrap=True)
        return Group(head, bar(self._scene))


def bar(scene: Scene) -> Text:
    """The agents as one line of blocks, coloured by what became of them."""
    counts = scene.tally.counts()
    agents = len(scene.tally.personas)
    text, begin = Text(), 0
    for became, style in STYLES.items():
        begin += counts[became]
        text.append("█" * (begin * BAR_COLUMNS // agents - len(text)), style=style)
    return text
