"""What the registry's tree shows of the trust: read back verified, never taken on faith.

Whoever can write the tree is not trusted: an operator must not sign a change to what
somebody else has put there. Expiry does not matter here, as what expired is renewed.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Final

from tuf.api.exceptions import UnsignedMetadataError
from tuf.api.metadata import Metadata, Root, Snapshot, Targets, Timestamp

from bundle import layout
from bundle.durable import write_file
from bundle.source import NotThere
from bundle.tree import Tree
from bundle.trust import roles
from bundle.trust.drafts import AnyMetadata, parse
from bundle.trust.errors import NoTrust, TrustRefused

ROOT_FILE: Final = "root.json"
SEEN_FILE: Final = "seen.json"


class Published:
    """The metadata that agents see.

    Args:
        tree: the registry.
        home: where this machine keeps the newest root and versions that it has seen.
    """

    def __init__(self, tree: Tree, home: Path) -> None:
        self._tree = tree
        self._home = home
        # By path: a version never changes once it is shown.
        self._known: dict[str, bytes] = {}

    def root_json(self) -> bytes:
        """The newest root, as agents are given it at provisioning.

        Raises:
            NoTrust: there is none yet.
            TrustRefused: the tree holds something else than what was signed.
        """
        data = self._anchor()
        root: Metadata[Root] = parse(data, ROOT_FILE)
        while True:
            path = layout.metadata(roles.file_name(roles.ROOT, root.signed.version + 1))
            try:
                newer = self._tree.read(path, max_bytes=roles.MAX_BYTES[roles.ROOT])
            except NotThere:
                return data
            candidate: Metadata[Root] = parse(newer, path)
            _verify(root, roles.ROOT, candidate, path)
            _verify(candidate, roles.ROOT, candidate, path)
            root, data = candidate, newer
            self._keep_root(data)

    def root(self) -> Metadata[Root]:
        """The newest root."""
        return parse(self.root_json(), ROOT_FILE)

    def timestamp(self) -> Metadata[Timestamp] | None:
        """The timestamp; None before the first publication."""
        path = layout.metadata(roles.file_name(roles.TIMESTAMP, 0))
        return self._read(path, roles.TIMESTAMP)

    def snapshot(self) -> Metadata[Snapshot] | None:
        """The snapshot that the timestamp names.

        Raises:
            TrustRefused: it is lost.
        """
        timestamp = self.timestamp()
        if timestamp is None:
            return None
        claimed = timestamp.signed.snapshot_meta.version
        return self._at(roles.SNAPSHOT, claimed, None)

    def targets(self, role: str) -> Metadata[Targets] | None:
        """The metadata of the targets role or of a model's; None when there is none.

        Raises:
            TrustRefused: the tree shows something older than, or other than, signed.
        """
        snapshot = self.snapshot()
        meta = None if snapshot is None else snapshot.signed.meta.get(f"{role}.json")
        if meta is None:
            return None
        delegator = (
            self.root() if role == roles.TARGETS else self.targets(roles.TARGETS)
        )
        return self._at(role, meta.version, delegator)

    def model_roles(self) -> list[str]:
        """The roles of the models that were ever published."""
        snapshot = self.snapshot()
        if snapshot is None:
            return []
        names = (each.removesuffix(".json") for each in snapshot.signed.meta)
        return sorted(each for each in names if roles.model_of(each) is not None)

    def write(self, role: str, metadata: AnyMetadata) -> None:
        """Write a signed version of a role; agents see it by the next timestamp."""
        path = layout.metadata(roles.file_name(role, metadata.signed.version))
        data = metadata.to_bytes()
        self._tree.write(path, data)
        self._known[path] = data
        if role == roles.ROOT:
            self._keep_root(data)

    def shown(self, versions: Mapping[str, int]) -> None:
        """Remember what agents can see now: nothing older will be signed upon."""
        self._home.mkdir(parents=True, exist_ok=True, mode=0o700)
        seen = {**self._seen(), **versions}
        write_file(self._home / SEEN_FILE, json.dumps(seen, indent=1).encode())

    def _at(
        self, role: str, claimed: int, delegator: Metadata[Any] | None
    ) -> AnyMetadata:
        """A role in the version that is claimed, or else in the one seen last.

        Whoever stole an online key may claim versions that were never made. What this
        machine has shown itself is still in the tree, and is gone on from.
        """
        seen = self._seen().get(role, 0)
        refusal: TrustRefused | None = None
        for version in dict.fromkeys((claimed, seen)):
            path = layout.metadata(roles.file_name(role, version))
            metadata = self._read(path, role)
            if metadata is None:
                refusal = refusal or TrustRefused(
                    f"the registry lacks {path}: restore it from a backup"
                )
                continue
            if version < seen:
                refusal = TrustRefused(
                    f"the registry shows {path}, and this machine has seen version "
                    f"{seen}: somebody put an old one back. Restore the registry"
                )
                continue
            try:
                if delegator is not None:
                    _verify(delegator, role, metadata, path)
            except TrustRefused as error:
                refusal = error
                continue
            return metadata
        raise refusal or TrustRefused(f"the registry lacks {role}")

    def _read(self, path: str, role: str) -> AnyMetadata | None:
        data = self._known.get(path)
        if data is None or role == roles.TIMESTAMP:
            try:
                data = self._tree.read(
                    path, max_bytes=roles.MAX_BYTES[roles.kind(role)]
                )
            except NotThere:
                return None
            self._known[path] = data
        return parse(data, path)

    def _anchor(self) -> bytes:
        try:
            return (self._home / ROOT_FILE).read_bytes()
        except FileNotFoundError:
            pass
        try:
            path = layout.metadata(roles.file_name(roles.ROOT, 1))
            return self._tree.read(path, max_bytes=roles.MAX_BYTES[roles.ROOT])
        except NotThere:
            raise NoTrust(
                "no trust is set up yet: run overspill trust init, or overspill trust "
                "init --dev to try things out"
            ) from None

    def _keep_root(self, data: bytes) -> None:
        self._home.mkdir(parents=True, exist_ok=True, mode=0o700)
        write_file(self._home / ROOT_FILE, data)

    def _seen(self) -> dict[str, int]:
        try:
            seen: dict[str, int] = json.loads((self._home / SEEN_FILE).read_bytes())
        except (FileNotFoundError, ValueError):
            return {}
        return seen


def _verify(
    delegator: Metadata[Any], role: str, metadata: AnyMetadata, where: str
) -> None:
    try:
        delegator.signed.verify_delegate(
            role, metadata.signed_bytes, metadata.signatures
        )
    except (UnsignedMetadataError, ValueError) as error:
        raise TrustRefused(
            f"{where} in the registry is not what the fleet's keys signed ({error}): "
            "restore it from a backup before you sign anything"
        ) from error
