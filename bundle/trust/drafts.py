"""Metadata that waits for signatures: a folder of files, one a role.

Nothing of it is visible to agents. The folder may be carried to another machine, where
a key is, and back: a signature is added to the file that it signs.
"""

from __future__ import annotations

import fcntl
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Final

from securesystemslib.exceptions import UnverifiedSignatureError
from securesystemslib.signer import CryptoSigner
from tuf.api.metadata import Metadata
from tuf.api.serialization import DeserializationError

from bundle.durable import write_file
from bundle.trust import roles
from bundle.trust.errors import TrustRefused

SUFFIX: Final = ".json"
AnyMetadata = Metadata[Any]


class Drafts:
    """Unsigned and half-signed metadata, by role.

    Args:
        folder: made by the first draft.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    @contextmanager
    def alone(self) -> Iterator[None]:
        """Keep other commands from changing drafts or publishing meanwhile."""
        self.folder.mkdir(parents=True, exist_ok=True, mode=0o700)
        with (self.folder / ".lock").open("a") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)
            yield

    def roles(self) -> list[str]:
        """The roles that have a draft, in the order in which they delegate."""
        names = [
            each.name.removesuffix(SUFFIX)
            for each in self.folder.glob(f"*{SUFFIX}")
            if not each.name.startswith(".")
        ]
        return sorted(
            names,
            key=lambda role: (
                roles.TOP.index(role) if role in roles.TOP else len(roles.TOP),
                role,
            ),
        )

    def read(self, role: str) -> AnyMetadata | None:
        """The draft of a role, or None.

        Raises:
            TrustRefused: it is damaged.
        """
        path = self._path(role)
        try:
            data = path.read_bytes()
        except FileNotFoundError:
            return None
        try:
            return parse(data, str(path))
        except TrustRefused as error:
            raise TrustRefused(
                f"{error}; delete it, and publish, rotate or revoke once more"
            ) from error

    def write(self, role: str, metadata: AnyMetadata) -> None:
        """Put a draft in its place."""
        write_file(self._path(role), metadata.to_bytes())

    def drop(self, role: str) -> None:
        """Forget a draft."""
        self._path(role).unlink(missing_ok=True)

    def sign(self, role: str, signer: CryptoSigner) -> bool:
        """Add a signature to the draft of a role.

        Returns:
            Whether it was not there before.
        """
        metadata = self.read(role)
        if metadata is None or _signed_by(metadata, signer):
            return False
        metadata.sign(signer, append=True)
        self.write(role, metadata)
        return True

    def _path(self, role: str) -> Path:
        return self.folder / f"{role}{SUFFIX}"


def parse(data: bytes, where: str) -> AnyMetadata:
    """Read metadata, **its signatures not verified**.

    Raises:
        TrustRefused: it is none.
    """
    try:
        return Metadata.from_bytes(data)
    except DeserializationError as error:
        raise TrustRefused(f"{where} is no TUF metadata: {error}") from error


def _signed_by(metadata: AnyMetadata, signer: CryptoSigner) -> bool:
    signature = metadata.signatures.get(signer.public_key.keyid)
    if signature is None:
        return False
    try:
        signer.public_key.verify_signature(signature, metadata.signed_bytes)
    except UnverifiedSignatureError:
        return False
    return True
