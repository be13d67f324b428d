"""Bundles and desired documents where the worker pool serves them, and the key that signs.

Every call blocks.
"""

from __future__ import annotations

import fcntl
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from broker.codec import encode
from broker.messages import Desired, DesiredModel
from bundle import layout
from bundle.open_tree import open_tree
from bundle.pack import pack
from bundle.seal import Seal, make_seal, sign_seal
from bundle.store import BundleStore
from bundle.trust import (
    generate_key,
    key_id,
    load_private_key,
    public_bytes,
    save_private_key,
    save_public_key,
)

if TYPE_CHECKING:
    from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey


@dataclass(frozen=True, slots=True)
class Publication:
    """What a publish did.

    `new` is false when the same bytes were published before; `key_made` is true when
    the signing key was made for it.
    """

    seal: Seal
    key_id: str
    new: bool
    key_made: bool


class Registry:
    """The folder that workers serve, and the signing key beside it.

    Args:
        root: the `BundleStore`'s folder.
        signing_key: the private key; made by the first publish.
        public_key: its public half, for agents to trust.
    """

    def __init__(self, root: str | Path, signing_key: Path, public_key: Path) -> None:
        self._root = Path(root)
        self._tree = open_tree(root)
        self._signing_key = signing_key
        self._public_key = public_key
        self._store = BundleStore(self._root)

    def publish(self, source_dir: Path) -> Publication:
        """Pack, seal, sign and store the bundle in `source_dir`.

        Raises:
            BundleRejected: the folder is no bundle.
            AlreadyPublished: its name and version are taken by other bytes.
            KeyRejected: the signing key cannot be used.
            OSError: the disk is full, or a folder cannot be written.
        """
        self._root.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(prefix=".pack-", dir=self._root) as folder:
            packed = Path(folder) / "bundle.tar"
            manifest = pack(source_dir, packed)
            seal = make_seal(packed, manifest.name, manifest.version)
            key, key_made = self._key()
            new = self._store.publish(packed, sign_seal(seal, key))
        return Publication(seal, key_id(public_bytes(key)), new, key_made)

    def published(self) -> list[Seal]:
        """What the store holds, by name and version."""
        return self._store.list()

    def write_desired(self, documents: Mapping[str, bytes]) -> None:
        """Give agents their documents (`desired_document`).

        Not durable: the database has what they say, and the daemon writes all of them
        anew when it starts.

        Raises:
            OSError: one could not be written; others may have been.
        """
        self._tree.write_all(
            {layout.desired(agent): data for agent, data in documents.items()},
            durable=False,
        )

    def withdraw_desired(self, agent: str) -> None:
        """Desire nothing of an agent any more; it goes on serving what it has.

        Raises:
            OSError: the registry cannot be written.
        """
        self._tree.delete(layout.desired(agent))

    def _key(self) -> tuple[Ed25519PrivateKey, bool]:
        folder = self._signing_key.parent
        folder.mkdir(parents=True, exist_ok=True, mode=0o700)
        with _alone(folder / ".lock"):
            made = not self._signing_key.exists()
            if made:
                save_private_key(generate_key(), self._signing_key)
            key = load_private_key(self._signing_key)
            if made or not self._public_key.exists():
                save_public_key(key, self._public_key)
        return key, made


def desired_document(agent: str, models: Sequence[DesiredModel]) -> bytes:
    """What an agent reads of what it should serve."""
    return encode(Desired(agent=agent, models=list(models)))


@contextmanager
def _alone(path: Path) -> Iterator[None]:
    """Two first publishes at once must not make two keys."""
    with path.open("a") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield
