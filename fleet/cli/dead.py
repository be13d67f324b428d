"""`overspill dead`: what the pool gave up, why, and what should become of it."""

from __future__ import annotations

import asyncio
import os
import sys
from collections.abc import Awaitable, Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Annotated, Final, TypeVar

import typer

from fleet.adapters.dead_store import DeadStore, Kept, with_dead_store
from fleet.cli import terminal
from fleet.cli.letters import print_documents, print_letter, print_table
from fleet.cli.terminal import AmqpUrl, AsJson, Home
from fleet.core.letters import (
    BadChoice,
    Choice,
    Filter,
    Letter,
    read_duration_s,
    renewed,
)
from lifecycle.clock import SystemClock

SENT_TOGETHER: Final = 64
SENT_TOGETHER_BYTES: Final = 32 * 1024**2

T = TypeVar("T")

app = typer.Typer(
    help="Requests that the pool gave up: see why, send them again, or purge them.",
    no_args_is_help=True,
)

OneId = Annotated[
    str,
    typer.Argument(
        metavar="ID",
        help="ID, DEVICE/ID or AGENT/DEVICE/ID of a request, or the sha256:… of "
        "what holds none.",
    ),
]
IdOrAll = Annotated[
    str | None,
    typer.Argument(
        metavar="[ID]", help="ID, DEVICE/ID, AGENT/DEVICE/ID or sha256:…; or use --all."
    ),
]
Model = Annotated[str | None, typer.Option(help="Only those sent to this model.")]
Agent = Annotated[str | None, typer.Option(help="Only those of this agent.")]
Device = Annotated[str | None, typer.Option(help="Only those of this device.")]
Reason = Annotated[
    str | None, typer.Option(help="Only those whose reason or cause has these words.")
]
Older = Annotated[
    str | None,
    typer.Option(metavar="TIME", help="Only those that died so long ago: 90s, 2h, 1d."),
]
All = Annotated[
    bool, typer.Option("--all", help="Every letter that the other options choose.")
]


@app.callback()
def dead() -> None:
    """Requests that the pool gave up: see why, send them again, or purge them."""


@app.command("list")
def list_letters(  # noqa: PLR0913 - each is an option of the command
    *,
    model: Model = None,
    reason: Reason = None,
    agent: Agent = None,
    device: Device = None,
    older: Older = None,
    limit: Annotated[int, typer.Option(min=1, help="At most so many.")] = 100,
    home: Home = None,
    amqp_url: AmqpUrl = None,
    json: AsJson = False,
) -> None:
    """List the dead letters, oldest first. Looking takes none out and loses none.

    Cause `poison`: the model failed on it, found by bisection. `rejected`: nobody could
    read it. `expired`, `maxlen`, `delivery_limit`: its queue gave it up. Each was
    answered to its agent, where one could be told.
    """
    wanted = _filter(model, reason, agent, device, older)

    async def look(store: DeadStore) -> tuple[list[Letter], int]:
        # What was looked at before may stand in another order.
        found: list[Letter] = []
        async for kept in store.chosen(wanted, SystemClock().wall_ms()):
            found.append(kept.letter)
            if len(found) >= 2 * limit:
                found = _oldest(found, limit)
        return _oldest(found, limit), store.count

    letters, count = _with_store(home, amqp_url, "looking at dead letters", look)
    if json:
        print_documents(letters, count=count)
        return
    print_table(letters, wanted=wanted)
    if len(letters) == limit < count:
        terminal.warn(f"{limit} shown, of {count} in all: --limit shows more")


def _oldest(letters: list[Letter], limit: int) -> list[Letter]:
    """The first `limit`, those of an unknown time before all; of one moment by name."""
    return sorted(letters, key=lambda each: (each.death.at_ms or 0, each.name))[:limit]


