"""Dead letters as they are printed: a table, a letter line by line, a document."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import asdict

from rich.table import Table

from fleet.cli import terminal
from fleet.core.letters import Filter, Letter
from lifecycle.clock import SystemClock


def print_documents(letters: Sequence[Letter], *, count: int) -> None:
    """Letters as one JSON document; `count` is how many there were to look at."""
    found = [{"name": each.name, **asdict(each)} for each in letters]
    terminal.print_json({"count": count, "letters": found})


def print_table(letters: Sequence[Letter], *, wanted: Filter) -> None:
    """Letters in lines, or a line that says that there are none."""
    if not letters:
        where = "" if wanted == Filter() else " is chosen by these options"
        terminal.note(f"no dead letter{where}")
        return
    table = Table(
        "request", "model", "class", "cause", "reason", "died", "size", "failed runs"
    )
    now_ms = SystemClock().wall_ms()
    for each in letters:
        died_ms = each.death.at_ms
        table.add_row(
            each.name,
            f"{each.model} {each.death.version}".strip(),
            each.priority,
            each.death.cause,
            each.death.reason,
            "" if died_ms is None else f"{terminal.age(now_ms, died_ms)} ago",
            terminal.size(each.size_bytes),
            str(len(each.death.history) or ""),
        )
    terminal.tables().print(table)


def print_letter(letter: Letter) -> None:
    """All that is known of one letter."""
    now_ms = SystemClock().wall_ms()
    lines = [*_circumstances(letter, now_ms), *_contents(letter, now_ms)]
    terminal.note("\n".join(lines))


def _circumstances(letter: Letter, now_ms: int) -> Iterator[str]:
    death = letter.death
    size = terminal.size(letter.size_bytes)
    yield letter.name
    yield f"  letter   {letter.digest}, {size}, retried {letter.retried} times"
    yield f"  topic    {letter.routing_key}"
    when = "" if death.at_ms is None else f", {terminal.age(now_ms, death.at_ms)} ago"
    yield f"  cause    {death.cause}{when}"
    yield f"  reason   {death.reason}"
    if death.worker:
        yield f"  served   {death.model} {death.version} by worker {death.worker}"
    for each in death.history:
        how = "crashed" if each.crashed else "failed"
        ago = terminal.age(now_ms, each.at_ms)
        yield f"  run      {ago} ago, in a batch of {each.requests}, {how}: {each.error}"


def _contents(letter: Letter, now_ms: int) -> Iterator[str]:
    for each in letter.contents:
        late = "over" if each.expires_at_ms <= now_ms else "not over"
        yield f"  request  {each.device}/{each.id}"
        yield f"    spilled as {each.reason}, attempt {each.attempt}, time {late}"
        for name, what in each.inputs.items():
            yield f"    input {name}: {what}"
    if letter.fault:
        yield f"  fault    {letter.fault}"
    if letter.first_bytes is not None:
        yield f"  begins   {letter.first_bytes}"
