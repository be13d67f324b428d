"""Bundles and desired documents where the worker pool serves them, and what is signed.

Every call blocks.
"""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from broker.codec import encode
from broker.messages import Desired, DesiredModel
from bundle import layout
from bundle.canonical import canonical
from bundle.folder_seal import FolderSeal, seal_folder
from bundle.pack import pack
from bundle.seal import Seal, make_seal
from bundle.tree import Tree
from bundle.trust.epochs import next_epochs
from bundle.trust.errors import NoTrust, TrustRefused
from bundle.trust.naming import Named
from bundle.trust.repository import Repository
from fleet.adapters.trust_home import Signature, TrustHome
from fleet.core.rollouts import WayBack

NO_TRUST: Final = (
    "no trust is set up yet, so nothing can be signed: run overspill trust init, or "
    "overspill trust init --dev to try things out on one machine"
)


class AlreadyPublished(ValueError):
    """This name and version is taken by other bytes."""


@dataclass(frozen=True, slots=True)
class SignedVersion:
    """A version that agents take, and the way back that was signed with it."""

    name: str
    version: str
    epoch: int
    way_back: WayBack | None


@dataclass(frozen=True, slots=True)
class Publication:
    """What a publish did.

    Attributes:
        seal: of the version, in its epoch.
        way_back: what was drafted as the way back from it.
        new: false when the same bytes were published before.
        signature: what signing did and what waits for more.
        signed: whether agents can see it.
    """

    seal: Seal
    way_back: WayBack | None
    new: bool
    signature: Signature
    signed: bool


