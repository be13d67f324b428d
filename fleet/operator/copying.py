"""The fleet's whole state from one database into another, all of it or nothing."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

from fleet.adapters.state.database import FleetDatabase
from fleet.adapters.state.ledger import Ledger
from fleet.adapters.state.whole import TABLES, Fingerprint
from fleet.core.audit import Fault, Head, faults
from fleet.core.orders import BadOrder


@dataclass(frozen=True, slots=True)
class Copied:
    """What was copied.

    Attributes:
        source: from where, without a password.
        target: to where.
        rows: of each table, by its name.
        head: the audit log's newest entry, which says that it was copied.
        faults: what was wrong with the audit log before, and is so still.
        last_heard_ms: when an agent was last heard, in Unix time; None when none was.
    """

    source: str
    target: str
    rows: Mapping[str, int]
    head: Head
    faults: tuple[Fault, ...]
    last_heard_ms: int | None


def copy_state(
    source: FleetDatabase,
    target: FleetDatabase,
    *,
    who: str,
    now_ms: int,
    moved: Callable[[int, int], None] = lambda _done, _of: None,
) -> Copied:
    """Copy every table, compare what arrived with what was there, and commit.

    Nobody writes to either meanwhile. The copy is on record in both.

    Args:
        source: open.
        target: open, and nothing in it yet.
        who: copies, for the record.
        now_ms: Unix time of the fleet's clock.
        moved: called with how many of how many rows were copied.

    Raises:
        BadOrder: the target is the source, or is not empty; nothing was changed.
        DatabaseUnavailable: one of them cannot be used; the target is as it was.
    """
    if _are_same(source.place, target.place):
        raise BadOrder(f"{source.place} is where the state is already: copy elsewhere")
    # The target commits first: what is on record in the source has happened.
    with source.writing() as there, target.writing() as here:
        _check_empty(here, target.place)
        # Each waits while the other is read, and the source while all is compared.
        there.take_time()
        here.take_time()
        place = {"from": source.place, "to": target.place}
        there.record(who, "state.copy", target.place, place, at_ms=now_ms)
        written = _copy(there, here, moved)
        _compare(here, written, target.place)
        devices = there.devices().values()
        return Copied(
            source.place,
            target.place,
            {name: each.rows for name, each in written.items()},
            here.audit_head(),
            tuple(faults(here.audit())),
            max((each.last_seen_ms for each in devices), default=None),
        )


def _are_same(one: str, other: str) -> bool:
    """Whether both are one place, or one file by two names."""
    here, there = Path(one), Path(other)
    return one == other or (here.exists() and there.exists() and here.samefile(there))


def _check_empty(here: Ledger, place: str) -> None:
    found = [f"{rows} {name}" for name, rows in here.row_counts().items() if rows]
    if found:
        raise BadOrder(
            f"{place} holds a fleet's state already ({', '.join(found)}): copy into a "
            "new database (createdb)"
        )


def _copy(
    there: Ledger, here: Ledger, moved: Callable[[int, int], None]
) -> dict[str, Fingerprint]:
    total, done = sum(there.row_counts().values()), 0
    written = {table.name: Fingerprint() for table in TABLES}
    for table in TABLES:
        for rows in there.rows(table):
            here.fill(table, rows)
            written[table.name].add(rows)
            done += len(rows)
            moved(done, total)
    return written


def _compare(here: Ledger, written: Mapping[str, Fingerprint], place: str) -> None:
    for table in TABLES:
        found = Fingerprint()
        for rows in here.rows(table):
            found.add(rows)
        if found.value != written[table.name].value:
            raise BadOrder(
                f"{place}: what arrived in {table.name} is not what was sent "
                f"({found.rows} rows of {written[table.name].rows}): nothing was kept; "
                "please report this"
            )
