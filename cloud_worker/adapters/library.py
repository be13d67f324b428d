"""What a repository holds once it has settled: half-copied versions are not there yet.

A version counts when it has not changed between two looks, or for that long, or when
its folder got its name after all that is in it had been written. One that counted and
is being written to stays as it was.
"""

from __future__ import annotations

import hashlib
import os
import time
from collections.abc import Callable, Collection, Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path

import structlog

from cloud_worker.adapters.repository import (
    Candidate,
    Found,
    NoRepository,
    Refused,
    find_models,
    version_age,
)
from cloud_worker.core.policy import Policy
from cloud_worker.core.shelf import Key, Shelf, Stored

log = structlog.get_logger(__name__)


Refusal = Callable[[Path, str, str, str], str | None]
"""Why a version must not be loaded: its folder, name, version, and state of files."""


def anything(_folder: Path, _name: str, _version: str, _state: str) -> None:
    """Where no root is configured, whatever lies in the repository is served."""


@dataclass(frozen=True, slots=True)
class Holdings:
    """What can be served: shelves for the decision, candidates for the loading."""

    shelves: Mapping[str, Shelf]
    candidates: Mapping[Key, Candidate]


@dataclass(frozen=True, slots=True)
class _Files:
    """All files of a version at one moment."""

    digest: str
    size_bytes: int
    changed_s: float
    came_whole: bool


@dataclass(frozen=True, slots=True)
class _Kept:
    """A version as it was when it last had settled."""

    candidate: Candidate
    stored: Stored


class Library:
    """A repository that is looked at again and again, by one thread at a time.

    Args:
        root: the folder of `{name}/{version}/`.
        max_batch: for models whose `model.json` does not say.
        only: the models to look at; none: all of them.
        settle_s: so long a version must not have changed.
        refusal: why a version must not be loaded, given its folder, name, version and
            the state of its files; None when it may.
    """

    def __init__(
        self,
        root: Path,
        *,
        max_batch: int,
        only: Collection[str] = (),
        settle_s: float = 2.0,
        refusal: Refusal = anything,
    ) -> None:
        self._root = root
        self._max_batch = max_batch
        self._only = frozenset(only)
        self._settle_s = settle_s
        self._refusal = refusal
        self._seen: dict[Path, str] = {}
        self._kept: dict[Path, _Kept] = {}
        self._policies: dict[str, Policy] = {}
        self._said: set[tuple[Path, str]] = set()
        self._first = True

    def look(self) -> Holdings:
        """Look at every file of the repository; blocks.

        Raises:
            NoRepository: it is missing, unreadable or holds no model.
        """
        found = find_models(self._root, max_batch=self._max_batch, only=self._only)
        self._judge(found)
        unsigned = self._pass_over_what_may_not()
        self._report([*found.refused, *unsigned])
        if self._first and unsigned and not self._kept:
            raise NoRepository(
                f"{self._root} holds no model that may be loaded; {unsigned[0].path}: "
                f"{unsigned[0].reason}. Sign it: overspill model publish --cloud "
                f"{unsigned[0].path}"
            )
        self._first = False
        # A policy that is wrong now stays as it last was right.
        self._policies |= found.policies
        shelves: dict[str, Shelf] = {}
        candidates: dict[Key, Candidate] = {}
        for kept in self._kept.values():
            name, version = kept.candidate.source.name, kept.stored.version
            if name in self._policies:
                before = shelves.get(name, Shelf((), self._policies[name]))
                shelves[name] = replace(
                    before, versions=(*before.versions, kept.stored)
                )
                candidates[Key(name, version)] = kept.candidate
        return Holdings(shelves, candidates)

    def _judge(self, found: Found) -> None:
        """See which versions have settled, and keep the others as they were."""
        seen: dict[Path, str] = {}
        kept: dict[Path, _Kept] = {}
        for versions in found.models.values():
            settled = False
            young: list[tuple[Candidate, _Files]] = []
            for candidate in versions:
                folder = candidate.folder
                files = _files(folder)
                if files is None:
                    continue
                seen[folder] = files.digest
                if self._has_settled(folder, files):
                    kept[folder] = _keep(candidate, files)
                    settled = True
                elif folder in self._kept:
                    kept[folder] = self._kept[folder]
                else:
                    young.append((candidate, files))
            if self._first and not settled:
                # Nothing better is there to begin with; a half copy fails to load.
                for candidate, files in young:
                    kept[candidate.folder] = _keep(candidate, files)
        self._keep_what_is_rewritten(found.refused, seen, kept)
        self._seen = seen
        newest_first = sorted(
            kept.values(),
            key=lambda each: version_age(each.stored.version),
            reverse=True,
        )
        self._kept = {each.candidate.folder: each for each in newest_first}

    def _pass_over_what_may_not(self) -> list[Refused]:
        """Leave out what must not be loaded, also when it was loaded before."""
        passed_over = []
        for folder, kept in list(self._kept.items()):
            source = kept.candidate.source
            reason = self._refusal(
                folder, source.name, source.version, kept.stored.files
            )
            if reason is not None:
                passed_over.append(Refused(folder, reason))
                del self._kept[folder]
        return passed_over

    def _keep_what_is_rewritten(
        self,
        refused: Collection[Refused],
        seen: dict[Path, str],
        kept: dict[Path, _Kept],
    ) -> None:
        """A version that was fine and is in pieces now may be between two states."""
        for each in refused:
            if each.path not in self._kept:
                continue
            files = _files(each.path)
            if files is not None:
                seen[each.path] = files.digest
                if not self._has_settled(each.path, files):
                    kept[each.path] = self._kept[each.path]

    def _has_settled(self, folder: Path, files: _Files) -> bool:
        return (
            files.came_whole
            or self._seen.get(folder) == files.digest
            or self._settle_s < _wall_s() - files.changed_s
        )

    def _report(self, refused: Collection[Refused]) -> None:
        """Say once what is passed over; and again when it was away in between."""
        now = {(each.path, each.reason) for each in refused}
        for path, reason in sorted(now - self._said):
            log.warning("model passed over", path=str(path), why=reason)
        self._said = now