class Registry:
    """The tree that workers serve.

    Args:
        tree: its files.
        trust: drafts, signs and shows.
    """

    def __init__(self, tree: Tree, trust: TrustHome) -> None:
        self._tree = tree
        self._trust = trust

    @property
    def _repository(self) -> Repository:
        return self._trust.repository

    def publish(
        self,
        source_dir: Path,
        back_to: Callable[[str], str | None] = lambda _: None,
        in_use: Callable[[str], Collection[int]] = lambda _: (),
    ) -> Publication:
        """Pack, seal and store the bundle in `source_dir`; draft it, and sign.

        Args:
            source_dir: the bundle's folder.
            back_to: names the version of a model that an automatic way back leads
                to; for None it is the one that was published before.
            in_use: names the epochs of a model's ways back that rollouts may take.

        Raises:
            BundleRejected: the folder is no bundle.
            AlreadyPublished: its name and version are taken by other bytes.
            NoTrust: nobody can sign anything yet.
            TrustRefused: there is no version `back_to`.
            KeyRejected: a key at hand cannot be used.
            OSError: the disk is full, or the registry cannot be written.
        """
        if not self._repository.is_there:
            raise NoTrust(NO_TRUST)
        with tempfile.TemporaryDirectory(prefix="overspill-pack-") as folder:
            packed = Path(folder) / "bundle.tar"
            manifest = pack(source_dir, packed)
            made = make_seal(packed, manifest.name, manifest.version)
            made = made.model_copy(update={"requires": manifest.requires})
            name = made.name
            return self._publish(packed, made, back_to(name), in_use(name))

    def _publish(
        self, packed: Path, made: Seal, back_to: str | None, in_use: Collection[int]
    ) -> Publication:
        with self._trust.alone():
            before = self._find(made.name, made.version)
            if before is not None and before.sha256 != made.sha256:
                raise AlreadyPublished(
                    f"{made.name} {made.version} is published with other contents "
                    f"(digest {before.sha256[:16]}…, this is {made.sha256[:16]}…): "
                    "give this one a new version"
                )
            # Also when it is there: what the disk damaged is mended.
            self._tree.write_copy(layout.blob(made.sha256), packed)
            way_back = None
            if before is None:
                made, way_back = self._draft(made, back_to, in_use)
            else:
                made = before
            signature = self._trust.sign()
        return Publication(
            made,
            way_back,
            before is None,
            signature,
            signed=self._is_signed(made),
        )

    def publish_folder(self, folder: Path) -> tuple[FolderSeal, Signature]:
        """Seal a version of the pool's models where it lies; draft it, and sign.

        Args:
            folder: `…/NAME/VERSION`, as workers find it.

        Raises:
            SealRejected: it cannot be sealed.
            NoTrust: nobody can sign anything yet.
            KeyRejected: a key at hand cannot be used.
            OSError: it cannot be read, or the registry not be written.
        """
        folder = folder.resolve()
        seal = seal_folder(folder, folder.parent.name, folder.name)
        if not self._repository.is_there:
            raise NoTrust(NO_TRUST)
        with self._trust.alone():
            data = canonical(seal.model_dump(mode="json"))
            self._repository.draft_folder(seal.name, seal.version, data)
            return seal, self._trust.sign()

    def published(self) -> list[SignedVersion]:
        """What agents take, by model and then by epoch."""
        return [
            each
            for model in self._repository.models()
            for each in self.signed_versions(model)
        ]

    def signed_versions(self, model: str) -> list[SignedVersion]:
        """What agents take of one model, by epoch; a version's newest own epoch."""
        named = self._bundles(model, drafted=False)
        ways = {each.epoch: each.version for each in named if each.back}
        newest: dict[str, SignedVersion] = {}
        for each in named:
            if each.back or each.epoch is None:
                continue
            back = ways.get(each.epoch + 1)
            newest[each.version] = SignedVersion(
                model,
                each.version,
                each.epoch,
                None if back is None else WayBack(back, each.epoch + 1),
            )
        return sorted(newest.values(), key=lambda each: each.epoch)

    def is_way_back(self, model: str, way_back: WayBack) -> bool:
        """Whether agents would still take this version in this epoch."""
        wanted = (way_back.version, way_back.epoch)
        named = self._bundles(model, drafted=False)
        return any((each.version, each.epoch) == wanted for each in named)

    def known_versions(self, model: str) -> frozenset[str]:
        """The versions of a model that are signed or drafted."""
        return frozenset(
            each.version
            for drafted in (True, False)
            for each in self._bundles(model, drafted=drafted)
            if not each.back
        )

    def seal(self, model: str, version: str) -> Seal:
        """The seal of a version that is signed or drafted, in its own epoch.

        Raises:
            TrustRefused: there is none.
        """
        seal = self._find(model, version)
        if seal is None:
            raise TrustRefused(f"{model} {version} is not published")
        return seal

    def named_blobs(self) -> set[str]:
        """The digests of all packed bundles that are signed or drafted.

        Raises:
            NoTrust, TrustRefused, NotThere: it cannot be told for all of them.
        """
        return {
            self._repository.seal(each).sha256
            for model in self._repository.models()
            for drafted in (False, True)
            for each in self._bundles(model, drafted=drafted)
        }

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

    def _draft(
        self, made: Seal, back_to: str | None, in_use: Collection[int]
    ) -> tuple[Seal, WayBack | None]:
        back = self._way_back(made.name, back_to)
        epochs = next_epochs(
            self._repository.last_epoch(made.name), way_back=back is not None
        )
        made = made.model_copy(update={"epoch": epochs.own})
        seals = [(made, False)]
        way_back = None
        if back is not None and epochs.way_back is not None:
            seal = self._repository.seal(back)
            signed = {"epoch": epochs.way_back, "way_back": True}
            seals.append((seal.model_copy(update=signed), True))
            way_back = WayBack(back.version, epochs.way_back)
        self._repository.draft_seals(made.name, seals, in_use)
        return made, way_back

    def _way_back(self, model: str, version: str | None) -> Named | None:
        named = self._bundles(model)
        if version is not None:
            named = [each for each in named if each.version == version]
            if not named:
                raise TrustRefused(
                    f"{model} {version} is not published: cannot go back"
                )
        own = [each for each in named if not each.back]
        return own[-1] if own else None

    def _find(self, model: str, version: str) -> Seal | None:
        found = [
            each
            for each in self._bundles(model)
            if each.version == version and not each.back
        ]
        return self._repository.seal(found[-1]) if found else None

    def _bundles(self, model: str, *, drafted: bool = True) -> list[Named]:
        return [
            each
            for each in self._repository.names(model, drafted=drafted)
            if each.epoch is not None
        ]

    def _is_signed(self, seal: Seal) -> bool:
        return any(
            (each.version, each.epoch) == (seal.version, seal.epoch)
            for each in self._bundles(seal.name, drafted=False)
        )


def desired_document(agent: str, models: Sequence[DesiredModel]) -> bytes:
    """What an agent reads of what it should serve."""
    return encode(Desired(agent=agent, models=list(models)))
