"""Reads `fleet.yaml`, and remembers on which line everything stands.

Every value is kept as the text that was written: `version: 1.10` is no number. The only
user of PyYAML here.
"""

from __future__ import annotations

import sys
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final, Self

import yaml

MAX_BYTES: Final = 8 * 1024 * 1024
# Anchors may be used again, but not to make much of little.
MAX_NODES: Final = 250_000
NOTHING: Final = frozenset({"", "~", "null"})

Place = tuple[str | int, ...]


class BadFile(ValueError):
    """The file cannot be read; says where and why."""


@dataclass(frozen=True, slots=True)
class FleetFile:
    """What a file says, as text, lists and mappings, and the line of each part."""

    name: str
    data: Any
    lines: Mapping[Place, int] = field(default_factory=dict)

    @classmethod
    def read(cls, path: Path) -> Self:
        """The file at `path`; `-` is standard input.

        Raises:
            BadFile: it is no YAML, too long, or names a key twice.
            OSError: it cannot be read.
        """
        name = str(path)
        if name == "-":
            return cls.parse(sys.stdin.buffer.read(MAX_BYTES + 1), "standard input")
        with path.open("rb") as file:
            return cls.parse(file.read(MAX_BYTES + 1), name)

    @classmethod
    def parse(cls, text: bytes, name: str) -> Self:
        """What these bytes say.

        Raises:
            BadFile: they are no YAML, too many, or name a key twice.
        """
        if len(text) > MAX_BYTES:
            raise BadFile(f"{name}: over {MAX_BYTES // 1024**2} MiB is no fleet file")
        reader = _Reader(name)
        try:
            # Composed only: no constructor runs, and no tag means anything.
            node = yaml.compose(text.decode(), Loader=yaml.SafeLoader)
            data = {} if node is None else reader.value(node, ())
        except UnicodeDecodeError as error:
            raise BadFile(f"{name}: not UTF-8 at byte {error.start}") from error
        except yaml.MarkedYAMLError as error:
            mark = error.problem_mark or error.context_mark
            where = name if mark is None else f"{name}:{mark.line + 1}"
            raise BadFile(f"{where}: {error.problem or error.context}") from error
        except yaml.YAMLError as error:
            raise BadFile(f"{name}: {error}") from error
        except RecursionError as error:
            raise BadFile(
                f"{name}: lists and mappings are nested too deeply"
            ) from error
        return cls(name, data, reader.lines)

    def line(self, path: Place) -> int:
        """The line of a part, or of the nearest part around it; 0 for none."""
        for end in range(len(path), -1, -1):
            if path[:end] in self.lines:
                return self.lines[path[:end]]
        return 0

    def where(self, path: Place) -> str:
        """The file and line of a part."""
        line = self.line(path)
        return f"{self.name}:{line}" if line else self.name


class _Reader:
    """Turns composed nodes into values; counts them."""

    def __init__(self, name: str) -> None:
        self.lines: dict[Place, int] = {}
        self._name = name
        self._nodes = 0

    def value(self, node: yaml.Node, path: Place) -> Any:  # noqa: ANN401 - whatever YAML holds
        line = node.start_mark.line + 1
        self.lines.setdefault(path, line)
        self._nodes += 1
        if self._nodes > MAX_NODES:
            raise BadFile(f"{self._name}:{line}: more than {MAX_NODES} parts")
        if isinstance(node, yaml.ScalarNode):
            plain = node.style is None and str(node.value).lower() in NOTHING
            return None if plain else str(node.value)
        if isinstance(node, yaml.SequenceNode):
            return [
                self.value(each, (*path, index))
                for index, each in enumerate(node.value)
            ]
        return self._mapping(node, path)

    def _mapping(self, node: yaml.Node, path: Place) -> dict[str, Any]:
        found: dict[str, Any] = {}
        for key, value in node.value:
            line = key.start_mark.line + 1
            if not isinstance(key, yaml.ScalarNode) or key.value == "<<":
                raise BadFile(f"{self._name}:{line}: a key is a plain word")
            if key.value in found:
                first = self.lines[(*path, key.value)]
                raise BadFile(
                    f"{self._name}:{line}: {key.value} stands on line {first} as well"
                )
            self.lines[(*path, key.value)] = line
            found[key.value] = self.value(value, (*path, key.value))
        return found