def _keep(candidate: Candidate, files: _Files) -> _Kept:
    version = candidate.source.version
    return _Kept(candidate, Stored(version, files.digest, files.size_bytes))


def _wall_s() -> float:
    """Seconds as files are stamped; nothing but their age is told by it."""
    return time.clock_gettime(time.CLOCK_REALTIME)


def _files(folder: Path) -> _Files | None:
    """Names, sizes and times of all that is in a folder; None when it changes."""
    digest = hashlib.blake2s()
    size_bytes = changed_ns = 0
    try:
        for path, status in _walk(folder):
            digest.update(
                f"{path}\0{status.st_size}\0{status.st_mtime_ns}\0".encode(
                    errors="surrogateescape"
                )
            )
            size_bytes += status.st_size
            changed_ns = max(changed_ns, status.st_mtime_ns, status.st_ctime_ns)
        own = folder.stat()
    except OSError:
        return None
    # Whatever is put into a folder sets its mtime; a new name sets its ctime alone.
    came_whole = own.st_ctime_ns > own.st_mtime_ns and own.st_ctime_ns >= changed_ns
    changed_s = max(changed_ns, own.st_mtime_ns) / 1e9
    return _Files(digest.hexdigest(), size_bytes, changed_s, came_whole)


def _walk(folder: Path) -> Iterator[tuple[str, os.stat_result]]:
    """Every file under a folder and its status, always in the same order."""
    for root, folders, files in os.walk(folder, onerror=_raise):
        folders.sort()
        for name in sorted(files):
            path = Path(root, name)
            yield str(path.relative_to(folder)), path.stat()


def _raise(error: OSError) -> None:
    raise error
