"""`overspill load`: requests by schedule, whatever the answers do, and what came of them."""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Mapping, Sequence
from dataclasses import replace
from itertools import chain
from pathlib import Path
from typing import Annotated, Final

import typer
from rich.console import Console

from broker.codec import MAX_ENVELOPE_BYTES
from broker.messages import Priority
from broker.topics import check_id
from overspill.interruption import Interrupted, run_until_interrupted
from overspill.load.arrivals import Arrivals, Replay, Spacing, Steady, read_bursts
from overspill.load.doors import Via, find_door
from overspill.load.mix import Bounds, Choice, Mix, Payload, Plan
from overspill.load.payloads import read_payloads
from overspill.load.picture import CannotDraw, check_can_draw, draw
from overspill.load.quantities import (
    BadQuantity,
    duration_s,
    rate_per_s,
    weighted,
)
from overspill.load.report import FORMAT, show
from overspill.load.run import Patience
from overspill.load.session import Session
from overspill.load.sweep import read_steps
from overspill.load.trace import read_trace

NOT_VALID: Final = 3
NOTHING_ANSWERED: Final = 4
HERE: Final = Path("-")
DEFAULT_S: Final = 10.0


def load(  # noqa: PLR0913 - each is an option of the command
    *,
    model: Annotated[
        str, typer.Option(help="Which models, with shares: fashion or a:70%,b:30%.")
    ],
    payload: Annotated[
        list[str],
        typer.Option(
            metavar="[MODEL=]SPEC",
            help="What to send: a folder of images, an image, FILE.npz, "
            "FILE.npz#ARRAY (as PNG), random:NAME=float32[1,28,28,1], "
            "model:FILE.tflite (random, of its shape), or a size such as 1KiB.",
        ),
    ],
    via: Annotated[
        Via,
        typer.Option(
            help="mqtt: to RabbitMQ, as agents. device: to an agent's local broker, as "
            "devices. queue: straight to RabbitMQ over AMQP."
        ),
    ] = Via.MQTT,
    url: Annotated[
        list[str] | None,
        typer.Option(
            envvar="OVERSPILL_LOAD_URL",
            help="The broker: mqtt://AGENT:PASSWORD@HOST for each agent, "
            "mqtt://HOST for devices, amqp://USER:PASSWORD@HOST/VHOST for the queue.",
        ),
    ] = None,
    broker: Annotated[
        Path | None,
        typer.Option(
            metavar="DIR",
            help="Instead of --url: the folder of `overspill broker up`, or "
            ".overspill/up/rabbitmq of `overspill up`.",
        ),
    ] = None,
    rate: Annotated[
        str | None, typer.Option(help="Requests a second, on average: 200/s.")
    ] = None,
    arrivals: Annotated[
        Spacing, typer.Option(help="How they are spaced, also within bursts.")
    ] = Spacing.POISSON,
    bursts: Annotated[
        str | None, typer.Option(help="Instead of --rate: 200/s:1s,20/s:4s, repeated.")
    ] = None,
    trace: Annotated[
        Path | None,
        typer.Option(help="Instead of --rate: replay a .csv or .jsonl of offset_s, …"),
    ] = None,
    for_: Annotated[
        str | None,
        typer.Option(
            "--for",
            metavar="TIME",
            help="Measure for so long.",
            show_default="10s, or all of a trace",
        ),
    ] = None,
    requests: Annotated[
        int, typer.Option(min=1, help="Measure at most so many.")
    ] = 1_000_000,
    warmup: Annotated[
        str,
        typer.Option(metavar="TIME", help="Before: sent, not measured. 0 for none."),
    ] = "0",
    deadline: Annotated[
        str, typer.Option(help="Deadlines, with shares: 30ms:50%,150ms:50%.")
    ] = "10s",
    class_: Annotated[
        str, typer.Option("--class", help="Classes, with shares: hi:10%,norm:90%.")
    ] = "norm",
    agents: Annotated[
        int, typer.Option(min=1, max=1000, help="How many take part (mqtt, queue).")
    ] = 1,
    devices: Annotated[
        int, typer.Option(min=1, max=1000, help="How many take part (device).")
    ] = 1,
    envelope: Annotated[
        int,
        typer.Option(min=1, max=1024, help="Requests that travel together."),
    ] = 1,
    spill: Annotated[
        bool, typer.Option("--spill", help="Devices ask for the cloud each time.")
    ] = False,
    sweep: Annotated[
        str | None,
        typer.Option(
            help="Several runs: 20%,60%,90%,110% of --rate, or 100,200,400/s."
        ),
    ] = None,
    seed: Annotated[int, typer.Option(help="The same seed sends the same.")] = 1,
    lost_after: Annotated[
        str,
        typer.Option(metavar="TIME", help="Beyond its deadline, a request is lost."),
    ] = "5s",
    max_lateness: Annotated[
        str,
        typer.Option(
            metavar="TIME", help="The generator's own p99 lateness that is allowed."
        ),
    ] = "10ms",
    json_file: Annotated[
        Path | None,
        typer.Option(
            "--json", metavar="FILE", help="Write all figures there; - is here."
        ),
    ] = None,
    picture: Annotated[
        Path | None,
        typer.Option(metavar="FILE", help="Of a sweep: a .png or .svg of it."),
    ] = None,
) -> None:
    """Send requests by schedule, whatever the answers do, and say what came of them.

    Latency counts from the time that a request was meant to leave. Goodput is the
    share of what was offered that was answered within its deadline.

    Exit code 0: measured. 1: it could not be (no broker, wrong password, …). 2: wrong
    command line. 3: the generator could not keep its schedule, so the figures are not
    valid. 4: nothing was answered. 130: interrupted, with the figures so far.
    """
    try:
        base, choices = _arrivals(rate, arrivals, bursts, trace)
        steps = (1.0,) if sweep is None else read_steps(sweep, base.rate_per_s)
        plan = Plan(
            base,
            Mix(
                models=weighted(model, lambda name: check_id("model", name)),
                payloads={},
                deadlines_s=weighted(deadline, duration_s),
                priorities=weighted(class_, _priority),
                senders=devices if via is Via.DEVICE else agents,
            ),
            Bounds(
                for_s=_long_s(base, steps) if for_ is None else duration_s(for_),
                requests=requests,
                warmup_s=_duration_or_0(warmup),
                envelope=envelope,
            ),
            seed,
            choices,
        )
        _check_envelope(plan, via)
        session = Session(
            door=find_door(
                via, url or [], broker, senders=plan.mix.senders, spill=spill
            ),
            plan=_with_payloads(plan, payload),
            steps=steps,
            patience=Patience(lost_after_s=duration_s(lost_after)),
            max_lateness_s=duration_s(max_lateness),
        )
        _check_outputs(json_file, picture, steps=len(session.steps))
    except (ValueError, CannotDraw) as error:
        raise typer.BadParameter(str(error)) from error
    code = _perform(session)
    _tell(session, via, json_file=json_file, picture=picture)
    raise typer.Exit(code)


