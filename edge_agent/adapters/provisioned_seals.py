"""Who signed the bundles that came with the device: asked of what came with them.

A device serves from its first start, without a network, perhaps after months in a box.
So the signed metadata that says what its first bundles are comes along, in a copy of
the registry, and is verified from the root that the device was given.
"""

from __future__ import annotations

import re
import tempfile
from collections.abc import Awaitable, Callable, Iterator
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Final

import structlog
from typing_extensions import override

from bundle import layout
from bundle.folder_tree import FolderTree
from bundle.pack import BundleRejected
from bundle.seal import MAX_SEAL_BYTES, Seal, SealRejected, read_seal
from bundle.source import NotThere, SourceUnavailable
from bundle.tree_source import TreeSource
from bundle.trust.errors import NotSigned, Stale, Untrusted
from edge_agent.adapters.trusted_seals import TrustedSeals
from lifecycle.clock import Clock, SystemClock

log = structlog.get_logger(__name__)

# A version is seldom published twice; each look costs a process.
MAX_LOOKS: Final = 4

Vouch = Callable[[str, str], Awaitable[Seal | None]]
"""The seal of a model's version; None when nobody needs to vouch for it."""


async def anybody(_model: str, _version: str) -> Seal | None:
    """Whoever configures the agent vouches for what it came with."""
    return None


def who_vouches(
    root_json: Path | None,
    registry: Path | None,
    folder: Path,
    *,
    unsigned: bool,
    clock: Clock | None = None,
) -> Vouch:
    """Who says what the bundles are that came with the device.

    Args:
        root_json: the root that was baked in; without one there is nobody to ask.
        registry: the copy that came along.
        folder: of the agent's own, for temporary files.
        unsigned: bundles are taken as they are.
        clock: judges whether the copy has expired.
    """
    if root_json is None or unsigned:
        return anybody
    return ProvisionedSeals(root_json, registry, folder, clock).seal_of


class ProvisionedSeals:
    """What the fleet's keys had signed when the device was provisioned.

    Args:
        root_json: the root that was baked in.
        registry: the folder that came along: `metadata/` and `targets/` of the registry;
            None when there is none.
        folder: of the agent's own, for temporary files.
        clock: judges whether it has expired, which is no reason to serve nothing.
    """

    def __init__(
        self,
        root_json: Path,
        registry: Path | None,
        folder: Path,
        clock: Clock | None = None,
    ) -> None:
        self._root = root_json
        self._registry = registry
        self._folder = folder
        self._clock = clock or SystemClock()

    async def seal_of(self, model: str, version: str) -> Seal:
        """The seal of a version in the newest epoch that it was published in.

        Raises:
            BundleRejected: the copy does not show that it was signed; what to do.
            OSError: nothing can be written there.
        """
        if self._registry is None:
            raise BundleRejected(
                f"{model} {version} came with the agent, and nothing shows that the "
                "fleet's keys have signed it: give the agent a copy of the registry's "
                "metadata and targets (OVERSPILL_AGENT_PROVISIONED_REGISTRY), or take "
                "it as it is (OVERSPILL_AGENT_UNSIGNED_BUNDLES=true)"
            )
        why, tree = "there is no seal of it", FolderTree(self._registry)
        with tempfile.TemporaryDirectory(dir=self._folder, prefix=".seen-") as seen:
            for epoch in islice(self._epochs(tree, model, version), MAX_LOOKS):
                look = _Look(self._root, Path(seen), tree, self._clock)
                try:
                    seal = await look.seal(model, version, epoch)
                except NotSigned as error:
                    why = str(error)
                except (Untrusted, SealRejected, SourceUnavailable) as error:
                    why = str(error)
                    break
                else:
                    if not seal.way_back:
                        return seal
        raise BundleRejected(
            f"{model} {version} came with the agent, and is not signed in "
            f"{self._registry}: {why}. Publish it, and copy the registry anew"
        )

    @staticmethod
    def _epochs(tree: FolderTree, model: str, version: str) -> Iterator[int]:
        """In which epochs it was published, the newest first; nothing is believed yet.

        Each publish of another version may have signed a way back to this one: those
        that say so themselves cost no look.
        """
        folder = f"{layout.TARGETS}/{model}"
        named = re.compile(rf"[0-9a-f]+\.{re.escape(version)}\.(\d{{1,16}})\.json")
        found = [
            match for name in tree.names(folder) if (match := named.fullmatch(name))
        ]
        for match in sorted(found, key=lambda each: int(each[1]), reverse=True):
            if not _says_way_back(tree, f"{folder}/{match[0]}"):
                yield int(match[1])


def _says_way_back(tree: FolderTree, path: str) -> bool:
    try:
        return read_seal(tree.read(path, max_bytes=MAX_SEAL_BYTES)).way_back
    except (SealRejected, NotThere, OSError):
        return False  # A look says what is wrong with it.


@dataclass(frozen=True, slots=True)
class _Look:
    root: Path
    seen: Path
    tree: FolderTree
    clock: Clock

    async def seal(self, model: str, version: str, epoch: int) -> Seal:
        try:
            return await self._trust(self.clock).seal_for(model, version, epoch)
        except Stale as error:
            # Two of three keys have signed it, only long ago: the box stood on a shelf.
            log.warning("provisioned_metadata_has_expired", reason=str(error))
        return await self._trust(_NoClock()).seal_for(model, version, epoch)

    def _trust(self, clock: Clock) -> TrustedSeals:
        return TrustedSeals(self.root, self.seen, [TreeSource(self.tree)], clock=clock)


class _NoClock(SystemClock):
    """A clock that stands: what was signed is judged by the floor of time alone."""

    @override
    def wall_ms(self) -> int:
        return 0
