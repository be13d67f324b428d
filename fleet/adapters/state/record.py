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

    def audit(self) -> Iterator[Entry]:
        """Every entry, by sequence, in bounded memory."""
        after = -(2**63)  # One that was put before the first is found as well.
        while True:
            query = select(AUDIT).where(AUDIT.c.sequence > after)
            some = self._connection.execute(
                query.order_by(AUDIT.c.sequence).limit(READ_AT_ONCE)
            ).mappings()
            page = [Entry(**row) for row in some]
            yield from page
            if len(page) < READ_AT_ONCE:
                return
            after = page[-1].sequence

    def newest_audit(
        self,
        last: int,
        *,
        who: str | None = None,
        what: str | None = None,
        subject: str | None = None,
    ) -> list[Entry]:
        """The newest entries, oldest first.

        Args:
            last: how many at most.
            who: only of this one.
            what: only this; `rollout` is every `rollout.…`.
            subject: only what was done to this, alone or with others.
        """
        query = select(AUDIT).order_by(AUDIT.c.sequence.desc()).limit(last)
        if who is not None:
            query = query.where(AUDIT.c.who == who)
        if what is not None:
            query = query.where(
                (AUDIT.c.what == what)
                | AUDIT.c.what.startswith(f"{what}.", autoescape=True)
            )
        if subject is not None:
            # Among several it stands in the details, in quotes.
            query = query.where(
                (AUDIT.c.subject == subject)
                | AUDIT.c.details.contains(f'"{subject}"', autoescape=True)
            )
        rows = self._connection.execute(query).mappings()
        return [Entry(**row) for row in rows][::-1]

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
