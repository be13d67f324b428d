"""The command `overspill-worker`: run one member of the pool, or list what it would serve."""

from __future__ import annotations

import asyncio
import json
import logging
import tempfile
from collections.abc import Coroutine
from dataclasses import replace
from pathlib import Path
from typing import Annotated, Any, NoReturn

import typer
from pydantic import ValidationError

from broker.codec import explain
from broker.link import BadUrl
from bundle.tree import BadPlace
from cloud_worker.adapters.repository import (
    Candidate,
    Found,
    NoRepository,
    Refused,
    find_models,
)
from cloud_worker.adapters.signed_models import (
    NoTrustedRoot,
    SignedModels,
    signed_models,
)
from cloud_worker.core.policy import LATEST, Policy, Shares
from cloud_worker.core.spec import ServedModel
from cloud_worker.settings import WorkerSettings
from lifecycle.interpreter import collect_seldom
from lifecycle.logs import configure_logs
from lifecycle.pages import CannotListen
from lifecycle.signals import stop_on_signals
from lifecycle.tracing import TelemetryMissing
from lifecycle.watchdog import ServiceManager

app = typer.Typer(
    help="A member of the pool that answers spilled requests with TensorFlow.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
)

Models = Annotated[
    Path | None,
    typer.Option(
        help="Folder of NAME/VERSION/ with a SavedModel, .keras, .h5, .tflite or .onnx. "
        "[env: OVERSPILL_WORKER_MODELS]"
    ),
]
Only = Annotated[
    list[str] | None,
    typer.Option(help="Serve this model and no others; may be given again."),
]


@app.command()
def run(  # noqa: PLR0913 - the options of a command line
    *,
    amqp_url: Annotated[
        str | None,
        typer.Option(
            help="amqp://user:password@host:5672/vhost [env: OVERSPILL_WORKER_AMQP_URL]"
        ),
    ] = None,
    models: Models = None,
    only: Only = None,
    registry: Annotated[
        str | None,
        typer.Option(help="The fleet's registry; then model updates are served too."),
    ] = None,
    id_: Annotated[
        str | None, typer.Option("--id", help="Named in every result.")
    ] = None,
    max_batch: Annotated[int | None, typer.Option(help="Rows in one batch.")] = None,
    drain_s: Annotated[
        float | None, typer.Option(help="Seconds to finish what is held on SIGTERM.")
    ] = None,
    http_port: Annotated[
        int | None,
        typer.Option(help="Serve /healthz, /readyz and /metrics; 0: a free port."),
    ] = None,
    log_level: Annotated[
        str, typer.Option(help="debug, info, warning or error.")
    ] = "info",
) -> None:
    """Consume the queues of every model in the repository until SIGTERM or Ctrl-C.

    Every setting can also come from the environment, as OVERSPILL_WORKER_ and its
    name. Prints READY and the models once it consumes.
    """
    if log_level.upper() not in logging.getLevelNamesMapping():
        _give_up(f"--log-level {log_level!r}: use debug, info, warning or error")
    configure_logs(log_level)
    settings = _settings(
        amqp_url=amqp_url,
        models=models,
        only=tuple(only) if only else None,
        registry=registry,
        worker_id=id_,
        max_batch=max_batch,
        drain_s=drain_s,
        http_port=http_port,
    )
    try:
        _run_loop(_run(settings))
    except (NoRepository, BadUrl, CannotListen, TelemetryMissing) as error:
        _give_up(str(error))
    except KeyboardInterrupt:
        raise typer.Exit(130) from None


@app.command()
def models(
    *,
    models: Models = None,
    only: Only = None,
    as_json: Annotated[bool, typer.Option("--json", help="For a program.")] = False,
) -> None:
    """List what a worker would serve, and what it would pass over and why."""
    settings = _settings(models=models, only=tuple(only) if only else None)
    try:
        found = _found(settings)
    except (NoRepository, NoTrustedRoot, BadPlace, OSError) as error:
        _give_up(str(error))
    if as_json:
        typer.echo(json.dumps(_listing(found), indent=2))
        return
    for name, versions in found.models.items():
        typer.echo(f"{name} {_in_words(versions, found.policies.get(name))}")
    for refused in found.refused:
        typer.echo(f"passed over {refused.path}: {refused.reason}")


