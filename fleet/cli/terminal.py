"""How every command speaks: results on standard output, the rest on standard error.

A failure is one line and exit code 1. With `--json`, standard output holds one JSON
document and nothing else.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated, Any, Final, NoReturn

import typer
from pydantic import ValidationError
from rich.console import Console

from broker.link import BadUrl
from bundle.pack import BundleRejected
from bundle.seal import SealRejected
from bundle.tree import BadPlace
from bundle.trust.errors import KeyRejected, NoTrust, TrustRefused
from bundle.trust.keys import Passphrase
from fleet.adapters.audit_head import HeadUnreadable
from fleet.adapters.dead_store import StoreUnavailable
from fleet.adapters.fleet_file import BadFile
from fleet.adapters.registry import AlreadyPublished
from fleet.adapters.state.database import DatabaseUnavailable
from fleet.adapters.state.engines import BadDatabaseUrl
from fleet.adapters.trust_home import passphrase_from
from fleet.app import Fleet
from fleet.core.letters import BadChoice
from fleet.core.orders import BadOrder
from fleet.settings import FleetSettings

EXPECTED: Final = (
    AlreadyPublished,
    BadChoice,
    BadFile,
    BadDatabaseUrl,
    BadOrder,
    BadPlace,
    BadUrl,
    BundleRejected,
    DatabaseUnavailable,
    HeadUnreadable,
    KeyRejected,
    NoTrust,
    OSError,
    SealRejected,
    StoreUnavailable,
    TrustRefused,
)

Home = Annotated[
    Path | None,
    typer.Option(
        "--home",
        help="The fleet's folder. Default: OVERSPILL_FLEET_HOME, else "
        "~/.local/share/overspill/fleet.",
        file_okay=False,
    ),
]
AsJson = Annotated[
    bool, typer.Option("--json", help="Print one JSON document, for scripts.")
]
AsJsonLines = Annotated[
    bool, typer.Option("--json", help="Print one JSON document a line, for scripts.")
]
AmqpUrl = Annotated[
    str | None,
    typer.Option(
        "--amqp-url",
        help="RabbitMQ, as amqp://user:password@host:port/vhost. Default: "
        "OVERSPILL_FLEET_AMQP_URL, which other users of this machine cannot read.",
    ),
]


def read_settings(home: Path | None, amqp_url: str | None = None) -> FleetSettings:
    """The settings of the environment, with what the command line says above them."""
    said: dict[str, Any] = {"home": home, "amqp_url": amqp_url}
    try:
        return FleetSettings(
            **{name: value for name, value in said.items() if value is not None}
        )
    except ValidationError as error:
        fault = error.errors(include_url=False, include_input=False)[0]
        name = "_".join(str(part) for part in fault["loc"])
        fail(f"OVERSPILL_FLEET_{name.upper()}: {fault['msg']}")


@contextmanager
def opened(settings: FleetSettings) -> Iterator[Fleet]:
    """The fleet, with every expected failure told in one line."""
    with telling_failures(), Fleet(settings, ask=ask_passphrase) as fleet:
        yield fleet


def ask_passphrase(key: Path) -> bytes | None:
    """Ask whoever is at the terminal for a key's passphrase; None when nobody is."""
    return _prompt(f"passphrase of {key}", twice=False)


def new_passphrase(key: str) -> bytes:
    """The passphrase for a key that is being made.

    Raises:
        KeyRejected: none is configured, and nobody is at the terminal.
    """
    found = _said_passphrase() or _prompt(f"new passphrase for {key}", twice=True)
    if not found:
        raise KeyRejected(
            "keys are encrypted with a passphrase: set OVERSPILL_FLEET_PASSPHRASE or "
            "OVERSPILL_FLEET_PASSPHRASE_FILE, run this on a terminal to be asked, or "
            "use --dev to try things out without"
        )
    return found


def passphrases() -> Passphrase:
    """The passphrase of the settings, or of whoever is at the terminal."""
    return lambda key: _said_passphrase() or ask_passphrase(key)


def _said_passphrase() -> bytes | None:
    settings = read_settings(None)
    said = settings.passphrase
    text = None if said is None else said.get_secret_value()
    return passphrase_from(text, settings.passphrase_file)


def _prompt(text: str, *, twice: bool) -> bytes | None:
    if not sys.stdin.isatty():
        return None
    said: str = typer.prompt(text, hide_input=True, confirmation_prompt=twice, err=True)
    return said.encode() or None


@contextmanager
def telling_failures() -> Iterator[None]:
    """Turn what an operator can mend into one line and exit code 1."""
    try:
        yield
    except EXPECTED as error:
        fail(_sentence(error))


def fail(reason: str) -> NoReturn:
    """Say why, and end the command with exit code 1.

    Raises:
        typer.Exit: always.
    """
    complain(reason)
    raise typer.Exit(1)


def complain(reason: str) -> None:
    """Say what is wrong; the command goes on, and ends with exit code 1."""
    sys.stderr.write(f"error: {' '.join(reason.split())}\n")


def fail_with(reasons: Sequence[str]) -> NoReturn:
    """Say several reasons, a line each, and end the command with exit code 1.

    Raises:
        typer.Exit: always.
    """
    for each in reasons:
        sys.stderr.write(f"error: {each}\n")
    raise typer.Exit(1)


def warn(text: str) -> None:
    """Say something that is no failure."""
    sys.stderr.write(f"warning: {text}\n")


def note(text: str) -> None:
    """Say what was done."""
    sys.stdout.write(f"{text}\n")


def print_json(document: Any) -> None:  # noqa: ANN401 - whatever JSON can hold
    """The one JSON document of a command."""
    sys.stdout.write(json.dumps(document, indent=2) + "\n")


def tables() -> Console:
    """Where tables go. They are as wide as they need when nobody looks."""
    return Console() if sys.stdout.isatty() else Console(width=200)


def progress_console() -> Console:
    """Where progress goes: standard error, so that it never mixes with a result."""
    return Console(stderr=True)


def age(now_ms: int, then_ms: int | None) -> str:
    """How long ago, for a person."""
    if then_ms is None:
        return "never"
    return lasts(max(0, now_ms - then_ms) / 1000)


def lasts(seconds: float) -> str:
    """A length of time, for a person."""
    for unit, length in (("d", 86_400), ("h", 3600), ("min", 60)):
        if seconds >= 2 * length:
            return f"{seconds / length:.0f} {unit}"
    return f"{max(0.0, seconds):.0f} s"


def size(size_bytes: int) -> str:
    """A number of bytes, for a person."""
    if size_bytes < 10_000:
        return f"{size_bytes} B"
    if size_bytes < 10_000_000:
        return f"{size_bytes / 1000:.1f} kB"
    return f"{size_bytes / 1_000_000:.1f} MB"


def _sentence(error: Exception) -> str:
    if isinstance(error, OSError) and error.strerror:
        where = f"{error.filename}: " if error.filename else ""
        # Only folders are made in a way that minds what is there already.
        is_file = isinstance(error, FileExistsError | NotADirectoryError)
        return f"{where}{'is no folder' if is_file else error.strerror}"
    return str(error)
