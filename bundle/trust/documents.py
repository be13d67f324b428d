"""Who may say what a model is: ed25519 keys and signed documents.

A signed document is `{"signed": {...}, "signatures": [{"key_id", "sig"}]}`; the
signature covers the canonical JSON of `signed` (sorted keys, no spaces, ASCII).
A public key travels here as its 32 raw bytes, so that a program which only holds
keys need not import `cryptography`; it is imported by the functions that use it.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from bundle.durable import write_file
from bundle.trust.errors import KeyRejected, Untrusted

if TYPE_CHECKING:
    from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

PUBLIC_KEY_BYTES: Final = 32
MAX_KEY_FILE_BYTES: Final = 16 * 1024
MAX_SIGNATURES: Final = 16
OTHERS: Final = 0o007

TrustedKeys = Mapping[str, bytes]


def key_id(public_key: bytes) -> str:
    """The short name of a public key: the first 16 hex digits of its SHA-256."""
    return hashlib.sha256(public_key).hexdigest()[:16]


def generate_key() -> Ed25519PrivateKey:
    """A new signing key."""
    from cryptography.hazmat.primitives.asymmetric import (  # noqa: PLC0415 - the agent starts without it
        ed25519,
    )

    return ed25519.Ed25519PrivateKey.generate()


def public_bytes(key: Ed25519PrivateKey) -> bytes:
    """The 32 raw bytes of the public half."""
    return key.public_key().public_bytes_raw()


def trusting(*keys: Ed25519PrivateKey) -> dict[str, bytes]:
    """The trusted keys that accept what `keys` sign."""
    return {key_id(raw): raw for raw in map(public_bytes, keys)}


def save_private_key(key: Ed25519PrivateKey, path: Path) -> None:
    """Write the key as PKCS#8 PEM that only its owner can read (0600)."""
    from cryptography.hazmat.primitives import (  # noqa: PLC0415 - the agent starts without it
        serialization,
    )

    pem = key.private_bytes(
        serialization.Encoding.PEM,
        serialization.PrivateFormat.PKCS8,
        serialization.NoEncryption(),
    )
    write_file(path, pem, mode=0o600)


def save_public_key(key: Ed25519PrivateKey, path: Path) -> None:
    """Write the public half as PEM; agents trust what such a file holds."""
    from cryptography.hazmat.primitives import (  # noqa: PLC0415 - the agent starts without it
        serialization,
    )

    pem = key.public_key().public_bytes(
        serialization.Encoding.PEM, serialization.PublicFormat.SubjectPublicKeyInfo
    )
    write_file(path, pem)


def load_private_key(path: Path) -> Ed25519PrivateKey:
    """Read a signing key.

    Raises:
        KeyRejected: missing, readable by everyone, or not an ed25519 key in PEM.
    """
    from cryptography.exceptions import (  # noqa: PLC0415 - the agent starts without it
        UnsupportedAlgorithm,
    )
    from cryptography.hazmat.primitives.asymmetric import ed25519  # noqa: PLC0415
    from cryptography.hazmat.primitives.serialization import (  # noqa: PLC0415
        load_pem_private_key,
    )

    pem = _read_key_file(path)
    if path.stat().st_mode & OTHERS:
        raise KeyRejected(
            f"signing key {path} is open to every user of this machine: chmod 600 it"
        )
    try:
        key = load_pem_private_key(pem, password=None)
    except (ValueError, TypeError, UnsupportedAlgorithm) as error:
        raise KeyRejected(f"{path} is not a private key in PEM: {error}") from error
    if not isinstance(key, ed25519.Ed25519PrivateKey):
        raise KeyRejected(f"{path} holds {type(key).__name__}, not an ed25519 key")
    return key


def load_public_keys(path: Path) -> dict[str, bytes]:
    """Read the trusted keys: one `.pub` file, or a folder of them.

    Returns:
        Raw public keys by key id.

    Raises:
        KeyRejected: nothing there, or a file is not an ed25519 public key in PEM.
    """
    files = sorted(path.glob("*.pub")) if path.is_dir() else [path]
    if not files:
        raise KeyRejected(f"folder {path} holds no *.pub: copy the fleet's key there")
    return {key_id(raw): raw for raw in map(_read_public_key, files)}


