# ruff: noqa: INP001 - a program in a folder of configuration, not a package
"""Write what the broker of a deployment loads. No password enters a committed file.

`reference` writes `rabbitmq/definitions.json`: the whole topology, with users that
cannot log in, because an empty password hash matches no password. It is for reading
and for review; loading it by accident opens nothing.

`secrets` writes a folder that is not committed: the same topology with this
deployment's passwords, and an environment file for each program. A password that is
missing is made; one that is there is kept, so running it again changes nothing but
what `.env` changed.
"""

from __future__ import annotations

import base64
import hashlib
import json
import os
import re
import secrets
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Final
from urllib.parse import urlsplit

import typer
from pydantic import Field, ValidationError
from pydantic_settings import BaseSettings, NoDecode, SettingsConfigDict

from broker import topology
from broker.topics import BadId, check_id

HERE: Final = Path(__file__).resolve().parent
REFERENCE: Final = HERE / "rabbitmq" / "definitions.json"
REFERENCE_AGENT: Final = "agent-1"
REFERENCE_MODEL: Final = "fashion"

# Passwords travel inside URLs and environment files, so they hold nothing to escape.
PASSWORD: Final = re.compile(r"[A-Za-z0-9._~-]{12,256}\Z")
NEW_PASSWORD_BYTES: Final = 24
# Mosquitto's own parameters (mosquitto_passwd of 2.0 writes the same).
MOSQUITTO_ITERATIONS: Final = 101
MOSQUITTO_SALT_BYTES: Final = 12
LOCAL_AGENT: Final = "agent"
TRUSTED_ROOT: Final = "/etc/overspill/trust/root.json"
TAKEN: Final = frozenset({"admin", "worker", "fleet", "guest"})

app = typer.Typer(add_completion=False, no_args_is_help=True, help=__doc__)


class BadDeployment(Exception):
    """`.env` or the passwords file cannot be used; says which line to mend."""


class DeploySettings(BaseSettings):
    """What `.env` says; compose reads the rest of the same file."""

    model_config = SettingsConfigDict(
        env_prefix="OVERSPILL_DEPLOY_", extra="ignore", hide_input_in_errors=True
    )

    agents: Annotated[str, NoDecode] = Field("", description="ids, comma separated")
    devices: Annotated[str, NoDecode] = Field("", description="ids, comma separated")
    models: Annotated[str, NoDecode] = Field("", description="ids, comma separated")
    cloud_url: str = Field(
        "mqtt://127.0.0.1:1883", description="where gateways reach the cloud's broker"
    )


@dataclass(frozen=True, slots=True)
class Deployment:
    """A checked `.env`."""

    agents: tuple[str, ...]
    devices: tuple[str, ...]
    models: tuple[str, ...]
    cloud_scheme: str
    cloud_address: str

    @classmethod
    def read(cls, env_file: Path) -> Deployment:
        """Read and check `env_file`; the process environment wins over it.

        Raises:
            BadDeployment: there is no such file, or a value cannot be used.
        """
        if not env_file.is_file():
            raise BadDeployment(
                f"there is no {env_file}: copy .env.example to .env beside it, edit "
                "it, and run this again"
            )
        try:
            said = DeploySettings(_env_file=env_file)
        except ValidationError as error:
            raise BadDeployment(f"{env_file}: {error}") from error
        agents = _ids(env_file, "OVERSPILL_DEPLOY_AGENTS", said.agents)
        taken = sorted(TAKEN.intersection(agents))
        if taken:
            raise BadDeployment(
                f"{env_file}: OVERSPILL_DEPLOY_AGENTS holds {taken[0]!r}, which is "
                "the name of another RabbitMQ user; call the agent something else"
            )
        devices = _ids(env_file, "OVERSPILL_DEPLOY_DEVICES", said.devices)
        if LOCAL_AGENT in devices:
            raise BadDeployment(
                f"{env_file}: OVERSPILL_DEPLOY_DEVICES holds {LOCAL_AGENT!r}, the "
                "agent's own name at Mosquitto; call the device something else"
            )
        scheme, address = _address(env_file, said.cloud_url)
        return cls(
            agents=agents,
            devices=devices,
            models=_ids(env_file, "OVERSPILL_DEPLOY_MODELS", said.models),
            cloud_scheme=scheme,
            cloud_address=address,
        )

    @property
    def accounts(self) -> tuple[str, ...]:
        """Every account that needs a password, as `server/user`."""
        return (
            *(f"rabbitmq/{name}" for name in ("admin", "worker", "fleet")),
            *(f"rabbitmq/{name}" for name in self.agents),
            *(f"mosquitto/{name}" for name in (LOCAL_AGENT, *self.devices)),
        )