def _found(settings: WorkerSettings) -> Found:
    """What a worker would find that is started now; nothing is remembered of it."""
    found = find_models(
        settings.models, max_batch=settings.max_batch, only=settings.only
    )
    if settings.trusted_root is None:
        return found
    with tempfile.TemporaryDirectory(prefix="overspill-trust-") as seen:
        signed = signed_models(settings.trusted_root, Path(seen), settings.registry)
        return found if signed is None else _signed_only(found, signed)


def _signed_only(found: Found, signed: SignedModels) -> Found:
    why = {
        each.folder: signed.refusal(
            each.folder, each.source.name, each.source.version, state=""
        )
        for versions in found.models.values()
        for each in versions
    }
    return replace(
        found,
        models={
            name: tuple(each for each in versions if why[each.folder] is None)
            for name, versions in found.models.items()
        },
        refused=(
            *found.refused,
            *(Refused(folder, reason) for folder, reason in why.items() if reason),
        ),
    )


def _run_loop(main: Coroutine[Any, Any, None]) -> None:
    try:
        import uvloop  # noqa: PLC0415 - where there is no wheel, asyncio's own does
    except ImportError:
        asyncio.run(main)
    else:
        uvloop.run(main)


async def _run(settings: WorkerSettings) -> None:
    def ready(models: tuple[ServedModel, ...]) -> None:
        collect_seldom()
        shown = " ".join(f"{each.name}/{each.version}" for each in models)
        typer.echo(f"READY {settings.worker_id} {shown}")

    try:
        from cloud_worker.app import Worker  # noqa: PLC0415 - [cloud] may be missing
    except ModuleNotFoundError as error:
        _give_up(
            f"the Python module {error.name} is not installed: run "
            "`pip install 'overspill[cloud]'`"
        )
    worker = Worker(settings, on_ready=ready, service=ServiceManager.from_environment())
    await worker.run(stop_on_signals())


def _settings(**given: object) -> WorkerSettings:
    try:
        return WorkerSettings(
            **{name: value for name, value in given.items() if value is not None}  # type: ignore[arg-type] # validated there
        )
    except ValidationError as error:
        _give_up(f"setting {explain(error)}")


def _shares(versions: tuple[Candidate, ...], policy: Policy | None) -> Shares:
    """Who would answer if all of them can be loaded."""
    names = [each.source.version for each in versions]
    return policy.wanted(names, names) if policy is not None else {}


def _in_words(versions: tuple[Candidate, ...], policy: Policy | None) -> str:
    shares = _shares(versions, policy)
    served = [
        (f"{100 * shares[each]:g} % " if len(shares) > 1 else "")
        + f"{each} ({candidate.source.format})"
        for candidate in versions
        if (each := candidate.source.version) in shares
    ]
    words = [", ".join(served) or "is not served"]
    if policy is None or policy != LATEST:
        words.append(str(policy or "its policy.json is wrong"))
    others = [v for each in versions if (v := each.source.version) not in shares]
    if others:
        words.append(f"others: {', '.join(others)}")
    return "; ".join(words)


def _listing(found: Found) -> dict[str, Any]:
    return {
        "models": [
            {
                "name": name,
                "policy": None
                if (policy := found.policies.get(name)) is None
                else str(policy),
                "shares": _shares(versions, policy),
                "versions": [
                    {
                        "version": each.source.version,
                        "format": each.source.format,
                        "path": str(each.source.path),
                        "max_batch": each.source.max_batch,
                    }
                    for each in versions
                ],
            }
            for name, versions in found.models.items()
        ],
        "passed_over": [
            {"path": str(each.path), "reason": each.reason} for each in found.refused
        ],
    }


def _give_up(reason: str) -> NoReturn:
    typer.echo(f"overspill-worker: {reason}", err=True)
    raise typer.Exit(1)


def main() -> None:
    """Run the command line."""
    app()


if __name__ == "__main__":
    main()
