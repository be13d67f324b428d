"""What a row of the outbox holds, read and written, and the seal that shows damage."""

from __future__ import annotations

import sqlite3
import struct
import zlib
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Final

from broker.messages import Priority, Reason
from edge_agent.core.delivery import Channel, Key, Outcome, Spill, Stage, Why
from edge_agent.core.records import pack_answer, unpack_answer

RANKS: Final = {Priority.HI: 0, Priority.NORM: 1, Priority.BULK: 2}
BY_RANK: Final = {rank: priority for priority, rank in RANKS.items()}

_NUMBERS: Final = struct.Struct("<Bdd")


class RowDamaged(sqlite3.DatabaseError):
    """A row is not as it was written, which SQLite does not see."""


@dataclass(frozen=True, slots=True)
class Recorded:
    """What the outbox knows of an id that a device sent before."""

    stage: Stage
    encoding: str
    outcome: Outcome | None = None
    answer: bytes | None = None


@dataclass(frozen=True, slots=True)
class Ended:
    """An outcome to be recorded, with the answer as the device is told it."""

    key: Key
    outcome: Outcome
    why: Why
    answer: bytes
    ended_ms: float
    stage: Stage


@dataclass(frozen=True, slots=True)
class OpenRow:
    """An open spill as it is written. Made apart, because it needs no file."""

    key: Key
    reason: str
    values: tuple[object, ...]


def open_row(spill: Spill) -> OpenRow:
    """A row of `insert_all`. In one piece: this is most of what an accept costs."""
    edge = None if spill.edge is None else pack_answer(spill.edge)
    reason = spill.reason.value
    values = (
        spill.device,
        spill.id,
        spill.model,
        RANKS[spill.priority],
        reason,
        spill.channel.value,
        spill.encoding,
        spill.request,
        edge,
        spill.accepted_ms,
        spill.deadline_ms,
        spill.due_ms,
        spill.attempt,
        _seal_of_request(spill, edge),
        spill.due_ms <= spill.accepted_ms,
    )
    return OpenRow((spill.device, spill.id), reason, values)


def ended_values(spill: Spill, ended: Ended) -> tuple[object, ...]:
    """A row of `_INSERT_ENDED`: what it asked is of no use any more."""
    return (
        spill.device,
        spill.id,
        spill.model,
        RANKS[spill.priority],
        spill.reason.value,
        spill.channel.value,
        spill.encoding,
        None,
        None,
        spill.accepted_ms,
        spill.deadline_ms,
        spill.due_ms,
        spill.attempt,
        seal_of_answer(ended.key, ended.outcome.value, ended.answer),
        spill.due_ms <= spill.accepted_ms,
        ended.stage,
        ended.outcome.value,
        ended.answer,
        ended.ended_ms,
        closed_ms(ended),
    )


def closed_ms(ended: Ended) -> float | None:
    """When nobody has to be told any more; None while somebody has."""
    return ended.ended_ms if ended.stage is Stage.TOLD else None


def _seal_of_request(spill: Spill, edge: bytes | None) -> int:
    """A checksum of what never changes while a spill is open. SQLite keeps none."""
    names = "\0".join(
        (
            spill.device,
            spill.id,
            spill.model,
            spill.reason,
            spill.channel,
            spill.encoding,
        )
    )
    numbers = _NUMBERS.pack(RANKS[spill.priority], spill.accepted_ms, spill.deadline_ms)
    seal = zlib.crc32(numbers, zlib.crc32(names.encode(errors="replace")))
    return zlib.crc32(edge or b"", zlib.crc32(spill.request, seal))


def seal_of_answer(key: Key, outcome: str, answer: bytes) -> int:
    """A checksum of what never changes once a spill has ended."""
    seal = zlib.crc32(repr((*key, outcome)).encode(errors="replace"))
    return zlib.crc32(answer, seal)


def check_seal(key: Key, written: int | None, found: int) -> None:
    """Compare a row's seal with what it should be.

    Raises:
        RowDamaged: the row is not as it was written.
    """
    # Rows of the first schema have none.
    if written is not None and written != found:
        raise RowDamaged(
            f"the row of {key[1]!r} of {key[0]!r} is not as it was written"
        )


def read_spill(row: Sequence[Any]) -> Spill:
    """The open spill of a row of `spill_schema.COLUMNS`.

    Raises:
        RowDamaged: it is not as it was written.
    """
    spill = unsealed_spill(row)
    edge = None if row[8] is None else bytes(row[8])
    check_seal(spill.key, row[13], _seal_of_request(spill, edge))
    return spill


def unsealed_spill(row: Sequence[Any]) -> Spill:
    """As `read_spill`, of a row whose request was left out."""
    try:
        return closed_spill(row)
    except (ValueError, TypeError, KeyError) as error:
        raise RowDamaged(f"a row cannot be read: {error}") from error


def closed_spill(row: Sequence[Any]) -> Spill:
    """As `read_spill`, of a row that has ended, or may be damaged.

    Raises:
        ValueError, TypeError, KeyError: a column holds what it never should.
    """
    return Spill(
        device=row[0],
        id=row[1],
        model=row[2],
        priority=BY_RANK[row[3]],
        reason=Reason(row[4]),
        channel=Channel(row[5]),
        encoding=row[6],
        request=bytes(row[7] or b""),
        edge=None if row[8] is None else unpack_answer(bytes(row[8])),
        accepted_ms=row[9],
        deadline_ms=row[10],
        due_ms=row[11],
        attempt=row[12],
    )