def _ids(env_file: Path, variable: str, text: str) -> tuple[str, ...]:
    names = [part.strip() for part in text.split(",") if part.strip()]
    try:
        checked = tuple(check_id(variable, name) for name in names)
    except BadId as error:
        raise BadDeployment(f"{env_file}: {error}") from error
    if len(set(checked)) != len(checked):
        raise BadDeployment(f"{env_file}: {variable} names the same id twice")
    return checked


def _address(env_file: Path, url: str) -> tuple[str, str]:
    parts = urlsplit(url)
    if parts.scheme not in {"mqtt", "mqtts"} or not parts.hostname or parts.username:
        raise BadDeployment(
            f"{env_file}: OVERSPILL_DEPLOY_CLOUD_URL {url!r} is not an address: write "
            "mqtt://HOST:PORT or mqtts://HOST:PORT, with no user in it"
        )
    return parts.scheme, parts.netloc


def reference_definitions() -> dict[str, Any]:
    """The topology for one agent and one model, with users that cannot log in."""
    users = (
        topology.admin_user(),
        topology.worker_user(),
        topology.fleet_user(),
        topology.agent_user(REFERENCE_AGENT),
    )
    return topology.definitions(
        dict.fromkeys(users, ""), models=(REFERENCE_MODEL,), salt=b"demo"
    )


def deployed_definitions(
    deployment: Deployment, passwords: dict[str, str]
) -> dict[str, Any]:
    """The topology with this deployment's users and passwords."""
    users = (
        topology.admin_user(),
        topology.worker_user(),
        topology.fleet_user(),
        *(topology.agent_user(name) for name in deployment.agents),
    )
    return topology.definitions(
        {user: passwords[f"rabbitmq/{user.name}"] for user in users},
        models=deployment.models,
        salt=os.urandom(4),
    )


def mosquitto_hash(password: str, salt: bytes) -> str:
    """A password as Mosquitto's password file holds it.

    Source: mosquitto 2.0, `mosquitto_passwd`: type 7 is PBKDF2 with SHA-512.
    """
    digest = hashlib.pbkdf2_hmac(
        "sha512", password.encode(), salt, MOSQUITTO_ITERATIONS
    )
    coded = [base64.b64encode(part).decode() for part in (salt, digest)]
    return f"$7${MOSQUITTO_ITERATIONS}${coded[0]}${coded[1]}"


def read_passwords(file: Path) -> dict[str, str]:
    """The accounts and passwords of an earlier run, or of the operator's own hand.

    Raises:
        BadDeployment: a line is not `server/user=password`, or a password would
            have to be escaped in a URL.
    """
    if not file.is_file():
        return {}
    found: dict[str, str] = {}
    for number, line in enumerate(file.read_text().splitlines(), start=1):
        if not line.strip() or line.startswith("#"):
            continue
        account, _, password = line.partition("=")
        if PASSWORD.match(password) is None:
            raise BadDeployment(
                f"{file}, line {number}: {account[:80]!r} needs a password of 12 or "
                "more of A-Z a-z 0-9 . _ ~ - (it travels inside a URL)"
            )
        found[account] = password
    return found


def environment_files(
    deployment: Deployment, passwords: dict[str, str], *, trust: bool
) -> dict[str, dict[str, str]]:
    """What each program is told, by file name under the folder of secrets.

    With `trust`, agents are told where the fleet's root.json is; an agent that is
    pointed at a file that is not there does not start.
    """

    def rabbit(name: str) -> str:
        return f"{name}:{passwords[f'rabbitmq/{name}']}"

    files = {
        "worker.env": {
            "OVERSPILL_WORKER_AMQP_URL": f"amqp://{rabbit('worker')}@rabbitmq:5672/"
        },
        "fleet.env": {
            "OVERSPILL_FLEET_AMQP_URL": f"amqp://{rabbit('fleet')}@rabbitmq:5672/"
        },
    }
    trusted = {"OVERSPILL_AGENT_TRUSTED_ROOT": TRUSTED_ROOT} if trust else {}
    for name in deployment.agents[:1]:
        local = f"{LOCAL_AGENT}:{passwords[f'mosquitto/{LOCAL_AGENT}']}"
        files["agent.env"] = {
            "OVERSPILL_AGENT_AGENT_ID": name,
            "OVERSPILL_AGENT_CLOUD_URL": f"mqtt://{rabbit(name)}@rabbitmq:1883",
            "OVERSPILL_AGENT_LOCAL_URL": f"mqtt://{local}@mosquitto:1883",
            **trusted,
        }
    for name in deployment.agents:
        files[f"agents/{name}.env"] = {
            "OVERSPILL_AGENT_AGENT_ID": name,
            "OVERSPILL_AGENT_CLOUD_URL": (
                f"{deployment.cloud_scheme}://{rabbit(name)}@{deployment.cloud_address}"
            ),
            "OVERSPILL_AGENT_LOCAL_URL": "mqtt://127.0.0.1:1883",
            **trusted,
        }
    return files


