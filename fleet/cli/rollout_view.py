"""A rollout on a terminal: its waves, its gates, who failed, and what to do next.

Right at 80 columns and wider; what does not fit is cut with an ellipsis, but for reasons,
which wrap.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Final

from rich.console import Console, ConsoleOptions, Group, RenderableType, RenderResult
from rich.measure import Measurement
from rich.table import Table
from rich.text import Text

from fleet.cli import terminal
from fleet.core.amounts import percent
from fleet.core.changes import NOBODY
from fleet.core.gates import Decision, Gate, GateKind, Unsure, Verdict
from fleet.core.outlook import Outlook, WaveLine, WaveState, counted, why
from fleet.core.rollouts import RolloutState

MOST_WAVES: Final = 8
COLOURS: Final = {
    RolloutState.RUNNING: "cyan",
    RolloutState.AWAITING_APPROVAL: "yellow",
    RolloutState.PAUSED: "yellow",
    RolloutState.ROLLING_BACK: "red",
    RolloutState.ROLLED_BACK: "red",
    RolloutState.DONE: "green",
    RolloutState.FAILED: "red",
}
WAVE_WORDS: Final = {
    WaveState.PASSED: ("passed", "green"),
    WaveState.MOVING: ("on its way", "cyan"),
    WaveState.UNSURE: ("gates unsure", "yellow"),
    WaveState.APPROVAL: ("asks you", "bold yellow"),
    WaveState.PAUSED: ("paused", "bold yellow"),
    WaveState.STOPPED: ("stopped", "red"),
    WaveState.TO_COME: ("to come", "dim"),
}
# What a gate's sample is of.
UNITS: Final = {
    GateKind.SUCCESS: "agents",
    GateKind.SILENCE: "agents",
    GateKind.LATENCY: "agents",
    GateKind.PROMISE: "agents",
    GateKind.ERRORS: "requests",
    GateKind.SPILL: "requests",
    GateKind.AGREEMENT: "audits",
}


def picture(
    seen: Outlook, *, most_failed: int = 20, every_gate: bool = True
) -> RenderableType:
    """A whole rollout; why it stands still comes first.

    Args:
        seen: the rollout.
        most_failed: how many of the agents that failed are listed.
        every_gate: also the gates that have nothing to say yet.
    """
    parts: list[RenderableType] = [_title(seen), Text(counted(seen), "dim")]
    if seen.rollout.query is not None:
        parts.append(_line(f"where {seen.rollout.query}", "dim"))
    if seen.quiet_s is not None:
        parts.append(Text(NOBODY, "bold yellow"))
    because, following = _reason(seen), next_words(seen)
    if because is not None:
        parts.append(because)
    if following:
        parts.append(Text.assemble(("next: ", "bold"), following))
    parts += [Text(), _waves(seen.waves, seen.course.wave)]
    gates = [
        each
        for each in seen.rollout.gates
        if every_gate or any(each.kind is one.kind for one in seen.course.verdicts)
    ]
    if gates:
        parts += [Text(), _gates(seen, gates)]
    if seen.failed and most_failed:
        parts += [Text(), *_failed(seen, most_failed)]
    return Group(*parts)


def fitting(seen: Outlook, console: Console) -> RenderableType:
    """As much of `picture` as the terminal has lines for."""
    for most, every_gate in ((20, True), (8, True), (3, True), (3, False)):
        whole = picture(seen, most_failed=most, every_gate=every_gate)
        # One line stays free for the cursor.
        if len(console.render_lines(whole, pad=False)) < console.height:
            return whole
    return picture(seen, most_failed=0, every_gate=False)


def next_words(seen: Outlook) -> str:
    """What an operator can type now."""
    match seen.state:
        case RolloutState.PAUSED:
            may = ["resume", "rollback", "abort"]
        case RolloutState.AWAITING_APPROVAL:
            may = ["approve", "rollback", "abort"]
        case RolloutState.FAILED | RolloutState.ABORTED:
            may = ["rollback"]
        case _:
            return ""
    if seen.rollout.way_back is None:
        may.remove("rollback")
    if not may:
        return ""
    others = f" (or {', '.join(may[1:])})" if len(may) > 1 else ""
    return f"overspill rollout {may[0]} {seen.rollout.generation}{others}"


# Of a version against the one before, so that less than nothing means something.
DIFFERENCES: Final = frozenset({GateKind.AGREEMENT, GateKind.SPILL})


class Bar:
    """How far a wave is: updated, failed, on their way, and still to come.

    Args:
        parts: how many, and in which glyph and style, from left to right.
        total: how many in all.
    """

    def __init__(self, parts: Iterable[tuple[int, str, str]], total: int) -> None:
        self._parts = [each for each in parts if each[0]]
        self._total = max(1, total)

    def __rich_console__(
        self, console: Console, options: ConsoleOptions
    ) -> RenderResult:
        width, used, text = options.max_width, 0, Text(no_wrap=True, end="")
        plain = options.ascii_only
        done = 0
        for count, glyph, style in self._parts:
            done += count
            # Whoever is there is seen: at least one cell each.
            upto = min(width, max(used + 1, width * done // self._total))
            text.append((glyph if not plain else "#") * (upto - used), style)
            used = upto
        text.append(("░" if not plain else ".") * (width - used), "dim")
        yield text

    def __rich_measure__(
        self, console: Console, options: ConsoleOptions
    ) -> Measurement:
        return Measurement(8, min(40, options.max_width))


def _title(seen: Outlook) -> Table:
    rollout, state = seen.rollout, seen.state
    age = terminal.age(seen.now_ms, seen.course.since_ms)
    left = Text.assemble(
        (f"rollout {rollout.generation}  ", "dim"),
        (f"{rollout.model} {rollout.version}  ", "bold"),
        (state.value.replace("_", " "), f"bold {COLOURS.get(state, 'dim')}"),
        (f"  for {age}" if not seen.ended else f"  {age} ago", "dim"),
    )
    grid = Table.grid(expand=True)
    grid.add_column(no_wrap=True, overflow="ellipsis")
    grid.add_column(no_wrap=True, overflow="ellipsis", justify="right", ratio=1)
    grid.add_row(left, Text(rollout.by, "dim"))
    return grid


def _waves(waves: tuple[WaveLine, ...], current: int) -> Table:
    table = _table()
    table.add_column("wave", justify="right")
    table.add_column("reaches", justify="right", no_wrap=True)
    table.add_column("progress", ratio=1)
    table.add_column("updated", justify="right", no_wrap=True)
    table.add_column("failed", justify="right")
    table.add_column("state", no_wrap=True, min_width=12)
    first = max(0, min(current - 2, len(waves) - MOST_WAVES))
    for each in waves[first : first + MOST_WAVES]:
        name = f"{each.index + 1}" + (" shadow" if each.shadow else "")
        style = "dim" if each.state is WaveState.TO_COME else ""
        table.add_row(
            name,
            _reaches(each),
            Bar(
                [
                    (each.updated, "█", "green"),
                    (each.failed, "▓", "red"),
                    (each.moving, "▒", "cyan"),
                ],
                each.agents,
            ),
            f"{each.updated} of {each.agents}",
            Text(str(each.failed), "red" if each.failed else "dim"),
            _state(each),
            style=style,
        )
    if len(waves) > MOST_WAVES:
        table.add_row("", "", Text(f"of {len(waves)} waves", "dim"), "", "", "")
    return table


def _reaches(wave: WaveLine) -> str:
    total = str(wave.total)
    return total if wave.reach == total else f"{wave.reach} = {total}"


def _state(wave: WaveLine) -> Text:
    if wave.state is WaveState.SOAKING:
        return Text(f"soaks {terminal.lasts(wave.left_s)}", "cyan")
    if wave.state is WaveState.TO_COME and wave.approve:
        return Text("then asks you", "dim")
    return Text(*WAVE_WORDS[wave.state])


def _gates(seen: Outlook, gates: Iterable[Gate]) -> Table:
    table = _table()
    table.add_column("gate", no_wrap=True)
    table.add_column("says", no_wrap=True)
    table.add_column("value", justify="right", no_wrap=True)
    table.add_column("surely between", justify="right", no_wrap=True)
    table.add_column("limit", justify="right", no_wrap=True)
    table.add_column("learned from", no_wrap=True, overflow="ellipsis", ratio=1)
    verdicts = {each.kind: each for each in seen.course.verdicts}
    for gate in gates:
        verdict = verdicts.get(gate.kind)
        table.add_row(
            gate.kind.value,
            _says(gate, verdict, overruled=gate.kind in seen.course.waived),
            "" if verdict is None or verdict.value is None else _percent(verdict.value),
            _between(verdict),
            percent(gate.limit),
            _learned(gate, verdict),
        )
    return table


def _says(gate: Gate, verdict: Verdict | None, *, overruled: bool) -> Text:
    if overruled:
        return Text("overruled", "yellow")
    if verdict is None:
        return Text("nothing yet", "dim")
    match verdict.decision:
        case Decision.PASS:
            return Text("pass", "green")
        case Decision.FAIL:
            return Text("FAIL", "bold red")
        case Decision.INCONCLUSIVE:
            may_go_on = gate.unsure is Unsure.GO_ON
            return Text("unsure", "dim" if may_go_on else "yellow")


def _between(verdict: Verdict | None) -> str:
    if verdict is None or verdict.low is None or verdict.high is None:
        return ""
    low, high = verdict.low, verdict.high
    if verdict.kind not in DIFFERENCES:
        low, high = max(0.0, low), min(1.0, high)
    return f"{_percent(low)} to {_percent(high)}"


def _learned(gate: Gate, verdict: Verdict | None) -> str:
    if verdict is None:
        return ""
    unit = UNITS[gate.kind]
    if verdict.decision is Decision.PASS and not verdict.sample:
        return verdict.reason
    if verdict.sample < gate.min_sample:
        return f"{verdict.sample} {unit}, needs {gate.min_sample}"
    return f"{verdict.sample} {unit}"


def _percent(share: float) -> str:
    # Not -0.0.
    return f"{round(100 * share, 1) + 0.0:.1f}%"


def _failed(seen: Outlook, most: int) -> Iterable[RenderableType]:
    table = _table()
    table.add_column("agents that failed", no_wrap=True, overflow="ellipsis")
    table.add_column("", no_wrap=True)
    table.add_column("why", no_wrap=True, overflow="ellipsis", ratio=1)
    for each in seen.failed[:most]:
        table.add_row(each.agent, Text(each.state.value, "red"), why(each))
    yield table
    more = len(seen.failed) - most
    if more > 0:
        number = seen.rollout.generation
        yield Text(f"and {more} more: overspill rollout status {number}", "dim")


def _reason(seen: Outlook) -> Text | None:
    if seen.course.reason is None or seen.state is RolloutState.RUNNING:
        return None
    said = seen.state.value.replace("_", " ")
    colour = COLOURS.get(seen.state, "dim")
    return Text.assemble((f"{said}: ", f"bold {colour}"), seen.course.reason)


def _line(text: str, style: str) -> Text:
    return Text(text, style, no_wrap=True, overflow="ellipsis")


def _table() -> Table:
    return Table(
        box=None, expand=True, pad_edge=False, padding=(0, 1), header_style="dim"
    )
