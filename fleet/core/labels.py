"""Which agents a query means: `site=lyon and free_disk_mb >= 64 and not group=canary`.

    query  = and { "or" and }
    and    = test { "and" test }
    test   = "not" test | "(" query ")" | "has" KEY
           | KEY ( "=" | "!=" | "<" | "<=" | ">" | ">=" ) VALUE
           | KEY [ "not" ] "in" "(" VALUE { "," VALUE } ")"

Keys are operators' labels and the facts that agents report; a label hides a fact of the same name, since
agents may say anything. What is a number on both sides is compared as one. An agent
without the key equals nothing and is in nothing: `!=` and `not in` are true of it.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Final, NoReturn

MAX_QUERY: Final = 2000
MAX_DEPTH: Final = 50
KEY: Final = re.compile(r"[a-z][a-z0-9_.-]{0,62}\Z")
WORDS: Final = frozenset({"and", "or", "not", "in", "has"})
_TOKEN: Final = re.compile(
    r"""\s*(?:(?P<op>!=|<=|>=|=|<|>)|(?P<mark>[(),])|"(?P<quoted>[^"]*)"|(?P<word>[^\s()=!<>,"]+))"""
)
_NUMBER: Final = re.compile(r"[+-]?(\d+(\.\d*)?|\.\d+)([eE][+-]?\d{1,3})?\Z")

Said = Mapping[str, str]


class BadQuery(ValueError):
    """A query that cannot be read; says where, and what was expected."""


@dataclass(frozen=True, slots=True)
class Has:
    """The agent has this key at all."""

    key: str

    def matches(self, said: Said) -> bool:
        """Whether it is so."""
        return self.key in said


@dataclass(frozen=True, slots=True)
class Compares:
    """The agent's value of a key stands so to this one."""

    key: str
    operator: str
    value: str

    def matches(self, said: Said) -> bool:
        """Whether it does; false, but for `!=`, when the agent has no such key."""
        there = said.get(self.key)
        if there is None:
            return self.operator == "!="
        if self.operator in {"=", "!="}:
            return _equal(there, self.value) == (self.operator == "=")
        if not (_NUMBER.match(there) and _NUMBER.match(self.value)):
            return False
        return _ORDERS[self.operator](float(there), float(self.value))


@dataclass(frozen=True, slots=True)
class In:
    """The agent's value of a key is one of these."""

    key: str
    values: tuple[str, ...]

    def matches(self, said: Said) -> bool:
        """Whether it is."""
        there = said.get(self.key)
        return there is not None and any(_equal(there, each) for each in self.values)


@dataclass(frozen=True, slots=True)
class Not:
    """The opposite."""

    of: Query

    def matches(self, said: Said) -> bool:
        """Whether it is not so."""
        return not self.of.matches(said)


@dataclass(frozen=True, slots=True)
class All:
    """Each of these."""

    of: tuple[Query, ...]

    def matches(self, said: Said) -> bool:
        """Whether all are so."""
        return all(each.matches(said) for each in self.of)


@dataclass(frozen=True, slots=True)
class Any:
    """At least one of these."""

    of: tuple[Query, ...]

    def matches(self, said: Said) -> bool:
        """Whether one is so."""
        return any(each.matches(said) for each in self.of)


Query = Has | Compares | In | Not | All | Any


def read_query(text: str) -> Query:
    """A query as an operator wrote it.

    Raises:
        BadQuery: it cannot be read; says where.
    """
    if len(text) > MAX_QUERY:
        raise BadQuery(f"the query has {len(text)} characters, over {MAX_QUERY}")
    reader = _Reader(text)
    query = reader.query(0)
    if reader.kind is not None:
        reader.fail("`and`, `or` or the end")
    return query


def sees(labels: Said, facts: Said) -> dict[str, str]:
    """What queries are asked of: facts, and labels over them."""
    return {**facts, **labels}


_ORDERS: Final[Mapping[str, Callable[[float, float], bool]]] = {
    "<": lambda one, other: one < other,
    "<=": lambda one, other: one <= other,
    ">": lambda one, other: one > other,
    ">=": lambda one, other: one >= other,
}


