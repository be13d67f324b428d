"""The operators' side of trust: draft, sign by threshold, and only then show.

Offline keys sign root, targets and the models' roles; two of three must. What they
sign waits as a draft until they have. Then the online keys renew the snapshot and the
timestamp over it, and agents see it.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Collection, Mapping, Sequence
from copy import deepcopy
from pathlib import Path
from typing import Any, Final

from tuf.api.metadata import (
    DelegatedRole,
    Delegations,
    Metadata,
    Root,
    TargetFile,
    Targets,
)

from bundle import layout
from bundle.seal import MAX_SEAL_BYTES, Seal, read_seal, write_seal
from bundle.tree import Tree
from bundle.trust import roles
from bundle.trust.drafts import AnyMetadata, Drafts
from bundle.trust.errors import NoTrust, TrustRefused
from bundle.trust.keys import PublicKey
from bundle.trust.naming import Named, named
from bundle.trust.published import Published
from bundle.trust.signing import Signing, date

KEEP_WAYS_BACK: Final = 4


class Repository:
    """The fleet's trust. Every call blocks; drafts are changed by one at a time.

    Args:
        tree: the registry that agents read.
        home: drafts, and what this machine has seen; not for agents.
        now_s: gives the time, in seconds since 1970.
    """

    def __init__(self, tree: Tree, home: Path, now_s: Callable[[], float]) -> None:
        self._tree = tree
        self._now_s = now_s
        self.drafts = Drafts(home / "drafts")
        self.published = Published(tree, home)
        self.signing = Signing(self.drafts, self.published, now_s)

    # --- what there is ----------------------------------------------------------------

    @property
    def is_there(self) -> bool:
        """Whether trust was set up, if only as a draft."""
        try:
            self.root()
        except NoTrust:
            return False
        return True

    def root(self) -> Metadata[Root]:
        """The newest root; the drafted one while there is no other.

        Raises:
            NoTrust: there is none.
        """
        try:
            return self.published.root()
        except NoTrust:
            draft = self.drafts.read(roles.ROOT)
            if draft is None:
                raise
            return draft

    def key_names(self) -> dict[str, str]:
        """What people call the keys, by id, the drafted ones included."""
        draft = self.drafts.read(roles.ROOT)
        keys = {
            **self.root().signed.keys,
            **({} if draft is None else draft.signed.keys),
        }
        return {
            key_id: str(key.unrecognized_fields.get("name", key_id))
            for key_id, key in keys.items()
        }

    def names(self, model: str, *, drafted: bool = True) -> list[Named]:
        """What a model's role names, the oldest epoch first.

        Args:
            model: its name.
            drafted: also what is not signed yet.
        """
        role = roles.model_role(model)
        metadata = self.drafts.read(role) if drafted else None
        if metadata is None:
            metadata = self.published.targets(role)
        return [] if metadata is None else named(metadata.signed.targets)

    def last_epoch(self, model: str) -> int:
        """The highest epoch of a model that was ever drafted or signed; 0 for none."""
        role = roles.model_role(model)
        both = (self.drafts.read(role), self.published.targets(role))
        return max(
            (_last_epoch(each.signed) for each in both if each is not None), default=0
        )

    def models(self) -> list[str]:
        """Every model of which something is signed or drafted."""
        found = {*self.published.model_roles(), *self.drafts.roles()}
        return sorted(
            model for role in found if (model := roles.model_of(role)) is not None
        )

    def seal(self, which: Named) -> Seal:
        """The seal that is named.

        Raises:
            NotThere: it is not in the tree.
            TrustRefused: it is another than was named.
        """
        path = layout.target_file(which.target, which.sha256)
        data = self._tree.read(path, max_bytes=MAX_SEAL_BYTES)
        if hashlib.sha256(data).hexdigest() != which.sha256:
            raise TrustRefused(f"{path} in the registry is not what was sealed")
        return read_seal(data)

    # --- drafting ---------------------------------------------------------------------

    def begin(
        self,
        root: Sequence[PublicKey],
        targets: Sequence[PublicKey],
        snapshot: PublicKey,
        timestamp: PublicKey,
    ) -> None:
        """Draft the first root and an empty targets role.

        Raises:
            TrustRefused: there is trust already, or keys are too few or the same.
        """
        if self.is_there:
            raise TrustRefused(
                "trust is set up already: see overspill trust status; a key is "
                "replaced by overspill trust rotate"
            )
        _check_keys(root, targets, [snapshot, timestamp])
        made = Root(consistent_snapshot=True)
        for role, keys in (
            (roles.ROOT, root),
            (roles.TARGETS, targets),
            (roles.SNAPSHOT, [snapshot]),
            (roles.TIMESTAMP, [timestamp]),
        ):
            for key in keys:
                made.add_key(_key_for_tuf(key), role)
            made.roles[role].threshold = (
                roles.OFFLINE_THRESHOLD if role in roles.OFFLINE else 1
            )
        with self.drafts.alone():
            self._draft(roles.ROOT, Metadata(made))
            self._draft(roles.TARGETS, Metadata(Targets()))

    def draft_seals(
        self,
        model: str,
        seals: Sequence[tuple[Seal, bool]],
        in_use: Collection[int] = (),
    ) -> None:
        """Draft that these seals of a model are to be signed.

        Args:
            model: whose.
            seals: each, and whether it is a way back: of those only some are kept.
            in_use: epochs of ways back that are kept, however old.

        Raises:
            OSError: the registry cannot be written.
        """
        files = {
            layout.seal_target(model, seal.version, seal.epoch): (
                write_seal(seal),
                back,
            )
            for seal, back in seals
        }
        self._draft_targets(model, files, in_use)

    def draft_folder(self, model: str, version: str, seal: bytes) -> None:
        """Draft that the seal of a folder of the cloud's models is to be signed."""
        target = layout.cloud_target(model, version)
        self._draft_targets(model, {target: (seal, False)})

    def revoke(self, model: str, version: str) -> list[Named]:
        """Draft that a version is no longer signed, in any epoch.

        Raises:
            NoTrust: there is no trust yet.
            TrustRefused: no such version is signed or drafted.
        """
        self.root()
        with self.drafts.alone():
            gone = [each for each in self.names(model) if each.version == version]
            if not gone:
                raise TrustRefused(
                    f"no {model} {version} is signed or drafted: see overspill model list"
                )
            metadata = self._edit(roles.model_role(model))
            for each in gone:
                del metadata.signed.targets[each.target]
            self._draft(roles.model_role(model), metadata)
        return gone

    def rotate(self, role: str, old_key_id: str | None, new: PublicKey) -> str:
        """Draft that a key takes the place of another.

        Args:
            role: one of the four.
            old_key_id: the key that goes; may be left out where there is one only.
            new: the key that comes.

        Returns:
            The id of the key that goes.

        Raises:
            TrustRefused: no such role or key, or the new key is in use.
        """
        with self.drafts.alone():
            metadata = self._edit(roles.ROOT)
            root: Root = metadata.signed
            old_key_id = _key_that_goes(root, role, old_key_id)
            if new.key_id in root.keys:
                raise TrustRefused(f"key {new.key_id} is in use already")
            root.revoke_key(old_key_id, role)
            root.add_key(_key_for_tuf(new), role)
            self._draft(roles.ROOT, metadata)
            if role == roles.TARGETS:
                self._delegate_anew()
        return old_key_id

    def key_that_goes(self, role: str, old_key_id: str | None) -> str:
        """The key that `rotate` would replace.

        Raises:
            TrustRefused: no such role or key, or it is not clear which.
        """
        draft = self.drafts.read(roles.ROOT)
        return _key_that_goes((draft or self.root()).signed, role, old_key_id)

    def extend(self) -> list[str]:
        """Draft everything offline anew as it is, to live for another term.

        Returns:
            The roles.
        """
        with self.drafts.alone():
            models = [roles.model_role(each) for each in self.models()]
            every = [roles.ROOT, roles.TARGETS, *models]
            for role in every:
                self._draft(role, self._edit(role))
        return every

    def _delegate_anew(self) -> None:
        """Draft targets and all models again: their keys are others now."""
        targets = self._edit(roles.TARGETS)
        models = self.models()
        targets.signed.delegations = None
        for model in models:
            self._delegate(targets.signed, model)
        self._draft(roles.TARGETS, targets)
        for model in models:
            role = roles.model_role(model)
            self._draft(role, self._edit(role))

    def _draft_targets(
        self,
        model: str,
        files: Mapping[str, tuple[bytes, bool]],
        in_use: Collection[int] | None = None,
    ) -> None:
        role = roles.model_role(model)
        with self.drafts.alone():
            delegator = self.drafts.read(roles.TARGETS) or self.published.targets(
                roles.TARGETS
            )
            if delegator is None:
                raise NoTrust("no trust is set up yet: run overspill trust init")
            known = delegator.signed.delegations
            if known is None or role not in (known.roles or {}):
                targets = self._edit(roles.TARGETS)
                self._delegate(targets.signed, model)
                self._draft(roles.TARGETS, targets)
            metadata = self._edit(role)
            for target, (data, back) in files.items():
                digest = hashlib.sha256(data).hexdigest()
                self._tree.write(layout.target_file(target, digest), data)
                metadata.signed.targets[target] = TargetFile(
                    len(data),
                    {"sha256": digest},
                    target,
                    {"custom": {"back": True}} if back else None,
                )
            _keep_last_epoch(metadata.signed)
            if in_use is not None:
                _drop_old_ways_back(metadata.signed, in_use)
            self._draft(role, metadata)

    def _delegate(self, targets: Targets, model: str) -> None:
        root = (self.drafts.read(roles.ROOT) or self.root()).signed
        key_ids = root.roles[roles.TARGETS].keyids
        if targets.delegations is None:
            targets.delegations = Delegations({}, {})
        delegations = targets.delegations
        delegations.keys = {each: root.keys[each] for each in key_ids}
        if delegations.roles is None:
            delegations.roles = {}
        role = roles.model_role(model)
        delegations.roles[role] = DelegatedRole(
            role,
            list(key_ids),
            roles.OFFLINE_THRESHOLD,
            terminating=True,
            paths=roles.model_paths(model),
        )

    def _edit(self, role: str) -> AnyMetadata:
        """The draft of a role, or the start of one from what is published."""
        draft = self.drafts.read(role)
        if draft is not None:
            return draft
        if role == roles.ROOT:
            published: AnyMetadata | None = self.published.root()
        else:
            published = self.published.targets(role)
        if published is None:
            return Metadata(Targets())
        draft = Metadata(deepcopy(published.signed))
        draft.signed.version += 1
        return draft

    def _draft(self, role: str, metadata: AnyMetadata) -> None:
        """Write a draft; what was signed before was another text."""
        metadata.signatures.clear()
        date(metadata, role, self._now_s())
        self.drafts.write(role, metadata)


