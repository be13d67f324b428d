"""Which versions of the pool's models the fleet's keys have signed. Every call blocks.

A version is digested once for each state of its files. What was found signed stays so
while its files stay the same; what was not is looked up again, as it may be signed by
now.
"""

from __future__ import annotations

import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import structlog

from bundle import layout
from bundle.folder_seal import FolderSeal, read_folder_seal, seal_folder, verify_folder
from bundle.open_tree import open_tree
from bundle.seal import SealRejected
from bundle.source import Piece, SourceUnavailable
from bundle.tree import Tree
from bundle.trust.errors import Stale, Untrusted

log = structlog.get_logger(__name__)

LOOK_AGAIN_S: Final = 30.0


class NoTrustedRoot(Exception):
    """What is needed to verify models is not configured; says what."""


def signed_models(
    root_file: Path | None, trust_dir: Path | None, registry: Path | str | None
) -> SignedModels | None:
    """What verifies models as a worker is configured; None when nothing does.

    Raises:
        NoTrustedRoot: there is a root, and no registry to find signatures in.
        OSError: the root cannot be read.
    """
    if root_file is None:
        log.warning(
            "models are loaded unverified: no trusted root is configured, which is for "
            "development"
        )
        return None
    if registry is None:
        raise NoTrustedRoot(
            "OVERSPILL_WORKER_TRUSTED_ROOT is set, but no registry to find signatures "
            "in: set OVERSPILL_WORKER_REGISTRY as well"
        )
    return SignedModels(
        root_file.read_bytes(),
        trust_dir or Path(tempfile.mkdtemp(prefix="overspill-trust-")),
        open_tree(registry),
    )


@dataclass(slots=True)
class _Known:
    """A version as its files were: what they digest to, and what was last found."""

    state: str
    found: FolderSeal
    refusal: str | None
    looked_s: float


class SignedModels:
    """Verifies folders against seals in the registry.

    Args:
        root_json: the fleet's root, as it was given to this worker.
        folder: where what was seen of the trust is kept; a lasting one remembers, and
            so refuses what is older.
        tree: the registry.
    """

    def __init__(
        self,
        root_json: bytes,
        folder: Path,
        tree: Tree,
        *,
        monotonic: Callable[[], float] = time.monotonic,
        wall_s: Callable[[], float] = lambda: time.clock_gettime(time.CLOCK_REALTIME),
    ) -> None:
        self._root = root_json
        self._folder = folder
        self._tree = tree
        self._monotonic = monotonic
        self._wall_s = wall_s
        self._known: dict[Path, _Known] = {}

    def refusal(self, folder: Path, name: str, version: str, state: str) -> str | None:
        """Why a version must not be loaded; None when it may.

        Args:
            folder: of the version.
            name: of the model.
            version: its own name.
            state: changes whenever the files do.
        """
        now_s = self._monotonic()
        known = self._known.get(folder)
        if known is not None and known.state == state:
            if known.refusal is None or now_s - known.looked_s < LOOK_AGAIN_S:
                return known.refusal
            found = known.found
        else:
            try:
                found = seal_folder(folder, name, version)
            except (SealRejected, OSError) as error:
                return str(error)
        refusal = self._refusal(found)
        self._known[folder] = _Known(state, found, refusal, now_s)
        return refusal

    def _refusal(self, found: FolderSeal) -> str | None:
        target = layout.cloud_target(found.name, found.version)
        try:
            try:
                data = self._target(target, self._wall_s())
            except Stale as error:
                # Two of three keys have signed it, only long ago. A pool that could
                # not be started since the fleet's daemon was down would be worse.
                log.error("trust metadata has expired", reason=str(error))
                data = self._target(target, 0.0)
            verify_folder(found, read_folder_seal(data))
        except (Untrusted, SealRejected, SourceUnavailable, OSError) as error:
            return f"not loaded, because it could not be verified: {error}"
        return None

    def _target(self, target: str, clock_s: float) -> bytes:
        # Imported here: most workers verify nothing, and python-tuf takes 27 MB.
        from bundle.trust.client import look  # noqa: PLC0415

        result = look(
            self._root,
            self._folder,
            [("registry", self._read)],
            clock_s=clock_s,
            target=target,
        )
        result.check()
        return result.target or b""

    def _read(self, path: str, offset: int, length: int) -> Piece:
        try:
            return self._tree.piece(path, offset, length)
        except OSError as error:
            raise SourceUnavailable(f"cannot read {path}: {error}") from error
