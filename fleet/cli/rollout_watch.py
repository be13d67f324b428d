"""`overspill rollout watch`: a picture that moves, or a line a change for programs."""

from __future__ import annotations

import json as encoding
import signal
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from typing import Any, Final

import typer
from rich.console import Console
from rich.live import Live

from fleet.app import Fleet
from fleet.cli import terminal
from fleet.cli.rollout_choice import Which, chosen
from fleet.cli.rollout_view import fitting, picture
from fleet.cli.terminal import Home
from fleet.core.changes import Change, changes
from fleet.core.outlook import Outlook, counted, document, outlook
from fleet.core.rollouts import RolloutState

LOOK_EVERY_S: Final = 0.5
# A look at a great fleet must not keep a core busy.
REST: Final = 4.0
NAP_S: Final = 0.05


def watch(
    which: Which = None,
    home: Home = None,
    *,
    json: terminal.AsJsonLines = False,
) -> None:
    """Show a rollout live until it ends: its waves, its gates, and who failed.

    Ctrl-C ends the watching, never the rollout. Without a terminal there is one line a
    change, with --json one JSON document a line. Exit code 0 when the rollout is done,
    1 when it ended otherwise.
    """
    with terminal.opened(terminal.read_settings(home)) as fleet:
        generation = chosen(fleet, which, live=False)
        try:
            last = _watch(fleet, generation, as_json=json)
        except KeyboardInterrupt:
            sys.stderr.write(
                f"rollout {generation} goes on without you: overspill rollout watch "
                f"{generation} comes back to it, overspill rollout pause {generation} "
                "stops it\n"
            )
            raise typer.Exit(130) from None
    if last.state is not RolloutState.DONE:
        raise typer.Exit(1)


def seen_now(fleet: Fleet, generation: int) -> Outlook:
    """One look at a rollout."""
    now = fleet.now()
    return outlook(fleet.rollouts.progress_of(generation), now.now_ms)


def looks(
    fleet: Fleet, generation: int, rest: Callable[[float], None] = time.sleep
) -> Iterator[Outlook]:
    """Looks at a rollout, until it has ended; `rest` is what is done in between."""
    while True:
        began_s = fleet.clock.monotonic()
        seen = seen_now(fleet, generation)
        yield seen
        if seen.ended:
            return
        spent_s = fleet.clock.monotonic() - began_s
        rest(max(LOOK_EVERY_S, REST * spent_s))


def _watch(fleet: Fleet, generation: int, *, as_json: bool) -> Outlook:
    if as_json:
        return _lines(looks(fleet, generation), _json_line, _json_start)
    if not sys.stdout.isatty():
        return _lines(looks(fleet, generation), _text_line, _text_start)
    console = Console()
    seen = seen_now(fleet, generation)
    with (
        _ctrl_c() as rest,
        Live(console=console, auto_refresh=False, transient=True) as live,
    ):
        for each in looks(fleet, generation, rest):
            seen = each
            live.update(fitting(seen, console), refresh=True)
    # What is left on the screen is the end, and all of it.
    console.print(picture(seen))
    return seen


@contextmanager
def _ctrl_c() -> Iterator[Callable[[float], None]]:
    """A rest that Ctrl-C ends; in the middle of a picture it has to wait for its end.

    Else half of a picture would stay on the screen, or the same one twice.
    """
    asked: list[int] = []

    def rest(seconds: float) -> None:
        until_s = time.monotonic() + seconds
        while not asked and time.monotonic() < until_s:
            time.sleep(NAP_S)
        if asked:
            raise KeyboardInterrupt

    before = signal.signal(signal.SIGINT, lambda number, _: asked.append(number))
    try:
        yield rest
    finally:
        signal.signal(signal.SIGINT, before)


def _lines(
    found: Iterator[Outlook],
    line: Callable[[Outlook, Change], str],
    start: Callable[[Outlook], str],
) -> Outlook:
    seen = next(found)
    _say(start(seen))
    for after in found:
        for each in changes(seen, after):
            _say(line(after, each))
        seen = after
    return seen


def _say(text: str) -> None:
    sys.stdout.write(text + "\n")
    # Whoever reads a pipe wants a change when it happens.
    sys.stdout.flush()


def _text_start(seen: Outlook) -> str:
    said = seen.state.value.replace("_", " ")
    because = f": {seen.course.reason}" if seen.course.reason else ""
    return _stamped(
        seen, f"{said}{because}, wave {seen.course.wave + 1}, {counted(seen)}"
    )


def _text_line(seen: Outlook, change: Change) -> str:
    return _stamped(seen, change.text)


def _stamped(seen: Outlook, text: str) -> str:
    rollout = seen.rollout
    at = datetime.fromtimestamp(seen.now_ms / 1000, tz=UTC).astimezone()
    name = f"rollout {rollout.generation} {rollout.model} {rollout.version}"
    return f"{at:%H:%M:%S} {name}: {text}"


def _json_start(seen: Outlook) -> str:
    return _json(seen, "seen", document(seen))


def _json_line(seen: Outlook, change: Change) -> str:
    return _json(seen, change.kind, dict(change.details))


def _json(seen: Outlook, kind: str, details: dict[str, Any]) -> str:
    stamp = {
        "at_ms": seen.now_ms,
        "generation": seen.rollout.generation,
        "change": kind,
    }
    return encoding.dumps({**stamp, **details})
