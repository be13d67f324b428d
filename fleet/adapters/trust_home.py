"""The fleet's trust on this machine: where keys and drafts lie, and who opens keys.

trust/keys/      the online keys, snapshot and timestamp
trust/offline/   the offline keys, until they are carried to safe places
trust/drafts/    what waits for signatures
trust/root.json  what agents are given at provisioning
"""

from __future__ import annotations

import fcntl
from collections.abc import Callable, Collection, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from bundle.trust import roles
from bundle.trust.errors import KeyRejected, TrustRefused
from bundle.trust.keys import (
    KEY_SUFFIX,
    PUBLIC_SUFFIX,
    KeyRing,
    Passphrase,
    PublicKey,
    make_key,
    read_public,
)
from bundle.trust.repository import Repository
from bundle.trust.signing import Settled, Signed

MAX_PASSPHRASE_BYTES: Final = 1024
OTHERS: Final = 0o077
THERE_ALREADY: Final = (
    "trust is set up already: see overspill trust status; a key is replaced by "
    "overspill trust rotate"
)


@dataclass(frozen=True, slots=True)
class Signature:
    """What signing did, and what became of it."""

    signed: Signed
    settled: Settled


class TrustHome:
    """Keys at hand, and the repository that they sign.

    Args:
        repository: drafts and what agents see.
        home: the folder `trust/`.
        passphrase: asked when an encrypted key is used.
    """

    def __init__(
        self, repository: Repository, home: Path, passphrase: Passphrase
    ) -> None:
        self.repository = repository
        self.home = home
        self._ask = passphrase
        self._told: dict[Path, bytes | None] = {}

    @property
    def root_file(self) -> Path:
        """What agents are given."""
        return self.home / "root.json"

    @property
    def online(self) -> Path:
        """The folder of the online keys."""
        return self.home / "keys"

    @property
    def offline(self) -> Path:
        """The folder in which offline keys are made."""
        return self.home / "offline"

    def ring(self, more: Sequence[Path] = ()) -> KeyRing:
        """The keys at hand, and those in `more` files or folders, which must be there."""
        return KeyRing([self.online, self.offline], self._passphrase, more)

    def _passphrase(self, path: Path) -> bytes | None:
        """Of a key, asked for once."""
        if path not in self._told:
            self._told[path] = self._ask(path)
        return self._told[path]

    @contextmanager
    def alone(self) -> Iterator[None]:
        """Two publishes at once must not take the same epoch."""
        self.home.mkdir(parents=True, exist_ok=True, mode=0o700)
        with (self.home / ".publishing").open("a") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)
            yield

    def begin(
        self,
        *,
        root: Sequence[Path] = (),
        targets: Sequence[Path] = (),
        passphrase: bytes | None,
    ) -> list[Path]:
        """Make the keys that are not given, and draft the first root and targets.

        Args:
            root: `.pub` files of the root's holders; none: three are made here.
            targets: the same for targets.
            passphrase: of the keys made here; None leaves them open.

        Returns:
            The key files that were made.

        Raises:
            TrustRefused: there is trust already.
            KeyRejected: a key that was given cannot be used.
        """
        if self.repository.is_there:
            raise TrustRefused(THERE_ALREADY)
        made: list[Path] = []
        holders = {
            role: [read_public(each) for each in given]
            or [
                self._make(self.offline / f"{role}-{number}", made, passphrase)
                for number in range(1, roles.OFFLINE_KEYS + 1)
            ]
            for role, given in ((roles.ROOT, root), (roles.TARGETS, targets))
        }
        online = [
            self._make(self.online / role, made, passphrase) for role in roles.ONLINE
        ]
        self.repository.begin(
            holders[roles.ROOT], holders[roles.TARGETS], online[0], online[1]
        )
        return made

    def sign(self, more: Sequence[Path] = ()) -> Signature:
        """Sign drafts with the keys at hand, and show what is complete.

        Raises:
            NoTrust: there is no trust yet.
            KeyRejected: a key at hand cannot be used.
        """
        self.repository.root()
        ring = self.ring(more)
        signed = self.repository.signing.sign(ring)
        return Signature(signed, self.repository.signing.settle(ring))

    def rotate(
        self,
        role: str,
        old: str | None,
        new: Path | None,
        passphrase: Callable[[Path], bytes | None],
    ) -> tuple[str, PublicKey]:
        """Draft that a key takes another's place.

        Args:
            role: one of the four.
            old: the id or name of the key that goes.
            new: the `.pub` of the key that comes; None: one is made here.
            passphrase: gives that of a key made here.

        Returns:
            The id of the key that goes, and the key that comes.

        Raises:
            TrustRefused: no such role or key.
        """
        names = self.repository.key_names()
        by_name = {name: key_id for key_id, name in names.items()}
        old = self.repository.key_that_goes(role, by_name.get(old or "", old))
        if new is None:
            folder = self.online if role in roles.ONLINE else self.offline
            stem = folder / _next_name(role, folder, names.values())
            key = self._make(stem, [], passphrase(stem))
        else:
            key = read_public(new)
        return self.repository.rotate(role, old, key), key

    def _make(
        self, stem: Path, made: list[Path], passphrase: bytes | None
    ) -> PublicKey:
        path = stem.with_name(stem.name + KEY_SUFFIX)
        public = path.with_suffix(PUBLIC_SUFFIX)
        if path.exists() and public.exists():
            return read_public(public)  # an init that was cut short made it
        path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
        made.append(path)
        self._told[path] = passphrase
        return make_key(path, passphrase)


def passphrase_from(text: str | None, file: Path | None) -> bytes | None:
    """The passphrase of the settings, if there is one.

    Raises:
        KeyRejected: the file is missing, empty, or open to others.
    """
    if text:
        return text.encode()
    if file is None:
        return None
    try:
        if file.stat().st_mode & OTHERS:
            raise KeyRejected(f"passphrase file {file} is open to others: chmod 600 it")
        with file.open("rb") as reading:
            found = reading.read(MAX_PASSPHRASE_BYTES).rstrip(b"\r\n")
    except OSError as error:
        raise KeyRejected(
            f"cannot read passphrase file {file}: {error.strerror}"
        ) from error
    if not found:
        raise KeyRejected(f"passphrase file {file} is empty")
    return found


def _next_name(role: str, folder: Path, taken: Collection[str]) -> str:
    number = 1
    while (
        f"{role}-{number}" in taken
        or (folder / f"{role}-{number}{KEY_SUFFIX}").exists()
    ):
        number += 1
    return f"{role}-{number}"
