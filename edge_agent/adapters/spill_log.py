"""The outbox's write-ahead log: kept short, and never trusted after a sync that failed."""

from __future__ import annotations

import contextlib
import os
import sqlite3
from pathlib import Path
from typing import Final

import structlog

from edge_agent.adapters import salvage

log = structlog.get_logger(__name__)

# The log moves into the file when nobody waits for it (see `Outbox`), or else before
# the transaction that finds it long for its disk. Never within a commit, as
# SQLite would do it by itself: it keeps to itself what goes wrong there.
CHECKPOINT_CHANGES: Final = 300
LONG_LOG_BYTES: Final = 16 * 1024**2
SHORT_LOG_BYTES: Final = 1024**2
# A log that fills its disk could not move any more, as the file would have no room.
LOG_SHARE_OF_DISK: Final = 64


class WriteAheadLog:
    """The log beside a database. In the thread that has the database's connection.

    Args:
        db: the connection.
        path: of the database.
    """

    def __init__(self, db: sqlite3.Connection, path: Path) -> None:
        self._db = db
        self._path = path.with_name(f"{path.name}-wal")
        self._long_bytes = long_log_bytes(path)
        # Whoever wrote it before may have been killed after a sync that failed.
        self._in_doubt = True
        self._checkpointed = 0

    def prepare(self) -> None:
        """Make it fit for a transaction; outside of one.

        Raises:
            sqlite3.Error: somebody else writes, or it cannot be written.
        """
        if self._is_long():
            self.checkpoint()
        self.settle_doubt()

    def doubt_after(self, error: BaseException) -> None:
        """Trust it no longer if the error is of a sync."""
        if getattr(error, "sqlite_errorcode", 0) == sqlite3.SQLITE_IOERR_FSYNC:
            self._in_doubt = True

    @property
    def checkpoint_due(self) -> bool:
        """Whether enough was written that it should move into the file."""
        return self._db.total_changes - self._checkpointed >= CHECKPOINT_CHANGES

    def checkpoint(self) -> None:
        """Move it into the file; outside a transaction."""
        self._checkpointed = self._db.total_changes
        try:
            self.settle_doubt()
            self._db.execute("PRAGMA wal_checkpoint(PASSIVE)").fetchone()
        except sqlite3.Error as error:
            # Nothing is lost: the log is read as well, and the next one tries again.
            self.doubt_after(error)
            log.warning("outbox_not_checkpointed", error=str(error))

    def settle_doubt(self) -> None:
        """If it is in doubt, make its next sync cover what a failed one did not.

        Linux counts what a failed sync covered as written, so no later sync makes up
        for it; a row committed behind such a gap is lost with the power. Folding the
        log into the database instead would leave a mixture of old and new pages when
        the power fails before the log's end is known to the disk.

        Raises:
            sqlite3.Error: somebody else writes, or it cannot be written.
        """
        if not self._in_doubt:
            return
        self._db.execute("BEGIN IMMEDIATE")  # Nobody begins the log anew meanwhile.
        try:
            salvage.write_again(self._path)
        except OSError as error:
            raise sqlite3.OperationalError(
                f"the log stays in doubt: {error}"
            ) from error
        finally:
            self._db.execute("ROLLBACK")
        self._in_doubt = False

    def _is_long(self) -> bool:
        with contextlib.suppress(OSError):
            return self._path.stat().st_size > self._long_bytes
        return False


def long_log_bytes(path: Path) -> int:
    """How long the log may become before work waits for it to move."""
    with contextlib.suppress(OSError):
        disk = os.statvfs(path.parent)
        share = disk.f_blocks * disk.f_frsize // LOG_SHARE_OF_DISK
        return max(SHORT_LOG_BYTES, min(LONG_LOG_BYTES, share))
    return LONG_LOG_BYTES