@app.command()
def show(
    id_: OneId,
    *,
    save: Annotated[
        Path | None,
        typer.Option(help="Write the envelope there, as it was sent (MessagePack)."),
    ] = None,
    force: Annotated[
        bool, typer.Option("--force", help="Replace the file of --save.")
    ] = False,
    home: Home = None,
    amqp_url: AmqpUrl = None,
    json: AsJson = False,
) -> None:
    """Show one request: why it died, what had happened before, what it asks."""
    choice = _choice(id_)

    async def look(store: DeadStore) -> list[Kept]:
        return [kept async for kept in store.chosen(choice, SystemClock().wall_ms())]

    kept = _with_store(home, amqp_url, "looking at dead letters", look)
    if save is not None:
        _save(save, kept[-1].delivery.body, force=force)
    letters = [each.letter for each in kept]
    if json:
        print_documents(letters, count=len(letters))
        return
    for each in letters:
        print_letter(each)
    if len(letters) > 1:
        terminal.warn(f"the same request died {len(letters)} times")
    if save is not None:
        terminal.note(
            f"saved the last, {terminal.size(letters[-1].size_bytes)}: {save}"
        )


@app.command()
def retry(  # noqa: PLR0913 - each is an option of the command
    id_: IdOrAll = None,
    *,
    every: All = False,
    within: Annotated[
        str,
        typer.Option(metavar="TIME", help="The new deadline of what has expired."),
    ] = "60s",
    model: Model = None,
    reason: Reason = None,
    agent: Agent = None,
    device: Device = None,
    older: Older = None,
    home: Home = None,
    amqp_url: AmqpUrl = None,
    json: AsJson = False,
) -> None:
    """Send requests on their way again, as a new attempt, and take them out of here.

    The answer goes to the agent, which ignores it when the request has ended there
    already, as most dead ones have: they were answered `failed`. So a retry shows
    whether the pool can serve the request now; a device that still wants an answer
    sends it anew. A request that broke its model runs alone. Each letter leaves once
    RabbitMQ has confirmed the new attempt; a command that is killed has lost nothing.
    """
    which = _which(id_, _filter(model, reason, agent, device, older), every=every)
    action = _Retry(which, _duration(within))
    _with_store(home, amqp_url, "sending dead letters again", action)
    _say(action.tally, "retried", json=json)


@app.command()
def purge(  # noqa: PLR0913 - each is an option of the command
    id_: IdOrAll = None,
    *,
    every: All = False,
    with_others: Annotated[
        bool,
        typer.Option(
            "--with-others", help="Also the others in the envelope of this request."
        ),
    ] = False,
    model: Model = None,
    reason: Reason = None,
    agent: Agent = None,
    device: Device = None,
    older: Older = None,
    yes: Annotated[bool, typer.Option("--yes", help="Do not ask.")] = False,
    home: Home = None,
    amqp_url: AmqpUrl = None,
    json: AsJson = False,
) -> None:
    """Take requests out of the dead letters for good. Their agents were answered."""
    which = _which(id_, _filter(model, reason, agent, device, older), every=every)
    if every and not yes:
        _ask_whether_to_purge(json=json)
    action = _Purge(which, with_others=with_others)
    _with_store(home, amqp_url, "purging dead letters", action)
    _say(action.tally, "purged", json=json)


@dataclass(slots=True)
class _Tally:
    """What was done so far."""

    letters: int = 0
    requests: int = 0
    passed_over: int = 0
    fault: str | None = None

    def add(self, letter: Letter) -> None:
        self.letters += 1
        self.requests += len(letter.contents)


