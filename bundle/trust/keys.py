"""Keys in files: PKCS#8, encrypted with a passphrase, readable by their owner alone.

`NAME.key` is the private half and `NAME.pub` the public one beside it, so that whose
key it is can be read without the passphrase.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from cryptography.exceptions import UnsupportedAlgorithm
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric.ed25519 import (
    Ed25519PrivateKey,
    Ed25519PublicKey,
)
from securesystemslib.signer import CryptoSigner, SSlibKey

from bundle.durable import write_file
from bundle.trust.errors import KeyRejected

KEY_SUFFIX: Final = ".key"
PUBLIC_SUFFIX: Final = ".pub"
MAX_KEY_FILE_BYTES: Final = 16 * 1024
OTHERS: Final = 0o077

Passphrase = Callable[[Path], bytes | None]
"""Asked for the passphrase of an encrypted key; None when there is none to be had."""


class PassphraseNeeded(KeyRejected):
    """The key is encrypted and no passphrase, or a wrong one, was given."""


@dataclass(frozen=True, slots=True)
class PublicKey:
    """The public half of a key, and what it is called for people."""

    name: str
    raw: bytes

    @property
    def key_id(self) -> str:
        """The first 16 hex digits of its SHA-256: short, as it travels often."""
        return hashlib.sha256(self.raw).hexdigest()[:16]

    def for_tuf(self) -> SSlibKey:
        """As python-tuf holds it."""
        return SSlibKey(self.key_id, "ed25519", "ed25519", {"public": self.raw.hex()})


def make_key(path: Path, passphrase: bytes | None) -> PublicKey:
    """Make a key: `path` (`NAME.key`, 0600) and `NAME.pub` beside it.

    Args:
        path: where; its folder must exist.
        passphrase: encrypts it; None leaves it open to whoever gets the file.

    Raises:
        KeyRejected: something is there already, or there is no such folder.
        OSError: the folder cannot be written.
    """
    if path.suffix != KEY_SUFFIX:
        raise KeyRejected(f"{path}: name a key's file NAME{KEY_SUFFIX}")
    if path.exists():
        raise KeyRejected(f"{path} is there already: a key is never written over")
    if not path.parent.is_dir():
        raise KeyRejected(f"{path}: there is no folder {path.parent}; make it first")
    key = Ed25519PrivateKey.generate()
    encryption: serialization.KeySerializationEncryption = (
        serialization.BestAvailableEncryption(passphrase)
        if passphrase
        else serialization.NoEncryption()
    )
    pem = key.private_bytes(
        serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, encryption
    )
    public = key.public_key()
    write_file(path, pem, mode=0o600)
    write_file(
        path.with_suffix(PUBLIC_SUFFIX),
        public.public_bytes(
            serialization.Encoding.PEM,
            serialization.PublicFormat.SubjectPublicKeyInfo,
        ),
    )
    return PublicKey(path.stem, public.public_bytes_raw())


def read_public(path: Path) -> PublicKey:
    """Read a `.pub`.

    Raises:
        KeyRejected: it is missing, or not an ed25519 public key in PEM.
    """
    pem = _read(path)
    try:
        key = serialization.load_pem_public_key(pem)
    except (ValueError, UnsupportedAlgorithm) as error:
        raise KeyRejected(f"{path} is not a public key in PEM: {error}") from error
    if not isinstance(key, Ed25519PublicKey):
        raise KeyRejected(f"{path} holds {type(key).__name__}, not an ed25519 key")
    return PublicKey(path.stem, key.public_bytes_raw())


def read_private(path: Path, passphrase: bytes | None) -> Ed25519PrivateKey:
    """Read a `.key`.

    Raises:
        PassphraseNeeded: it is encrypted with another passphrase.
        KeyRejected: missing, open to others, or not an ed25519 key in PEM.
    """
    pem = _read(path)
    if path.stat().st_mode & OTHERS:
        raise KeyRejected(
            f"key {path} is open to other users of this machine: chmod 600 it, and "
            "replace it (overspill trust rotate) if others could have read it"
        )
    encrypted = b"ENCRYPTED" in pem
    if encrypted and not passphrase:
        raise PassphraseNeeded(
            f"key {path} is encrypted: set OVERSPILL_FLEET_PASSPHRASE or "
            "OVERSPILL_FLEET_PASSPHRASE_FILE, or run this on a terminal to be asked"
        )
    try:
        key = serialization.load_pem_private_key(
            pem, password=passphrase if encrypted else None
        )
    except (ValueError, TypeError, UnsupportedAlgorithm) as error:
        if encrypted:
            raise PassphraseNeeded(
                f"key {path} does not open: the passphrase is another"
            ) from error
        raise KeyRejected(f"{path} is not a private key in PEM: {error}") from error
    if not isinstance(key, Ed25519PrivateKey):
        raise KeyRejected(f"{path} holds {type(key).__name__}, not an ed25519 key")
    return key


class KeyRing:
    """The private keys at hand.

    Args:
        places: `.key` files, or folders of them; what is missing is skipped.
        passphrase: asked when an encrypted key is used.
        named: such as somebody asked for; one that is missing is an error.
    """

    def __init__(
        self,
        places: Iterable[Path],
        passphrase: Passphrase,
        named: Sequence[Path] = (),
    ) -> None:
        self._places = (*named, *places)
        self._named = frozenset(named)
        self._passphrase = passphrase
        self._open: dict[Path, CryptoSigner] = {}

    def at_hand(self) -> Mapping[str, Path]:
        """The files of private keys, by key id; nothing is decrypted.

        Raises:
            KeyRejected: a key has no readable `.pub` beside it, or a named one is not
                there.
        """
        found: dict[str, Path] = {}
        for place in self._places:
            files = sorted(place.glob(f"*{KEY_SUFFIX}")) if place.is_dir() else [place]
            if place in self._named and not (files and files[0].exists()):
                raise KeyRejected(f"{place}: no key is there")
            for file in files:
                if file.exists():
                    public = read_public(file.with_suffix(PUBLIC_SUFFIX))
                    found.setdefault(public.key_id, file)
        return found

    def opens(self, key_id: str) -> bool:
        """Whether a private key is at hand and there is a passphrase that fits.

        Raises:
            KeyRejected: it is at hand and cannot be used for another reason.
        """
        path = self.at_hand().get(key_id)
        if path is None:
            return False
        try:
            self.signer(path)
        except PassphraseNeeded:
            return False
        return True

    def signer(self, path: Path) -> CryptoSigner:
        """What signs with the key in a file.

        Raises:
            KeyRejected: it cannot be used, or is not what its `.pub` says.
        """
        if path not in self._open:
            key = read_private(path, None if _is_open(path) else self._passphrase(path))
            public = PublicKey(path.stem, key.public_key().public_bytes_raw())
            if read_public(path.with_suffix(PUBLIC_SUFFIX)).raw != public.raw:
                raise KeyRejected(f"{path} and the .pub beside it are different keys")
            self._open[path] = CryptoSigner(key, public.for_tuf())
        return self._open[path]


def _is_open(path: Path) -> bool:
    return b"ENCRYPTED" not in _read(path)


def _read(path: Path) -> bytes:
    try:
        with path.open("rb") as file:
            data = file.read(MAX_KEY_FILE_BYTES + 1)
    except OSError as error:
        raise KeyRejected(f"cannot read key {path}: {error.strerror}") from error
    if len(data) > MAX_KEY_FILE_BYTES:
        raise KeyRejected(f"{path} is over {MAX_KEY_FILE_BYTES} bytes: not a key")
    return data
