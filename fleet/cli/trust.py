"""`overspill trust`: who may sign models, what waits for signatures, and keys."""

from __future__ import annotations

from datetime import UTC, datetime
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.table import Table

from bundle.trust import roles
from bundle.trust.drafts import Drafts
from bundle.trust.errors import TrustRefused
from bundle.trust.keys import PUBLIC_SUFFIX, KeyRing, make_key
from fleet.adapters.trust_home import THERE_ALREADY
from fleet.app import Fleet
from fleet.cli import terminal
from fleet.cli.signing import (
    signature_json,
    tell_signature,
    tell_waiting,
    waiting_json,
    what,
)
from fleet.cli.terminal import AsJson, Home

SOON_S = 60 * roles.DAY_S

app = typer.Typer(
    help="Who may sign models: keys, signatures that wait, and what expires.",
    no_args_is_help=True,
)
Keys = Annotated[
    list[Path] | None,
    typer.Option(
        "--key",
        help="A private key (NAME.key, its NAME.pub beside it), or a folder of them. "
        "Those in the fleet's trust/ are used anyway. May be given several times.",
    ),
]
Dev = Annotated[
    bool,
    typer.Option(
        "--dev",
        help="Keys without a passphrase, all in one folder: to try things out.",
    ),
]


@app.callback()
def trust() -> None:
    """Who may sign models: keys, signatures that wait, and what expires."""


@app.command()
def init(
    root: Annotated[
        list[Path] | None,
        typer.Option(
            help="The NAME.pub of a holder of the root, made by overspill trust key on "
            "the holder's machine; three times. Without, three are made here."
        ),
    ] = None,
    targets: Annotated[
        list[Path] | None,
        typer.Option(help="The NAME.pub of one who signs models; as --root."),
    ] = None,
    home: Home = None,
    *,
    dev: Dev = False,
    json: AsJson = False,
) -> None:
    """Make the fleet's keys and sign its first root.

    Two of three root keys say who may sign; two of three targets keys sign models.
    They are offline: carry them to different places. The keys of the snapshot and the
    timestamp stay here, for the daemon. Agents are provisioned with trust/root.json.
    """
    with terminal.opened(terminal.read_settings(home)) as fleet:
        if fleet.trust.repository.is_there:
            raise TrustRefused(THERE_ALREADY)
        passphrase = None if dev else terminal.new_passphrase("the keys made here")
        made = fleet.trust.begin(
            root=root or (), targets=targets or (), passphrase=passphrase
        )
        done = fleet.sign()
        _record(fleet, "trust.init", "dev" if dev else "root and targets, 2 of 3")
        if json:
            terminal.print_json(
                {
                    "made": [str(each) for each in made],
                    "root": str(fleet.trust.root_file),
                    **signature_json(fleet.trust, done),
                }
            )
            return
        tell_signature(fleet.trust, done)
        _tell_keys(fleet, made, dev=dev)


def _tell_keys(fleet: Fleet, made: list[Path], *, dev: bool) -> None:
    offline = [each for each in made if each.parent == fleet.trust.offline]
    if dev:
        terminal.warn(
            f"THESE KEYS ARE FOR DEVELOPMENT: {len(made)} keys lie open in "
            f"{fleet.trust.home}, and whoever copies that folder can sign models for "
            "this fleet. For real devices use overspill trust init without --dev"
        )
    elif offline:
        terminal.note(
            f"{len(offline)} offline keys were made in {fleet.trust.offline}: carry "
            "each to another safe place (a .key and its .pub), and delete them here."
        )
    if fleet.trust.root_file.exists():
        terminal.note(
            f"Give agents {fleet.trust.root_file} (OVERSPILL_AGENT_TRUSTED_ROOT).\n"
            "Next: overspill model publish DIR"
        )