def _perform(session: Session) -> int:
    """Do the runs; the exit code."""
    progress = Console(stderr=True)
    try:
        run_until_interrupted(lambda: session.perform(progress))
    except Interrupted as end:
        progress.print("interrupted: these are the figures so far", highlight=False)
        return end.exit_code
    if not session.answered:
        return NOTHING_ANSWERED
    return 0 if session.valid else NOT_VALID


def _tell(
    session: Session, via: Via, *, json_file: Path | None, picture: Path | None
) -> None:
    if not session.runs:
        return
    if json_file is not None:
        text = json.dumps(
            {
                "format": FORMAT,
                "via": via.value,
                "seed": session.plan.seed,
                "envelope": session.plan.bounds.envelope,
                "senders": session.plan.mix.senders,
                "warmup_s": session.plan.bounds.warmup_s,
                "lost_after_s": session.patience.lost_after_s,
                "runs": session.runs,
            },
            indent=2,
        )
        if json_file == HERE:
            sys.stdout.write(text + "\n")
        else:
            json_file.write_text(text + "\n")
    if picture is not None and session.runs[1:]:
        models = ", ".join(session.plan.mix.models.values)
        draw(picture, session.runs, title=f"{models} via {via.value}")
    # What a script reads is not mixed with what a person does.
    show(_console(stderr=json_file == HERE), session.runs)


