"""Believe what the fleet's keys have signed, and nothing else: TUF's client workflow.

Sources are asked in turn, each whole: one that lies is passed over for one that tells
the truth. What was verified is kept in a folder, so that nothing older is believed
afterwards. Blocks, and imports python-tuf: 27 MB and half a second.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Final
from urllib.parse import unquote

from tuf.api.exceptions import (
    DownloadError,
    DownloadHTTPError,
    DownloadLengthMismatchError,
    ExpiredMetadataError,
    RepositoryError,
)
from tuf.api.serialization import DeserializationError
from tuf.ngclient import FetcherInterface, Updater, UpdaterConfig
from typing_extensions import override

from bundle import layout
from bundle.durable import write_file
from bundle.seal import MAX_SEAL_BYTES
from bundle.source import NotThere, Piece, SourceUnavailable
from bundle.trust import roles
from bundle.trust.errors import NotSigned, Stale, Untrusted
from bundle.trust.looks import Failure, Look
from bundle.trust.moment import TimeFloor

READ_BYTES: Final = 32 * 1024
FLOOR_FILE: Final = "floor.json"
METADATA_FOLDER: Final = "metadata"
CONFIG: Final = UpdaterConfig(
    max_root_rotations=roles.MAX_ROTATIONS,
    max_delegations=4,
    root_max_length=roles.MAX_BYTES[roles.ROOT],
    timestamp_max_length=roles.MAX_BYTES[roles.TIMESTAMP],
    snapshot_max_length=roles.MAX_BYTES[roles.SNAPSHOT],
    targets_max_length=roles.MAX_BYTES[roles.TARGETS],
)

Read = Callable[[str, int, int], Piece]
"""`Source.read` without the waiting: path, offset, length."""


def look(
    root_json: bytes,
    folder: Path,
    sources: Sequence[tuple[str, Read]],
    *,
    clock_s: float,
    elapsed_s: float = 0.0,
    target: str | None = None,
) -> Look:
    """Refresh the trusted metadata, and get one target if it is wanted.

    Args:
        root_json: the root that was baked in at provisioning.
        folder: what was verified, and the floor of time; this one's own.
        sources: names and how to read, the preferred first.
        clock_s: what the machine's clock says, in seconds since 1970.
        elapsed_s: the time that certainly has passed since the last look.
        target: what TUF calls the file that is wanted, if any.

    Raises:
        OSError: the folder cannot be written.
    """
    folder.mkdir(parents=True, exist_ok=True)
    floor = read_floor(folder).after(elapsed_s)
    failures: list[Failure] = []
    found: Look | None = None
    for name, read in sources:
        try:
            updater, floor = _refresh(root_json, folder, read, clock_s, floor)
            data = None if target is None else _target(updater, read, target)
        except Untrusted as error:
            failures.append(Failure(name, str(error), type(error)))
        except SourceUnavailable as error:
            failures.append(Failure(name, str(error), None))
        else:
            found = Look(name, data, failures)
            break
    write_file(folder / FLOOR_FILE, floor.to_json())
    return found or Look(None, None, failures)


def read_floor(folder: Path) -> TimeFloor:
    """The floor of time that was kept; none when it is missing or damaged."""
    try:
        return TimeFloor.from_json((folder / FLOOR_FILE).read_bytes())
    except (OSError, ValueError):
        return TimeFloor()


def _refresh(
    root_json: bytes,
    folder: Path,
    read: Read,
    clock_s: float,
    floor: TimeFloor,
) -> tuple[Updater, TimeFloor]:
    metadata = folder / METADATA_FOLDER
    try:
        updater = _refreshed(root_json, metadata, read, floor.now_s(clock_s))
    except Stale:
        # The floor itself may be a lie of a timestamp key that was stolen and has
        # been replaced by now: the newest root, which was kept, says so.
        stamp_keys = _stamp_keys(metadata)
        if floor.trusts(stamp_keys):
            raise
        floor = floor.unstamped()
        updater = _refreshed(root_json, metadata, read, floor.now_s(clock_s))
    return updater, floor.seen(
        signed_s=max(
            _signed_at_s(metadata, roles.ROOT), _signed_at_s(metadata, roles.TARGETS)
        ),
        stamped_s=_signed_at_s(metadata, roles.TIMESTAMP),
        stamped_by=_stamp_keys(metadata),
    )


def _refreshed(root_json: bytes, folder: Path, read: Read, now_s: float) -> Updater:
    with _translated(now_s):
        updater = Updater(
            str(folder),
            metadata_base_url=layout.METADATA,
            target_base_url=layout.TARGETS,
            fetcher=_Fetcher(read),
            config=CONFIG,
            bootstrap=root_json,
        )
        # python-tuf asks the clock, and has no other way to be told the time.
        # tests/unit/bundle/test_trust_attacks.py fails if this does nothing.
        trusted = updater._trusted_set  # noqa: SLF001
        trusted.reference_time = datetime.fromtimestamp(now_s, UTC)
        updater.refresh()
        return updater


def _target(updater: Updater, read: Read, target: str) -> bytes:
    with _translated(None):
        info = updater.get_targetinfo(target)
        if info is None:
            raise NotSigned(
                f"{target} is not signed: the fleet's keys name no such version in "
                "this epoch"
            )
        if info.length > MAX_SEAL_BYTES:
            raise Untrusted(f"{target} is {info.length} bytes, too long for a seal")
        path = layout.target_file(target, info.hashes["sha256"])
        data = _Fetcher(read).download_bytes(path, info.length)
        info.verify_length_and_hashes(data)
        return data


class _translated:  # noqa: N801 - reads as a word after `with`
    """Errors of python-tuf, in our words."""

    def __init__(self, now_s: float | None) -> None:
        self._now_s = now_s

    def __enter__(self) -> None:
        pass

    def __exit__(self, _: object, error: BaseException | None, __: object) -> None:
        match error:
            case ExpiredMetadataError():
                now = (
                    ""
                    if self._now_s is None
                    else f" (it is {datetime.fromtimestamp(self._now_s, UTC):%F %R} "
                    "UTC here at least)"
                )
                raise Stale(f"{error}{now}") from error
            case DownloadLengthMismatchError():
                raise Untrusted(f"longer than it may be: {error}") from error
            case DownloadError():
                raise SourceUnavailable(str(error)) from error
            case Untrusted():
                pass
            case RepositoryError() | DeserializationError() | ValueError() | KeyError():
                raise Untrusted(f"refused: {error}") from error
            case _:
                pass


class _Fetcher(FetcherInterface):
    """python-tuf's way to a source; a URL is a path of the registry."""

    def __init__(self, read: Read) -> None:
        self._read = read

    @override
    def _fetch(self, url: str) -> Iterator[bytes]:
        path, offset = unquote(url), 0
        while True:
            try:
                piece = self._read(path, offset, READ_BYTES)
            except NotThere as error:
                raise DownloadHTTPError(f"there is no {path}", 404) from error
            except SourceUnavailable as error:
                raise DownloadError(str(error)) from error
            # python-tuf counts, and stops asking after the length that it allows.
            yield piece.data
            offset += len(piece.data)
            if not piece.data or offset >= piece.total_bytes:
                return


def _stamp_keys(folder: Path) -> tuple[str, ...]:
    try:
        root = json.loads((folder / f"{roles.ROOT}.json").read_bytes())
        return tuple(root["signed"]["roles"][roles.TIMESTAMP]["keyids"])
    except (OSError, ValueError, KeyError):
        return ()


def _signed_at_s(folder: Path, role: str) -> float:
    try:
        return roles.signed_at_s((folder / f"{role}.json").read_bytes())
    except (OSError, ValueError, KeyError):
        return 0.0
