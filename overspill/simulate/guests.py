"""Who visits a fleet that is somebody else's: identities, what they trust, what they serve.

Nothing is guessed: what is missing is refused with where to get it.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final
from urllib.parse import quote, urlsplit, urlunsplit

from broker.link import BadUrl, without_password
from broker.mqtt.target import MqttTarget
from broker.node import Node
from broker.topics import BadId, check_id

MAX_PASSWORDS_BYTES: Final = 4 * 1024**2
MAX_ROOT_BYTES: Final = 1024**2
MANIFEST: Final = "manifest.json"


class BadGuests(ValueError):
    """Something is missing; says what, and where it comes from."""


@dataclass(frozen=True, slots=True)
class Guests:
    """Simulated agents of a fleet that runs already.

    Attributes:
        broker: where, without a password.
        urls: the broker with the credentials of each.
        root: the metadata that they trust from the start.
        model: that they serve.
        serving: the folder of the bundle that they come with; None: they have none.
        version: of that bundle.
    """

    broker: str
    urls: tuple[str, ...] = field(repr=False)
    root: Path
    model: str
    serving: Path | None = None
    version: str | None = None


def invite(  # noqa: PLR0913 - each is an option of the command
    broker: str,
    *,
    passwords: Path | None,
    prefix: str,
    agents: int,
    root: Path | None,
    model: str | None,
    serving: Path | None,
) -> Guests:
    """The first agents, by name, whose names begin with the prefix.

    Args:
        broker: an MQTT URL, or the folder of a private node.
        passwords: a file of lines NAME=PASSWORD; the node's own when None.
        prefix: of the names of simulated agents; of no others, because whoever connects
            by a name takes its session.
        agents: how many.
        root: as `Guests.root`; None is refused, as no model is.
        model: as `Guests.model`.
        serving: as `Guests.serving`.

    Raises:
        BadGuests: something is missing or does not fit.
        NodeError: the node's folder is damaged.
    """
    address, known = _known(broker, passwords)
    names = sorted(name for name in known if name.startswith(prefix))
    if len(names) < agents:
        raise BadGuests(
            f"{agents} agents need as many identities, and {len(names)} are known whose "
            f"names begin with {prefix!r}: give users of {without_password(address)} such "
            "names (`overspill broker up --agents`, or AGENTS of deploy/render.py), or "
            "ask for fewer with --agents"
        )
    if model is None:
        raise BadGuests("--model is missing: the name of the model that they serve")
    return Guests(
        broker=without_password(address),
        urls=tuple(_url(address, name, known[name]) for name in names[:agents]),
        root=_checked_root(root),
        model=model,
        serving=serving,
        version=None if serving is None else _version(serving, model),
    )


def _known(broker: str, passwords: Path | None) -> tuple[str, Mapping[str, str]]:
    """The broker's URL, and the passwords of those who may connect."""
    if "://" in broker:
        if passwords is None:
            raise BadGuests(
                "--passwords is missing: a file of lines NAME=PASSWORD of the agents, as "
                "deploy/render.py writes it"
            )
        return _checked_url(broker), _read_passwords(passwords)
    folder = Path(broker)
    if not (folder / "node.json").exists():
        raise BadGuests(
            f"{broker} is neither the URL of a broker (mqtt://HOST:1883) nor the folder "
            "of `overspill broker up`"
        )
    info = Node.load(folder).info
    # Whoever it is: the name and the password are replaced by each agent's.
    address = f"mqtt://127.0.0.1:{info.mqtt_port}"
    if passwords is not None:
        return address, _read_passwords(passwords)
    return address, {name: info.passwords[name] for name in info.agents}


def _checked_url(url: str) -> str:
    try:
        target = MqttTarget.from_url(url)
    except BadUrl as error:
        raise BadGuests(str(error)) from error
    if target.username is not None:
        raise BadGuests(
            f"{without_password(url)} names a user: each agent is one of its own, whose "
            "password comes from --passwords"
        )
    return url


def _read_passwords(file: Path) -> Mapping[str, str]:
    try:
        with file.open("rb") as opened:
            text = opened.read(MAX_PASSWORDS_BYTES).decode()
    except (OSError, UnicodeDecodeError) as error:
        raise BadGuests(f"{file} cannot be read: {error}") from error
    known = {}
    for number, line in enumerate(text.splitlines(), 1):
        name, equals, password = line.strip().partition("=")
        if not name or name.startswith("#") or "/" in name:
            continue  # of other accounts, such as those of a local broker
        if not equals:
            raise BadGuests(f"{file} line {number} is not NAME=PASSWORD")
        try:
            known[check_id("agent", name)] = password
        except BadId as error:
            raise BadGuests(f"{file} line {number}: {error}") from error
    return known


def _url(address: str, name: str, password: str) -> str:
    parts = urlsplit(address)
    who = f"{quote(name, safe='')}:{quote(password, safe='')}@"
    return urlunsplit(parts._replace(netloc=who + parts.netloc))


def _checked_root(root: Path | None) -> Path:
    if root is None:
        raise BadGuests(
            "--root is missing: the fleet's trust/root.json, which agents are "
            "provisioned with"
        )
    try:
        with root.open("rb") as opened:
            document = json.loads(opened.read(MAX_ROOT_BYTES))
        kind = document["signed"]["_type"]
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise BadGuests(f"{root} is no root of a fleet: {error}") from error
    if kind != "root":
        raise BadGuests(f"{root} is metadata of the role {kind}, not a root")
    return root


def _version(serving: Path, model: str) -> str:
    try:
        manifest = json.loads((serving / MANIFEST).read_bytes())
        name, version = manifest["name"], manifest["version"]
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise BadGuests(f"{serving} is no folder of a bundle: {error}") from error
    if name != model:
        raise BadGuests(f"{serving} holds a bundle of {name}, not of {model}")
    return str(version)
