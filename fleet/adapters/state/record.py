"""The audit log: entries are appended in the transaction of what they record."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import asdict
from typing import Any, Final

from sqlalchemy import Connection, insert, select

from fleet.adapters.state.tables import AUDIT
from fleet.core.audit import EMPTY, Entry, Head, following

READ_AT_ONCE: Final = 1000


class RecordPages:
    """The part of a `Ledger` about who did what."""

    def __init__(self, connection: Connection) -> None:
        self._connection = connection
        self._appended: Entry | None = None

    def record(
        self,
        who: str,
        what: str,
        subject: str,
        details: Mapping[str, Any] | None = None,
        *,
        at_ms: int,
    ) -> Entry:
        """Append what is done in this transaction.

        Args:
            who: `user@host`, or the part of the fleet that decided.
            what: a verb with its noun, as `rollout.pause`.
            subject: what it was done to.
            details: what JSON can hold; says what else matters.
            at_ms: Unix time of the fleet's clock.
        """
        entry = following(
            self.audit_head(),
            at_ms=at_ms,
            who=who,
            what=what,
            subject=subject,
            details=details or {},
        )
        self._connection.execute(insert(AUDIT), asdict(entry))
        self._appended = entry
        return entry

    def audit_head(self) -> Head:
        """The newest entry."""
        if self._appended is not None:
            return self._appended.head
        row = self._connection.execute(
            select(AUDIT.c.sequence, AUDIT.c.digest)
            .order_by(AUDIT.c.sequence.desc())
            .limit(1)
        ).first()
        return EMPTY if row is None else Head(row.sequence, row.digest)

    def audit(self, *, after: int = 0, limit: int | None = None) -> Iterator[Entry]:
        """The entries after number `after`, oldest first, in bounded memory."""
        query = select(AUDIT).where(AUDIT.c.sequence > after).order_by(AUDIT.c.sequence)
        rows = self._connection.execution_options(yield_per=READ_AT_ONCE).execute(
            query if limit is None else query.limit(limit)
        )
        for row in rows.mappings():
            yield Entry(**row)

    def head_to_keep(self, kept: Head | None) -> Head | None:
        """The head to keep elsewhere once this transaction is committed.

        None when nothing was appended, or when the head that was kept before is none
        of this log's: that is evidence, and must not be written over.
        """
        if self._appended is None:
            return None
        if kept is not None and kept.sequence > 0:
            digest = self._connection.execute(
                select(AUDIT.c.digest).where(AUDIT.c.sequence == kept.sequence)
            ).scalar()
            if digest != kept.digest:
                return None
        return self._appended.head