def _arrivals(
    rate: str | None, spacing: Spacing, bursts: str | None, trace: Path | None
) -> tuple[Arrivals, tuple[Choice, ...]]:
    if sum(each is not None for each in (rate, bursts, trace)) != 1:
        raise BadQuantity("give one of --rate, --bursts and --trace")
    if trace is not None:
        found = read_trace(trace)
        return found.arrivals, found.choices
    if bursts is not None:
        return Steady(read_bursts(bursts), spacing), ()
    return Steady.at(rate_per_s(rate or ""), spacing), ()


def _long_s(arrivals: Arrivals, steps: Sequence[float]) -> float:
    """How long to measure when nobody says: all of a trace at its slowest."""
    if isinstance(arrivals, Replay):
        return arrivals.at_s[-1] / min(steps) + 1.0
    return DEFAULT_S


def _with_payloads(plan: Plan, specs: Sequence[str]) -> Plan:
    """The plan with payloads for each model that it may ask.

    Raises:
        BadPayload: they cannot be read.
        BadQuantity: a model has none, or a trace names one that there is not.
    """
    traced = [each.model for each in plan.choices if each.model]
    models = dict.fromkeys(chain(plan.mix.models.values, traced))
    own = {
        name: spec
        for name, equals, spec in (each.partition("=") for each in specs)
        if equals and name in models
    }
    of_all = [each for each in specs if each.partition("=")[0] not in own]
    if len(of_all) > 1:
        raise BadQuantity(
            f"--payload {of_all[1]}: give one for all models, and others as MODEL=SPEC"
        )
    read: dict[str, tuple[Payload, ...]] = {}
    for spec in {*own.values(), *of_all}:
        read[spec] = read_payloads(spec, seed=plan.seed)
    for model in models:
        if model not in own and not of_all:
            raise BadQuantity(f"no payload for {model}: add --payload {model}=SPEC")
    payloads = {model: read[own.get(model) or of_all[0]] for model in models}
    _check_choices(plan, payloads)
    largest = max(each.size_bytes for all_ in payloads.values() for each in all_)
    if largest * plan.bounds.envelope > MAX_ENVELOPE_BYTES:
        raise BadQuantity(
            f"{plan.bounds.envelope} payloads of {largest} bytes are over the limit of "
            f"{MAX_ENVELOPE_BYTES} bytes that the wire has for an envelope"
        )
    return replace(plan, mix=replace(plan.mix, payloads=payloads))


def _check_choices(plan: Plan, payloads: Mapping[str, Sequence[Payload]]) -> None:
    known = {model: {each.name for each in all_} for model, all_ in payloads.items()}
    for choice in plan.choices:
        models = [choice.model] if choice.model else plan.mix.models.values
        for model in models:
            if choice.payload is not None and choice.payload not in known[model]:
                raise BadQuantity(
                    f"the trace names payload {choice.payload!r}, which is not among "
                    f"those of {model}"
                )


def _check_envelope(plan: Plan, via: Via) -> None:
    if plan.bounds.envelope > 1 and (via is Via.DEVICE or plan.choices):
        raise BadQuantity("--envelope is not for devices, nor for a trace")


def _check_outputs(json_file: Path | None, picture: Path | None, *, steps: int) -> None:
    """Find out now and not after a minute."""
    for path in (json_file, picture):
        if path is None or path == HERE:
            continue
        target = path if path.exists() else path.absolute().parent
        if path.is_dir() or not os.access(target, os.W_OK):
            raise BadQuantity(f"{path} cannot be written: name another file")
    if picture is not None:
        check_can_draw(picture)
        if steps == 1:
            raise BadQuantity("--picture draws several rates: add --sweep")


def _priority(text: str) -> Priority:
    try:
        return Priority(text)
    except ValueError:
        raise BadQuantity(f"{text!r} is no class: {', '.join(Priority)} are") from None


def _duration_or_0(text: str) -> float:
    return 0.0 if text.strip() in {"0", "0s"} else duration_s(text)


def _console(*, stderr: bool) -> Console:
    """Where results go; as wide as they need when nobody looks."""
    console = Console(stderr=stderr)
    return console if console.is_terminal else Console(stderr=stderr, width=160)