class _Retry:
    """Send the chosen letters again, some at a time."""

    def __init__(self, which: Choice | Filter, within_s: float) -> None:
        self.tally = _Tally()
        self._which = which
        self._within_s = within_s

    async def __call__(self, store: DeadStore) -> None:
        now_ms = SystemClock().wall_ms()
        ready: list[tuple[Kept, bytes]] = []
        async for kept in store.chosen(self._which, now_ms):
            try:
                body = self._again(kept, now_ms)
            except BadChoice as error:
                if isinstance(self._which, Choice):
                    raise
                self.tally.passed_over += 1
                self.tally.fault = str(error)
                continue
            ready.append((kept, body))
            size_bytes = sum(len(each) for _, each in ready)
            if len(ready) >= SENT_TOGETHER or size_bytes >= SENT_TOGETHER_BYTES:
                await self._send(store, ready)
        await self._send(store, ready)

    def _again(self, kept: Kept, now_ms: int) -> bytes:
        if not kept.letter.agent:
            raise BadChoice("it cannot be sent again: its topic is no request's")
        return renewed(kept.delivery.body, now_ms=now_ms, within_s=self._within_s)

    async def _send(self, store: DeadStore, ready: list[tuple[Kept, bytes]]) -> None:
        await store.send_again(ready)
        for kept, _ in ready:
            self.tally.add(kept.letter)
        ready.clear()


class _Purge:
    """Take the chosen letters out."""

    def __init__(self, which: Choice | Filter, *, with_others: bool) -> None:
        self.tally = _Tally()
        self._which = which
        self._with_others = with_others

    async def __call__(self, store: DeadStore) -> None:
        async for kept in store.chosen(self._which, SystemClock().wall_ms()):
            self._check_alone(kept.letter)
            await store.remove(kept)
            self.tally.add(kept.letter)

    def _check_alone(self, letter: Letter) -> None:
        others = len(letter.contents) - 1
        if others > 0 and isinstance(self._which, Choice) and not self._with_others:
            raise BadChoice(
                f"{self._which.text!r} is in one envelope with {others} others: "
                "--with-others purges them all"
            )


def _with_store(
    home: Path | None,
    amqp_url: str | None,
    doing: str,
    work: Callable[[DeadStore], Awaitable[T]],
) -> T:
    settings = terminal.read_settings(home, amqp_url)
    url = settings.amqp_url
    if url is None:
        terminal.fail(
            "no RabbitMQ is configured: set OVERSPILL_FLEET_AMQP_URL to "
            "amqp://user:password@host:port/vhost"
        )
    with terminal.telling_failures(), terminal.progress_console().status(f"{doing} …"):
        return asyncio.run(
            with_dead_store(url, work, timeout_s=settings.publish_timeout_s)
        )


def _filter(
    model: str | None,
    reason: str | None,
    agent: str | None,
    device: str | None,
    older: str | None,
) -> Filter:
    older_s = None if older is None else _duration(older)
    return Filter(
        model=model, reason=reason, agent=agent, device=device, older_s=older_s
    )


def _duration(text: str) -> float:
    with terminal.telling_failures():
        return read_duration_s(text)


def _choice(text: str) -> Choice:
    with terminal.telling_failures():
        return Choice.read(text)


def _which(id_: str | None, wanted: Filter, *, every: bool) -> Choice | Filter:
    if (id_ is None) is not every:
        terminal.fail("say which: either the ID of a request, or --all")
    if id_ is None:
        return wanted
    if wanted != Filter():
        terminal.fail("an ID names one request: the options that choose are for --all")
    return _choice(id_)


def _ask_whether_to_purge(*, json: bool) -> None:
    if json or not sys.stdin.isatty():
        terminal.fail("purging them all needs --yes where nobody can be asked")
    typer.confirm("Purge every dead letter that these options choose?", abort=True)


def _save(file: Path, body: bytes, *, force: bool) -> None:
    if file.exists() and not force:
        terminal.fail(f"{file} is there already: --force replaces it")
    with terminal.telling_failures():
        part = file.with_name(file.name + ".part")
        # A request is its device's own data: for this user's eyes only.
        with open(part, "wb", opener=lambda p, f: os.open(p, f, 0o600)) as out:
            out.write(body)
        part.replace(file)


def _say(tally: _Tally, verb: str, *, json: bool) -> None:
    if json:
        terminal.print_json(asdict(tally))
        return
    terminal.note(f"{verb} {tally.letters} letters with {tally.requests} requests")
    if tally.passed_over:
        terminal.warn(f"{tally.passed_over} stay; the last of them: {tally.fault}")