def _equal(one: str, other: str) -> bool:
    if one == other:
        return True
    return bool(_NUMBER.match(one) and _NUMBER.match(other)) and (
        float(one) == float(other)
    )


class _Reader:
    """The tokens of a query, one ahead."""

    def __init__(self, text: str) -> None:
        self._text = text
        self._next = 0
        self.at = 0
        self.kind: str | None = None
        self.token = ""
        self._step()

    def query(self, depth: int) -> Query:
        """One or more, parted by `or`."""
        if depth > MAX_DEPTH:
            raise BadQuery(f"more than {MAX_DEPTH} parentheses and nots within another")
        some = [self._conjunction(depth)]
        while self._word("or"):
            some.append(self._conjunction(depth))
        return some[0] if len(some) == 1 else Any(tuple(some))

    def fail(self, expected: str) -> NoReturn:
        """Say what was expected here."""
        found = f"{self.token!r}" if self.kind is not None else "the end"
        raise BadQuery(
            f"character {self.at + 1} of {self._text!r}: expected {expected}, "
            f"found {found}"
        )

    def _conjunction(self, depth: int) -> Query:
        some = [self._test(depth)]
        while self._word("and"):
            some.append(self._test(depth))
        return some[0] if len(some) == 1 else All(tuple(some))

    def _test(self, depth: int) -> Query:
        if depth > MAX_DEPTH:
            raise BadQuery(f"more than {MAX_DEPTH} parentheses and nots within another")
        if self._word("not"):
            return Not(self._test(depth + 1))
        if self._mark("("):
            inner = self.query(depth + 1)
            self._need(")")
            return inner
        if self._word("has"):
            return Has(self._key())
        key = self._key()
        if self._word("not"):
            if not self._word("in"):
                self.fail("`in` after `not`")
            return Not(In(key, self._values()))
        if self._word("in"):
            return In(key, self._values())
        return self._comparison(key)

    def _comparison(self, key: str) -> Query:
        if self.kind != "op":
            self.fail(f"=, !=, <, <=, >, >=, `in` or `not in` after {key}")
        operator = self.token
        self._step()
        if operator not in {"=", "!="} and not _NUMBER.match(self.token):
            self.fail(f"a number after {operator}")
        return Compares(key, operator, self._value())

    def _values(self) -> tuple[str, ...]:
        self._need("(")
        values = [self._value()]
        while self._mark(","):
            values.append(self._value())
        self._need(")")
        return tuple(values)

    def _key(self) -> str:
        if self.kind != "word" or self.token in WORDS or not KEY.match(self.token):
            self.fail("a key (such as site), `not`, `has` or (")
        return self._taken()

    def _value(self) -> str:
        if self.kind == "word" and self.token in WORDS:
            self.fail(f'a value (write "{self.token}" if it is one)')
        if self.kind not in {"word", "quoted"}:
            self.fail("a value")
        return self._taken()

    def _word(self, word: str) -> bool:
        return self._is("word", word)

    def _mark(self, mark: str) -> bool:
        return self._is("mark", mark)

    def _is(self, kind: str, token: str) -> bool:
        found = (self.kind, self.token) == (kind, token)
        if found:
            self._step()
        return found

    def _need(self, mark: str) -> None:
        if not self._mark(mark):
            self.fail(mark)

    def _taken(self) -> str:
        token = self.token
        self._step()
        return token

    def _step(self) -> None:
        found = _TOKEN.match(self._text, self._next)
        if found is None:
            rest = self._text[self._next :]
            self.at = self._next + len(rest) - len(rest.lstrip())
            self.kind, self.token = None, ""
            if rest.strip():
                raise BadQuery(
                    f"character {self.at + 1} of {self._text!r}: "
                    f"{rest.strip()[0]!r} means nothing here"
                )
            return
        self.kind = found.lastgroup
        self.token = found[self.kind or 0]
        self.at = found.start(self.kind or 0)
        self._next = found.end()
