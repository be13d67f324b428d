"""Labels as operators write them: `site=lyon` gives one, `site-` takes it away."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Final

from fleet.core.labels import KEY, WORDS
from fleet.core.orders import BadOrder

MAX_LABELS: Final = 64
MAX_VALUE: Final = 255


@dataclass(frozen=True, slots=True)
class Labelling:
    """Which labels are to be given, and the keys of those to be taken away."""

    given: dict[str, str] = field(default_factory=dict)
    taken: frozenset[str] = frozenset()

    def of(self, before: dict[str, str]) -> dict[str, str]:
        """The labels of an agent that had those of `before`."""
        kept = {key: value for key, value in before.items() if key not in self.taken}
        return {**kept, **self.given}


def is_change(word: str) -> bool:
    """Whether a word of the command line says a label, and not an agent."""
    return "=" in word or word.endswith("-")


def read_labelling(words: Sequence[str]) -> Labelling:
    """What `KEY=VALUE` and `KEY-` ask for.

    Raises:
        BadOrder: none is said, a word is neither, or two speak of one key.
    """
    given: dict[str, str] = {}
    taken: set[str] = set()
    for word in words:
        key, equals, value = word.partition("=")
        key = key if equals else word.removesuffix("-")
        _check(key, value if equals else "any")
        if key in given or key in taken:
            raise BadOrder(f"the label {key!r} is named twice")
        if equals:
            given[key] = value
        else:
            taken.add(key)
    if not given and not taken:
        raise BadOrder("no label is named: use KEY=VALUE to give one, KEY- to take it")
    return Labelling(given, frozenset(taken))


def _check(key: str, value: str) -> None:
    if not KEY.match(key) or key in WORDS:
        raise BadOrder(
            f"{key!r} is no label's key: begin with a small letter and go on with small "
            "letters, digits, `_`, `-` and `.`; and, or, not, in and has are taken"
        )
    if not value or len(value) > MAX_VALUE or '"' in value or not value.isprintable():
        raise BadOrder(
            f"label {key}: a value has 1 to {MAX_VALUE} printable characters, no quotes"
        )