@app.command()
def key(
    file: Annotated[
        Path, typer.Argument(metavar="NAME.key", help="Where; never written over.")
    ],
    *,
    dev: Dev = False,
    json: AsJson = False,
) -> None:
    """Make one key, on the machine of who holds it; needs no fleet.

    Keep NAME.key and its passphrase; give NAME.pub to who runs overspill trust init
    or overspill trust rotate.
    """
    with terminal.telling_failures():
        made = make_key(file, None if dev else terminal.new_passphrase(str(file)))
    public = file.with_suffix(PUBLIC_SUFFIX)
    if json:
        terminal.print_json(
            {"key": str(file), "public": str(public), "key_id": made.key_id}
        )
        return
    terminal.note(f"made {file} (keep it) and {public} (give it away): {made.key_id}")


@app.command()
def status(home: Home = None, *, json: AsJson = False) -> None:
    """Say what is signed, by whom, until when, and what waits. Exit code 2: mend it."""
    with terminal.opened(terminal.read_settings(home)) as fleet:
        rows = _roles(fleet)
        waiting = fleet.trust.repository.signing.waiting()
        names = fleet.trust.repository.key_names()
        at_hand = {names.get(each, each) for each in fleet.trust.ring().at_hand()}
    bad = [each for each in rows if each["state"] != "ok"]
    if json:
        terminal.print_json(
            {
                "root": str(fleet.trust.root_file),
                "roles": rows,
                "keys_at_hand": sorted(at_hand),
                "waiting": waiting_json(waiting, names),
            }
        )
    else:
        table = Table("role", "version", "expires", "keys (* at hand)", "needs")
        for each in rows:
            keys = [f"{name}*" if name in at_hand else name for name in each["keys"]]
            table.add_row(
                each["role"],
                str(each["version"]),
                f"{each['expires'][:10]} {'' if each['state'] == 'ok' else each['state']}",
                ", ".join(keys),
                f"{each['threshold']} of {len(keys)}",
            )
        terminal.tables().print(table)
        tell_waiting(waiting, names)
        for each in bad:
            terminal.warn(f"{what(each['role'])} {each['state']}: {_remedy(each)}")
    if bad or waiting:
        raise typer.Exit(2)


def _remedy(row: dict[str, Any]) -> str:
    if row["role"] in roles.ONLINE:
        return "let the daemon run (overspill fleet run), or overspill trust sign"
    return "overspill trust sign --renew"


def _roles(fleet: Fleet) -> list[dict[str, Any]]:
    published = fleet.trust.repository.published
    root = fleet.trust.repository.root()
    names = fleet.trust.repository.key_names()
    now_s = fleet.clock.wall_ms() / 1000.0
    found = [
        (roles.ROOT, root),
        (roles.TIMESTAMP, published.timestamp()),
        (roles.SNAPSHOT, published.snapshot()),
        (roles.TARGETS, published.targets(roles.TARGETS)),
        *((role, published.targets(role)) for role in published.model_roles()),
    ]
    rows = []
    for role, metadata in found:
        if metadata is None:
            continue
        holder = root.signed.roles[roles.kind(role)]
        left_s = metadata.signed.expires.timestamp() - now_s
        soon_s = SOON_S if role not in roles.ONLINE else roles.LIFE_S[role] / 4
        rows.append(
            {
                "role": role,
                "version": metadata.signed.version,
                "expires": datetime.fromtimestamp(
                    metadata.signed.expires.timestamp(), UTC
                ).isoformat(),
                "state": "has expired"
                if left_s <= 0
                else "expires soon"
                if left_s < soon_s
                else "ok",
                "keys": sorted(names.get(each, each) for each in holder.keyids),
                "threshold": holder.threshold,
            }
        )
    return rows


@app.command()
def sign(
    key: Keys = None,
    drafts: Annotated[
        Path | None,
        typer.Option(
            help="A copy of the fleet's trust/drafts, on a machine that has nothing "
            "else of the fleet: sign there with --key, and bring it back.",
            exists=True,
            file_okay=False,
        ),
    ] = None,
    home: Home = None,
    *,
    renew: Annotated[
        bool,
        typer.Option(
            "--renew", help="First draft everything anew, to live for another term."
        ),
    ] = False,
    json: AsJson = False,
) -> None:
    """Sign what waits with the keys at hand; agents see it once two have signed."""
    if drafts is not None:
        _sign_away(drafts, key or [], json=json)
        return
    with terminal.opened(terminal.read_settings(home)) as fleet:
        if renew:
            fleet.trust.repository.extend()
        done = fleet.sign(key or ())
        fleet.trust.repository.signing.renew(fleet.trust.ring())
        if json:
            terminal.print_json(signature_json(fleet.trust, done))
        else:
            tell_signature(fleet.trust, done)
            for role in done.settled.shown:
                terminal.note(f"agents see {what(role)} now")
            if not done.settled.shown and not done.settled.waiting:
                terminal.note("nothing waits for a signature")
    if key and done.signed.locked:
        raise typer.Exit(1)  # a key that was named did not sign


