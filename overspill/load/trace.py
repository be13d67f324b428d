"""A recorded load: when each request came, and as much of what it was as is known.

CSV with a header, or one JSON object a line: `offset_s`, and if wanted `model`,
`class`, `deadline_ms` and `payload` (the file's name, or the index in an .npz).
"""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Final

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, ValidationError

from broker.codec import explain
from broker.messages import Id, Priority
from overspill.load.arrivals import Replay
from overspill.load.mix import Choice

MOST_ROWS: Final = 5_000_000


class BadTrace(ValueError):
    """A file that is no trace."""


@dataclass(frozen=True, slots=True)
class Trace:
    """Arrivals, and what is known of each."""

    arrivals: Replay
    choices: tuple[Choice, ...]


def _absent(value: object) -> object:
    """An empty field of a CSV says nothing."""
    return None if value == "" else value


_Maybe = BeforeValidator(_absent)


class _Row(BaseModel):
    model_config = ConfigDict(extra="ignore", frozen=True)

    offset_s: Annotated[float, Field(ge=0, allow_inf_nan=False)]
    model: Annotated[Id | None, _Maybe] = None
    priority: Annotated[Priority | None, _Maybe] = Field(default=None, alias="class")
    deadline_ms: Annotated[
        Annotated[float, Field(gt=0, allow_inf_nan=False)] | None, _Maybe
    ] = None
    payload: Annotated[str | None, Field(coerce_numbers_to_str=True), _Maybe] = None


def read_trace(path: Path) -> Trace:
    """Read a trace; rows may come in any order. Blocks.

    Raises:
        BadTrace: it cannot be read, a row is wrong, or there is none.
    """
    try:
        text = path.read_text()
    except (OSError, UnicodeDecodeError) as error:
        raise BadTrace(f"{path} cannot be read: {error}") from error
    rows = [
        _read_row(path, number, fields)
        for number, fields in enumerate(_fields(path, text), start=1)
    ]
    if not 0 < len(rows) <= MOST_ROWS:
        raise BadTrace(f"{path} has {len(rows)} rows, not 1 to {MOST_ROWS}")
    rows.sort(key=lambda row: row.offset_s)
    began_s = rows[0].offset_s
    return Trace(
        Replay(tuple(row.offset_s - began_s for row in rows)),
        tuple(
            Choice(
                model=row.model,
                priority=row.priority,
                deadline_s=None if row.deadline_ms is None else row.deadline_ms / 1e3,
                payload=row.payload,
            )
            for row in rows
        ),
    )


def _fields(path: Path, text: str) -> Iterable[Mapping[str, Any]]:
    if path.suffix == ".csv":
        return csv.DictReader(io.StringIO(text))
    try:
        return [json.loads(line) for line in text.splitlines() if line.strip()]
    except ValueError as error:
        raise BadTrace(f"{path} is neither .csv nor JSON lines: {error}") from error


def _read_row(path: Path, number: int, fields: Mapping[str, Any]) -> _Row:
    try:
        return _Row.model_validate(fields)
    except ValidationError as error:
        raise BadTrace(f"{path}, row {number}: {explain(error)}") from error
