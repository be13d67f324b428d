"""Who did what: a chain of entries, each sealed over the one before it.

A changed, removed or moved entry breaks the chain where it was. That the end is
missing, or that all was written anew, only a head that was kept elsewhere can tell.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final

FIRST_PREVIOUS: Final = "0" * 64
MAX_WORDS: Final = 300
MAX_DETAILS: Final = 64 * 1024


@dataclass(frozen=True, slots=True)
class Head:
    """How far a log was at some time: its newest entry and that entry's digest."""

    sequence: int
    digest: str


EMPTY: Final = Head(0, FIRST_PREVIOUS)


@dataclass(frozen=True, slots=True)
class Entry:
    """One thing that was done.

    `at_ms` is Unix time of the clock of who wrote it; `details` is canonical JSON;
    `digest` is over all the rest.
    """

    sequence: int
    at_ms: int
    who: str
    what: str
    subject: str
    details: str
    previous: str
    digest: str

    @property
    def head(self) -> Head:
        """The log as it was when this was its newest entry."""
        return Head(self.sequence, self.digest)


@dataclass(frozen=True, slots=True)
class Fault:
    """What is wrong with a log; `sequence` is where."""

    sequence: int
    reason: str


def following(
    head: Head,
    *,
    at_ms: int,
    who: str,
    what: str,
    subject: str,
    details: Mapping[str, Any],
) -> Entry:
    """The entry that comes after `head`.

    Words that are too long are cut, and details replaced by what they were too long
    for: a record must never stop what it records.
    """
    text = canonical(details)
    if len(text) > MAX_DETAILS:
        text = canonical({"cut": text[:1000], "characters": len(text)})
    unsealed = Entry(
        sequence=head.sequence + 1,
        at_ms=at_ms,
        who=_words(who),
        what=_words(what),
        subject=_words(subject),
        details=text,
        previous=head.digest,
        digest="",
    )
    return _sealed(unsealed)


def digest_of(entry: Entry) -> str:
    """What the digest of an entry has to be (SHA-256 of canonical JSON, hex)."""
    said = (
        entry.sequence,
        entry.at_ms,
        entry.who,
        entry.what,
        entry.subject,
        entry.details,
        entry.previous,
    )
    return hashlib.sha256(canonical(said).encode()).hexdigest()


def faults(entries: Iterable[Entry], heads: Sequence[Head] = ()) -> Iterator[Fault]:
    """All that is wrong with a log, in its order; nothing when it is whole.

    Args:
        entries: the whole log, by sequence.
        heads: how far the log was, as kept elsewhere.
    """
    last = EMPTY
    kept = {each.sequence: each for each in heads if each.sequence > 0}
    for entry in entries:
        yield from _faults_between(last, entry)
        head = kept.pop(entry.sequence, None)
        if head is not None and head.digest != entry.digest:
            yield Fault(
                entry.sequence,
                f"entry {entry.sequence} is not the one that was kept elsewhere "
                f"({entry.digest[:12]}… here, {head.digest[:12]}… there): "
                "the log was written anew",
            )
        last = entry.head
    for head in kept.values():
        yield Fault(
            head.sequence,
            f"entry {head.sequence} is missing: the log ends at {last.sequence}, "
            "but it was longer: its end was removed, or an older copy was restored",
        )


def canonical(value: object) -> str:
    """The one way to write a value as JSON, in ASCII.

    Raises:
        TypeError: it holds what JSON cannot say.
        ValueError: it holds a number that is none.
    """
    return json.dumps(value, sort_keys=True, separators=(",", ":"), allow_nan=False)


def _faults_between(last: Head, entry: Entry) -> Iterator[Fault]:
    here = entry.sequence
    if digest_of(entry) != entry.digest:
        yield Fault(here, f"entry {here} was changed after it was written")
    if here != last.sequence + 1:
        first, end = last.sequence + 1, here - 1
        gone = f"entry {first} is" if first == end else f"entries {first} to {end} are"
        yield Fault(first, f"{gone} missing")
    elif entry.previous != last.digest:
        yield Fault(
            here,
            f"entry {here} does not follow entry {last.sequence} as it is now: one of "
            "them was replaced or moved",
        )


def _sealed(entry: Entry) -> Entry:
    return Entry(
        sequence=entry.sequence,
        at_ms=entry.at_ms,
        who=entry.who,
        what=entry.what,
        subject=entry.subject,
        details=entry.details,
        previous=entry.previous,
        digest=digest_of(entry),
    )


def _words(text: str) -> str:
    # What no database keeps as it is must not be in what is digested.
    clean = text.replace("\0", "�").encode("utf-8", "replace").decode("utf-8")
    return clean[:MAX_WORDS]
