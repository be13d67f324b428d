"""Whether the audit log is what was written, and all of it."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Final

from fleet.adapters.audit_head import AuditHead
from fleet.adapters.state.database import FleetDatabase
from fleet.core.audit import EMPTY, Entry, Fault, Head, faults
from fleet.core.orders import BadOrder

MIN_DIGEST: Final = 12
MOST_FAULTS: Final = 1000


@dataclass(frozen=True, slots=True)
class Examination:
    """What an examination found.

    `kept` is the head from the file beside the home; `since_named` how many entries
    came after the one whose digest was asked for.
    """

    head: Head
    entries: int
    kept: Head | None
    since_named: int | None
    faults: tuple[Fault, ...]


def examine(
    database: FleetDatabase, file: AuditHead, digest: str | None = None
) -> Examination:
    """Go through the whole log.

    Args:
        database: open.
        file: the head that was kept beside the home.
        digest: one that was written down elsewhere, or how it begins.

    Raises:
        BadOrder: `digest` is none.
        HeadUnreadable: `file` holds something else.
        DatabaseUnavailable: the log cannot be read.
    """
    if digest is not None:
        digest = _checked(digest)
    kept = file.read_strictly()
    walk = _Walk(digest)
    with database.reading() as ledger:
        found: list[Fault] = []
        for fault in faults(walk.through(ledger.audit()), [kept] if kept else []):
            if len(found) < MOST_FAULTS:
                found.append(fault)
    if digest is not None and walk.named is None:
        found.append(
            Fault(
                walk.last.sequence,
                f"no entry has the digest {digest[:MIN_DIGEST]}…: the log was cut or "
                "written anew since it was noted, or it is of another fleet",
            )
        )
    since = None if walk.named is None else walk.last.sequence - walk.named
    return Examination(walk.last, walk.count, kept, since, tuple(found))


class _Walk:
    """Notes what passes."""

    def __init__(self, digest: str | None) -> None:
        self.last = EMPTY
        self.count = 0
        self.named: int | None = None
        self._digest = digest

    def through(self, entries: Iterator[Entry]) -> Iterator[Entry]:
        for entry in entries:
            self.last = entry.head
            self.count += 1
            if self._digest is not None and entry.digest.startswith(self._digest):
                self.named = entry.sequence
            yield entry


def _checked(digest: str) -> str:
    lower = digest.strip().lower()
    if len(lower) < MIN_DIGEST or lower.strip("0123456789abcdef"):
        raise BadOrder(
            f"{digest[:80]!r} is no head: give at least {MIN_DIGEST} digits of the "
            "digest that `overspill audit verify` printed"
        )
    return lower