def _key_for_tuf(key: PublicKey) -> Any:  # noqa: ANN401 - securesystemslib's own
    made = key.for_tuf()
    made.unrecognized_fields["name"] = key.name
    return made


def _check_keys(
    root: Sequence[PublicKey], targets: Sequence[PublicKey], online: Sequence[PublicKey]
) -> None:
    for role, keys in ((roles.ROOT, root), (roles.TARGETS, targets)):
        if len(keys) < roles.OFFLINE_THRESHOLD:
            raise TrustRefused(
                f"{role} has {len(keys)} key(s): {roles.OFFLINE_KEYS} are needed, of "
                f"which {roles.OFFLINE_THRESHOLD} sign"
            )
    every = [each.key_id for each in (*root, *targets, *online)]
    if len({*every}) != len(every):
        raise TrustRefused("a key may have one place only: make another one")


def _last_epoch(targets: Targets) -> int:
    kept = targets.unrecognized_fields.get(roles.LAST_EPOCH, 0)
    return max([int(kept), *(each.epoch or 0 for each in named(targets.targets))])


def _keep_last_epoch(targets: Targets) -> None:
    # Otherwise a version that is revoked would leave its epoch to another.
    targets.unrecognized_fields[roles.LAST_EPOCH] = _last_epoch(targets)


def _key_that_goes(root: Root, role: str, old_key_id: str | None) -> str:
    if role not in root.roles:
        raise TrustRefused(f"{role!r} is no role: use {', '.join(roles.TOP)}")
    keys = root.roles[role].keyids
    if old_key_id is None and len(keys) == 1:
        return keys[0]
    if old_key_id is None or old_key_id not in keys:
        names = (
            f"{root.keys[each].unrecognized_fields.get('name', '')} {each}".strip()
            for each in keys
        )
        raise TrustRefused(f"say which key of {role} goes: {', '.join(sorted(names))}")
    return old_key_id


def _drop_old_ways_back(targets: Targets, in_use: Collection[int]) -> None:
    ways = [each for each in named(targets.targets) if each.back]
    for each in ways[:-KEEP_WAYS_BACK]:
        if each.epoch not in in_use:
            del targets.targets[each.target]