def write_secrets(deployment: Deployment, out: Path) -> tuple[list[str], list[str]]:
    """Write all that `compose.yaml` and the gateways need under `out`.

    Returns:
        The accounts that got a new password, and those of an earlier run that
        `.env` no longer names (RabbitMQ keeps a user until it is deleted there).

    Raises:
        BadDeployment: the passwords file cannot be used.
    """
    store = out / "passwords"
    passwords = read_passwords(store)
    fresh = [name for name in deployment.accounts if name not in passwords]
    for account in fresh:
        passwords[account] = secrets.token_urlsafe(NEW_PASSWORD_BYTES)
    # Only the owner may enter the folder; what containers mount from inside it is
    # readable to all, because each runs under a user id of its own.
    out.mkdir(mode=0o700, parents=True, exist_ok=True)
    out.chmod(0o700)
    (out / "trust").mkdir(exist_ok=True)
    (out / "trust").chmod(0o755)
    _write(store, _lines(passwords), mode=0o600)
    _write(
        out / "rabbitmq" / "definitions.json",
        as_text(deployed_definitions(deployment, passwords)),
    )
    _write(
        out / "mosquitto" / "passwords",
        "".join(
            f"{name}:{mosquitto_hash(passwords[f'mosquitto/{name}'], _salt())}\n"
            for name in (LOCAL_AGENT, *deployment.devices)
        ),
    )
    trust = trusted_root(out).exists()
    for name, values in environment_files(deployment, passwords, trust=trust).items():
        _write(out / name, _lines(values), mode=0o600)
    left_over = [name for name in passwords if name not in deployment.accounts]
    return fresh, left_over


def trusted_root(out: Path) -> Path:
    """Where a copy of the fleet's root belongs under `out`."""
    return out / "trust" / "root.json"


def as_text(document: dict[str, Any]) -> str:
    """A definitions document as it is committed: sorted for readable differences."""
    return json.dumps(document, indent=2, sort_keys=True) + "\n"


def _salt() -> bytes:
    return os.urandom(MOSQUITTO_SALT_BYTES)


def _lines(values: dict[str, str]) -> str:
    return "".join(f"{name}={value}\n" for name, value in values.items())


def _write(file: Path, text: str, *, mode: int = 0o644) -> None:
    # Replaced whole: a broker that is booting reads the old file or the new one.
    if not file.parent.is_dir():
        file.parent.mkdir(parents=True)
        file.parent.chmod(0o755)  # whatever the umask: containers enter it
    draft = file.with_name(f".{file.name}.new")
    draft.touch(mode=0o600)
    draft.write_text(text)
    draft.chmod(mode)
    draft.replace(file)


@app.command()
def reference(
    check: Annotated[
        bool, typer.Option("--check", help="compare only; exit 1 when it differs")
    ] = False,
) -> None:
    """Write rabbitmq/definitions.json, the committed topology without passwords."""
    text = as_text(reference_definitions())
    if not check:
        _write(REFERENCE, text)
        typer.echo(f"wrote {REFERENCE}")
    elif not REFERENCE.is_file() or REFERENCE.read_text() != text:
        typer.echo(
            f"{REFERENCE} is not what broker/topology.py says: "
            "run python deploy/render.py reference",
            err=True,
        )
        raise typer.Exit(1)


@app.command("secrets")
def secrets_command(
    env: Annotated[Path, typer.Option(help="what to deploy")] = HERE / ".env",
    out: Annotated[Path, typer.Option(help="where to write")] = HERE / "secrets",
) -> None:
    """Write this deployment's definitions, passwords and environment files."""
    try:
        deployment = Deployment.read(env)
        fresh, left_over = write_secrets(deployment, out)
    except (BadDeployment, OSError) as error:
        typer.echo(str(error), err=True)
        raise typer.Exit(2) from error
    typer.echo(f"wrote {out}, which only you may read; {_many(fresh)} made")
    typer.echo("start:         docker compose -f deploy/compose.yaml up -d")
    typer.echo(
        "when it runs:  docker compose -f deploy/compose.yaml exec rabbitmq "
        "rabbitmqctl import_definitions /etc/overspill/rabbitmq/definitions.json"
    )
    for name in deployment.agents:
        typer.echo(f"gateway {name}: {out / 'agents' / name}.env is its agent.env")
    if not trusted_root(out).exists():
        typer.echo(
            "no root yet:   agents take no model updates until the fleet's root.json "
            f"is {trusted_root(out)} and this has run again"
        )
    for account in left_over:
        server, _, user = account.partition("/")
        if server == "rabbitmq":
            typer.echo(
                f"{account} is no longer in {env.name}: rabbitmqctl delete_user {user}, "
                f"then take it out of {out / 'passwords'}"
            )


def _many(accounts: Iterable[str]) -> str:
    count = len(list(accounts))
    return "no new password" if not count else f"{count} new passwords"


if __name__ == "__main__":
    app()
