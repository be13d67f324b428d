"""What is wrong with what was declared, in sentences and with the place of each."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass
from difflib import get_close_matches
from typing import Any, Final

from pydantic import BaseModel, ValidationError

Place = tuple[str | int, ...]
# So much of a value is quoted.
SHOWN: Final = 60


@dataclass(frozen=True, slots=True)
class Fault:
    """One mistake: where it is in the data, and what to do about it."""

    path: Place
    reason: str

    @property
    def field(self) -> str:
        """The place, as people write it: `rollouts[0].waves[1].soak`."""
        text = ""
        for part in self.path:
            text += f"[{part}]" if isinstance(part, int) else f".{part}"
        return text.removeprefix(".")


def faults(error: ValidationError, data: object, model: type[BaseModel]) -> list[Fault]:
    """Every mistake that pydantic found in `data`."""
    names = _names(model)
    return [
        Fault(*_placed(each["loc"], data, each["type"], each["msg"], names))
        for each in error.errors(include_url=False, include_input=False)
    ]


def _placed(
    loc: Place,
    data: Any,  # noqa: ANN401 - walked down, whatever it is
    kind: str,
    message: str,
    names: Collection[str],
) -> tuple[Place, str]:
    path: list[str | int] = []
    for index, part in enumerate(loc):
        inside = isinstance(data, dict) and part in data
        if inside or (isinstance(data, (list, tuple)) and isinstance(part, int)):
            path.append(part)
            data = data[part]
        elif index == len(loc) - 1 and kind == "missing":
            path.append(part)
        # Anything else is a word of pydantic's own for one side of a union.
    if kind == "extra_forbidden":
        return tuple(path), _unknown(str(loc[-1]), names)
    if kind == "missing":
        return tuple(path), "it is missing"
    if kind in ("model_type", "dict_type"):
        return tuple(path), "names and what they stand for should be here (NAME: VALUE)"
    text = message.removeprefix("Value error, ").replace("Input should", "should")
    shown = ""
    if isinstance(data, str) and data not in text:
        shown = f" (it is {data[:SHOWN]!r}{'…' if len(data) > SHOWN else ''})"
    return tuple(path), f"{text}{shown if kind != 'value_error' else ''}"


def _unknown(name: str, names: Collection[str]) -> str:
    near = get_close_matches(name, names, n=1)
    return "there is no such field" + (f": did you mean {near[0]}?" if near else "")


def _names(model: type[BaseModel]) -> set[str]:
    """The fields of a model and of all models in it."""
    schema = model.model_json_schema()
    parts = [schema, *schema.get("$defs", {}).values()]
    return {name for part in parts for name in part.get("properties", {})}
