"""The operators' side of trust: draft, sign by threshold, and only then show.

Offline keys sign root, targets and the models' roles; two of three must. What they
sign waits as a draft until they have. Then the online keys renew the snapshot and the
timestamp over it, and agents see it.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Mapping, Sequence
from copy import deepcopy
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from tuf.api.metadata import (
    DelegatedRole,
    Delegations,
    Metadata,
    MetaFile,
    Root,
    Snapshot,
    TargetFile,
    Targets,
    Timestamp,
)

from bundle import layout
from bundle.seal import MAX_SEAL_BYTES, Seal, read_seal, write_seal
from bundle.tree import Tree
from bundle.trust import roles
from bundle.trust.drafts import AnyMetadata, Drafts
from bundle.trust.errors import NoTrust, TrustRefused
from bundle.trust.keys import KeyRing, PublicKey
from bundle.trust.naming import Named, named
from bundle.trust.published import Published

KEEP_WAYS_BACK: Final = 4


@dataclass(frozen=True, slots=True)
class Waiting:
    """A draft, and what it still needs before agents see it.

    Attributes:
        role: of the metadata.
        version: that it will be.
        signed_by: keys that have signed it and count.
        may_sign: keys that could, and have not.
        missing: how many more of them must; 0 when others hold it up.
    """

    role: str
    version: int
    signed_by: tuple[str, ...]
    may_sign: tuple[str, ...]
    missing: int


@dataclass(frozen=True, slots=True)
class Settled:
    """What became visible, and what waits.

    Attributes:
        shown: roles of which agents see a new version now.
        waiting: drafts without their signatures.
        online_missing: online roles whose key is not at hand.
    """

    shown: tuple[str, ...]
    waiting: tuple[Waiting, ...]
    online_missing: tuple[str, ...] = ()


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

    def draft_seals(self, model: str, seals: Sequence[tuple[Seal, bool]]) -> None:
        """Draft that these seals of a model are to be signed.

        Args:
            model: whose.
            seals: each, and whether it is a way back: of those only some are kept.

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
        self._draft_targets(model, files)

    def draft_folder(self, model: str, version: str, seal: bytes) -> None:
        """Draft that the seal of a folder of the cloud's models is to be signed."""
        target = layout.cloud_target(model, version)
        self._draft_targets(model, {target: (seal, False)})

    def revoke(self, model: str, version: str) -> list[Named]:
        """Draft that a version is no longer signed, in any epoch.

        Raises:
            TrustRefused: no such version is signed or drafted.
        """
        with self.drafts.alone():
            gone = [each for each in self.names(model) if each.version == version]
            if not gone:
                raise TrustRefused(f"no {model} {version} is signed or drafted")
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
            if role not in root.roles:
                raise TrustRefused(f"{role!r} is no role: use {', '.join(roles.TOP)}")
            keys = root.roles[role].keyids
            if old_key_id is None and len(keys) == 1:
                old_key_id = keys[0]
            if old_key_id is None or old_key_id not in keys:
                raise TrustRefused(
                    f"say which key of {role} goes: {', '.join(sorted(keys))}"
                )
            if new.key_id in root.keys:
                raise TrustRefused(f"key {new.key_id} is in use already")
            root.revoke_key(old_key_id, role)
            root.add_key(_key_for_tuf(new), role)
            self._draft(roles.ROOT, metadata)
            if role == roles.TARGETS:
                self._delegate_anew()
        return old_key_id

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
        self, model: str, files: Mapping[str, tuple[bytes, bool]]
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
            _drop_old_ways_back(metadata.signed)
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
        _date(metadata, role, self._now_s())
        self.drafts.write(role, metadata)

    # --- signing and showing ----------------------------------------------------------

    def sign(self, ring: KeyRing) -> list[tuple[str, str]]:
        """Sign each draft with the keys at hand that may.

        Returns:
            Roles and the ids of keys whose signatures were added.

        Raises:
            KeyRejected: a key cannot be used.
        """
        at_hand = ring.at_hand()
        added: list[tuple[str, str]] = []
        with self.drafts.alone():
            for role in self.drafts.roles():
                added += [
                    (role, key_id)
                    for key_id in self._may_sign(role)
                    if key_id in at_hand
                    and self.drafts.sign(role, ring.signer(at_hand[key_id]))
                ]
        return added

    def settle(self, ring: KeyRing) -> Settled:
        """Show what has its signatures, if the online keys are at hand.

        Raises:
            KeyRejected: an online key is at hand and cannot be used.
            OSError: the registry cannot be written.
        """
        with self.drafts.alone():
            show = self._complete()
            waiting = tuple(
                self._waits(role) for role in self.drafts.roles() if role not in show
            )
            if not show:
                return Settled((), waiting)
            missing = self._without_keys(show, ring)
            if missing:
                return Settled((), waiting, missing)
            self._show(show, ring)
        return Settled(tuple(show), waiting)

    def renew(self, ring: KeyRing, *, everything: bool = False) -> tuple[str, ...]:
        """Sign the snapshot and the timestamp anew if half of their life is over.

        Args:
            ring: holds the online keys.
            everything: even if it is not.

        Returns:
            The roles that were renewed.

        Raises:
            KeyRejected: a key is missing or cannot be used.
            NoTrust: nothing is published yet.
        """
        with self.drafts.alone():
            snapshot, timestamp = self.published.snapshot(), self.published.timestamp()
            if snapshot is None or timestamp is None:
                raise NoTrust("nothing is published yet: run overspill trust status")
            due = [
                role
                for role, metadata in (
                    (roles.SNAPSHOT, snapshot),
                    (roles.TIMESTAMP, timestamp),
                )
                if everything or _is_due(metadata, role, self._now_s())
            ]
            if not due:
                return ()
            if roles.SNAPSHOT in due:
                self._show({}, ring)
                return (roles.SNAPSHOT, roles.TIMESTAMP)
            self._show_timestamp(snapshot.signed.version, self.published.root(), ring)
        return (roles.TIMESTAMP,)

    def waiting(self) -> list[Waiting]:
        """Every draft, and what it needs."""
        return [self._waits(role) for role in self.drafts.roles()]

    def _complete(self) -> dict[str, AnyMetadata]:
        """The drafts that can be shown now and leave nothing unverifiable."""
        show: dict[str, AnyMetadata] = {}
        root_draft = self.drafts.read(roles.ROOT)
        if root_draft is not None and self._waits(roles.ROOT).missing == 0:
            show[roles.ROOT] = root_draft
        try:
            root = show.get(roles.ROOT) or self.published.root()
        except NoTrust:
            return {}
        targets = self._pick(roles.TARGETS, root, show)
        if targets is None:
            # New keys for targets, and too few have signed by them.
            return {}
        unfit = [
            role
            for role in (targets.signed.delegations or Delegations({}, {})).roles or {}
            if self._pick(role, targets, show) is None
        ]
        if unfit and roles.TARGETS in show:
            # Shown without them, these models could not be verified at all.
            return {}
        return show

    def _pick(
        self, role: str, delegator: AnyMetadata, show: dict[str, AnyMetadata]
    ) -> AnyMetadata | None:
        draft = self.drafts.read(role)
        if draft is not None and _verifies(delegator, role, draft):
            show[role] = draft
            return draft
        published = self.published.targets(role)
        if published is not None and _verifies(delegator, role, published):
            return published
        return None

    def _waits(self, role: str) -> Waiting:
        draft = self.drafts.read(role)
        if draft is None:
            raise TrustRefused(f"there is no draft of {role}")
        valid, may, missing = set(), set(), 0
        for delegator in self._delegators(role):
            result = delegator.signed.get_verification_result(
                role, draft.signed_bytes, draft.signatures
            )
            valid |= {*result.signed}
            may |= {*result.unsigned}
            missing = max(missing, result.threshold - len(result.signed))
        return Waiting(
            role,
            draft.signed.version,
            tuple(sorted(valid)),
            tuple(sorted(may - valid)),
            max(0, missing),
        )

    def _may_sign(self, role: str) -> list[str]:
        found: set[str] = set()
        for delegator in self._delegators(role):
            found.update(delegator.signed.get_delegated_role(role).keyids)
        return sorted(found)

    def _delegators(self, role: str) -> list[AnyMetadata]:
        """Whose keys must have signed a draft of this role."""
        if roles.model_of(role) is not None:
            targets = self.drafts.read(roles.TARGETS) or self.published.targets(
                roles.TARGETS
            )
            return [] if targets is None else [targets]
        draft = self.drafts.read(roles.ROOT)
        try:
            published: AnyMetadata | None = self.published.root()
        except NoTrust:
            published = None
        if role == roles.ROOT:
            return [each for each in (published, draft) if each is not None]
        newest = draft or published
        return [] if newest is None else [newest]

    def _without_keys(
        self, show: Mapping[str, AnyMetadata], ring: KeyRing
    ) -> tuple[str, ...]:
        root = (show.get(roles.ROOT) or self.published.root()).signed
        at_hand = ring.at_hand()
        return tuple(
            role for role in roles.ONLINE if not {*root.roles[role].keyids} & {*at_hand}
        )

    def _show(self, show: Mapping[str, AnyMetadata], ring: KeyRing) -> None:
        """Write what agents will read; the timestamp last, which makes them look."""
        root = show.get(roles.ROOT) or self.published.root()
        before = self.published.snapshot()
        versions = {roles.SNAPSHOT: 1 if before is None else before.signed.version + 1}
        for role in [] if before is None else _listed(before.signed):
            # Not as the old snapshot says: its key may have been stolen.
            kept = self.published.targets(role) if role not in show else None
            if kept is not None:
                versions[role] = kept.signed.version
        for role, metadata in show.items():
            self._prune(role, metadata)
            versions[role] = metadata.signed.version
            if role != roles.ROOT:
                self.published.write(role, metadata)
        meta = {
            f"{role}.json": MetaFile(version)
            for role, version in versions.items()
            if roles.kind(role) == roles.TARGETS
        }
        snapshot = Metadata(Snapshot(version=versions[roles.SNAPSHOT], meta=meta))
        self._sign_online(snapshot, roles.SNAPSHOT, root, ring)
        self.published.write(roles.SNAPSHOT, snapshot)
        if roles.ROOT in show:
            self.published.write(roles.ROOT, root)
        self._show_timestamp(versions[roles.SNAPSHOT], root, ring)
        self.published.shown(versions)
        # A crash before this shows the same once more, under the same versions.
        for role in show:
            self.drafts.drop(role)

    def _prune(self, role: str, metadata: AnyMetadata) -> None:
        """Leave out signatures that do not count: every agent would fetch them."""
        counting = [
            key_id for key_id in self._may_sign(role) if key_id in metadata.signatures
        ]
        if role != roles.ROOT:
            counting = counting[: roles.OFFLINE_THRESHOLD]
        metadata.signatures = {each: metadata.signatures[each] for each in counting}

    def _show_timestamp(
        self, snapshot_version: int, root: AnyMetadata, ring: KeyRing
    ) -> None:
        before = self.published.timestamp()
        timestamp = Metadata(
            Timestamp(
                version=1 if before is None else before.signed.version + 1,
                snapshot_meta=MetaFile(snapshot_version),
            )
        )
        self._sign_online(timestamp, roles.TIMESTAMP, root, ring)
        self.published.write(roles.TIMESTAMP, timestamp)
        self.published.shown({roles.TIMESTAMP: timestamp.signed.version})

    def _sign_online(
        self, metadata: AnyMetadata, role: str, root: AnyMetadata, ring: KeyRing
    ) -> None:
        metadata.signatures.clear()
        _date(metadata, role, self._now_s())
        at_hand = ring.at_hand()
        key_ids = [each for each in root.signed.roles[role].keyids if each in at_hand]
        if not key_ids:
            raise TrustRefused(
                f"the key of {role} is not at hand: run this where the fleet's online "
                "keys are, or replace it (overspill trust rotate)"
            )
        metadata.sign(ring.signer(at_hand[key_ids[0]]))


def _listed(snapshot: Snapshot) -> list[str]:
    return [each.removesuffix(".json") for each in snapshot.meta]


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


def _date(metadata: AnyMetadata, role: str, now_s: float) -> None:
    metadata.signed.expires = roles.expiry(role, now_s)
    metadata.signed.unrecognized_fields[roles.SIGNED_AT] = int(now_s)


def _is_due(metadata: AnyMetadata, role: str, now_s: float) -> bool:
    left_s = metadata.signed.expires.timestamp() - now_s
    return bool(left_s < roles.LIFE_S[role] * roles.RENEW_AT)


def _verifies(delegator: AnyMetadata, role: str, metadata: AnyMetadata) -> bool:
    try:
        return bool(
            delegator.signed.get_verification_result(
                role, metadata.signed_bytes, metadata.signatures
            )
        )
    except ValueError:
        return False


def _drop_old_ways_back(targets: Targets) -> None:
    ways = [each for each in named(targets.targets) if each.back]
    for each in ways[:-KEEP_WAYS_BACK]:
        del targets.targets[each.target]
