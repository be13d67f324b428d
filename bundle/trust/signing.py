"""Sign drafts by threshold, and show what has its signatures.

What becomes visible together is found out first; then it is written, the timestamp
last, because that is what makes agents look.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass

from tuf.api.metadata import Delegations, Metadata, MetaFile, Snapshot, Timestamp

from bundle.trust import roles
from bundle.trust.drafts import AnyMetadata, Drafts
from bundle.trust.errors import NoTrust, TrustRefused
from bundle.trust.keys import KeyRing, PassphraseNeeded
from bundle.trust.published import Published


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


@dataclass(frozen=True, slots=True)
class Signed:
    """What signing did.

    Attributes:
        added: roles and the ids of keys whose signatures were added.
        locked: why keys that may sign and are at hand did not, by id.
    """

    added: tuple[tuple[str, str], ...]
    locked: Mapping[str, str]


class Signing:
    """Signs and shows. Every call blocks.

    Args:
        drafts: what waits.
        published: what agents see.
        now_s: gives the time, in seconds since 1970.
    """

    def __init__(
        self, drafts: Drafts, published: Published, now_s: Callable[[], float]
    ) -> None:
        self._now_s = now_s
        self.drafts = drafts
        self.published = published

    def sign(self, ring: KeyRing) -> Signed:
        """Sign each draft with the keys at hand that may.

        Raises:
            KeyRejected: a key cannot be used, and not for want of a passphrase.
        """
        at_hand = ring.at_hand()
        added: list[tuple[str, str]] = []
        locked: dict[str, str] = {}
        with self.drafts.alone():
            for role in self.drafts.roles():
                for key_id in self._may_sign(role):
                    if key_id not in at_hand or key_id in locked:
                        continue
                    try:
                        signer = ring.signer(at_hand[key_id])
                    except PassphraseNeeded as error:
                        locked[key_id] = str(error)
                        continue
                    if self.drafts.sign(role, signer):
                        added.append((role, key_id))
        return Signed(tuple(added), locked)

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
        date(metadata, role, self._now_s())
        at_hand = ring.at_hand()
        key_ids = [each for each in root.signed.roles[role].keyids if ring.opens(each)]
        if not key_ids:
            raise TrustRefused(
                f"the key of {role} is not at hand: run this where the fleet's online "
                "keys are, or replace it (overspill trust rotate)"
            )
        metadata.sign(ring.signer(at_hand[key_ids[0]]))


def date(metadata: AnyMetadata, role: str, now_s: float) -> None:
    """Say in metadata that it is signed now, and when it expires."""
    metadata.signed.expires = roles.expiry(role, now_s)
    metadata.signed.unrecognized_fields[roles.SIGNED_AT] = int(now_s)


def _listed(snapshot: Snapshot) -> list[str]:
    return [each.removesuffix(".json") for each in snapshot.meta]


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