def _read_public_key(path: Path) -> bytes:
    from cryptography.exceptions import (  # noqa: PLC0415 - the agent starts without it
        UnsupportedAlgorithm,
    )
    from cryptography.hazmat.primitives.asymmetric import ed25519  # noqa: PLC0415
    from cryptography.hazmat.primitives.serialization import (  # noqa: PLC0415
        load_pem_public_key,
    )

    try:
        key = load_pem_public_key(_read_key_file(path))
    except (ValueError, UnsupportedAlgorithm) as error:
        raise KeyRejected(f"{path} is not a public key in PEM: {error}") from error
    if not isinstance(key, ed25519.Ed25519PublicKey):
        raise KeyRejected(f"{path} holds {type(key).__name__}, not an ed25519 key")
    return key.public_bytes_raw()


def _read_key_file(path: Path) -> bytes:
    try:
        with path.open("rb") as file:
            data = file.read(MAX_KEY_FILE_BYTES + 1)
    except OSError as error:
        raise KeyRejected(f"cannot read key {path}: {error.strerror}") from error
    if len(data) > MAX_KEY_FILE_BYTES:
        raise KeyRejected(f"{path} is over {MAX_KEY_FILE_BYTES} bytes: not a key")
    return data


def canonical(value: Mapping[str, Any]) -> bytes:
    """The one JSON text of `value`: sorted keys, no spaces, ASCII, no NaN."""
    return json.dumps(
        value,
        sort_keys=True,
        separators=(",", ":"),
        ensure_ascii=True,
        allow_nan=False,
    ).encode("ascii")


def sign_document(signed: Mapping[str, Any], *keys: Ed25519PrivateKey) -> bytes:
    """Sign `signed` with each of `keys`."""
    body = canonical(signed)
    signatures = [
        {"key_id": key_id(public_bytes(key)), "sig": key.sign(body).hex()}
        for key in keys
    ]
    return canonical({"signed": dict(signed), "signatures": signatures})


def open_document(
    data: bytes, trusted: TrustedKeys, *, max_bytes: int
) -> dict[str, Any]:
    """What a signed document says, if a trusted key signed it.

    Args:
        data: the document.
        trusted: raw public keys by key id.
        max_bytes: a longer document is refused before it is parsed.

    Raises:
        Untrusted: too long, malformed, unsigned, signed by strangers only, or
            changed after it was signed.
    """
    signed, signatures = read_document(data, max_bytes=max_bytes)
    named = [each for each in signatures if each[0] in trusted]
    if not named:
        signers = ", ".join(each[0] for each in signatures) or "nobody"
        raise Untrusted(
            f"signed by {signers}, whom this program does not trust; "
            f"it trusts {', '.join(sorted(trusted)) or 'nobody'}"
        )
    body = canonical(signed)
    if not any(_verifies(trusted[who], signature, body) for who, signature in named):
        raise Untrusted(
            f"the signature of {named[0][0]} does not fit: changed after signing"
        )
    return signed


def read_document(
    data: bytes, *, max_bytes: int
) -> tuple[dict[str, Any], list[tuple[str, bytes]]]:
    """What a document claims and its signatures by key id, **not verified**.

    Raises:
        Untrusted: too long, or not a signed document at all.
    """
    if len(data) > max_bytes:
        raise Untrusted(f"{len(data)} bytes is over the limit of {max_bytes}")
    try:
        document = json.loads(data, object_pairs_hook=_no_duplicates)
    except (ValueError, RecursionError) as error:
        raise Untrusted(f"not a signed document: {error}") from error
    match document:
        case {"signed": dict() as signed, "signatures": list() as listed} if (
            len(listed) <= MAX_SIGNATURES
        ):
            return signed, _read_signatures(listed)
        case _:
            raise Untrusted(
                'not a signed document: it needs "signed" and at most '
                f'{MAX_SIGNATURES} "signatures"'
            )


def _read_signatures(listed: Sequence[object]) -> list[tuple[str, bytes]]:
    read = []
    for each in listed:
        match each:
            case {"key_id": str() as who, "sig": str() as text} if len(who) == 16:
                try:
                    read.append((who, bytes.fromhex(text)))
                except ValueError as error:
                    raise Untrusted(f"a signature is not hex: {error}") from error
            case _:
                raise Untrusted("a signature needs a 16-digit key_id and a sig")
    return read


def _no_duplicates(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    # Two readers that keep different ones of two equal keys would disagree
    # about what was signed.
    read = dict(pairs)
    if len(read) != len(pairs):
        raise ValueError("an object names a key twice")
    return read


def _verifies(public_key: bytes, signature: bytes, body: bytes) -> bool:
    from cryptography.exceptions import (  # noqa: PLC0415 - the agent starts without it
        InvalidSignature,
    )
    from cryptography.hazmat.primitives.asymmetric import ed25519  # noqa: PLC0415

    try:
        ed25519.Ed25519PublicKey.from_public_bytes(public_key).verify(signature, body)
    except (InvalidSignature, ValueError):
        return False
    return True