def _sign_away(folder: Path, keys: list[Path], *, json: bool) -> None:
    """Sign on a machine that has but the drafts and a key."""
    with terminal.telling_failures():
        if not keys:
            raise TrustRefused("say with which key: --key FILE")
        ring = KeyRing((), terminal.passphrases(), keys)
        copies = Drafts(folder)
        if not copies.roles():
            raise TrustRefused(
                f"{folder} holds no draft: copy all of trust/drafts from the fleet's home"
            )
        signed = [
            (role, path.stem)
            for role in copies.roles()
            for path in ring.at_hand().values()
            if copies.sign(role, ring.signer(path))
        ]
    if json:
        terminal.print_json([{"role": role, "key": name} for role, name in signed])
        return
    for role, name in signed:
        terminal.note(f"signed {what(role)} with {name}")
    terminal.note(f"Next: bring {folder} back, and run overspill trust sign there")


@app.command()
def rotate(  # noqa: PLR0913 - one option each
    role: Annotated[str, typer.Argument(help="root, targets, snapshot or timestamp.")],
    old: Annotated[
        str | None,
        typer.Option(
            help="Name or id of the key that goes; see overspill trust status."
        ),
    ] = None,
    new: Annotated[
        Path | None,
        typer.Option(help="NAME.pub of the key that comes; one is made here without."),
    ] = None,
    key: Keys = None,
    home: Home = None,
    *,
    dev: Dev = False,
    json: AsJson = False,
) -> None:
    """Replace a key, such as one that was lost or stolen; two root keys must sign.

    After the theft of an online key replace both, snapshot and timestamp: agents then
    forget what the thief made them believe.
    """
    with terminal.opened(terminal.read_settings(home)) as fleet:
        names = fleet.trust.repository.key_names()
        gone, came = fleet.trust.rotate(
            role,
            old,
            new,
            lambda path: None if dev else terminal.new_passphrase(str(path)),
        )
        _record(fleet, "trust.rotate", f"{role}: {gone} by {came.key_id}")
        done = fleet.sign(key or ())
        if json:
            terminal.print_json(
                {
                    "role": role,
                    "old": names.get(gone, gone),
                    "new": came.name,
                    **signature_json(fleet.trust, done),
                }
            )
            return
        terminal.note(f"{role}: {came.name} takes the place of {names.get(gone, gone)}")
        tell_signature(fleet.trust, done)


@app.command()
def revoke(
    model: Annotated[str, typer.Argument(help="The model.")],
    version: Annotated[str, typer.Argument(help="The version, in all its epochs.")],
    key: Keys = None,
    home: Home = None,
    *,
    json: AsJson = False,
) -> None:
    """Take back the signatures of a version: no agent installs it from then on.

    Agents that serve it go on until a rollout gives them another.
    """
    with terminal.opened(terminal.read_settings(home)) as fleet:
        gone = fleet.trust.repository.revoke(model, version)
        _record(fleet, "trust.revoke", f"{model} {version}")
        done = fleet.sign(key or ())
        if json:
            terminal.print_json(
                {
                    "model": model,
                    "version": version,
                    "epochs": [each.epoch for each in gone],
                    **signature_json(fleet.trust, done),
                }
            )
            return
        terminal.note(f"{model} {version} is no longer to be signed")
        tell_signature(fleet.trust, done)


def _record(fleet: Fleet, what_: str, subject: str) -> None:
    with fleet.database.writing() as ledger:
        fleet.record_trust(ledger, what_, subject)
