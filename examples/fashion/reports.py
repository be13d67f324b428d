"""Write what a script measured, so that no figure is copied by hand."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

if TYPE_CHECKING:
    from collections.abc import Mapping

FOLDER: Final = Path(__file__).resolve().parent / "measured"


def write(path: Path, measured: Mapping[str, Any]) -> None:
    """Write ``measured`` to ``path`` as JSON, and print it."""
    path.parent.mkdir(parents=True, exist_ok=True)
    text = json.dumps(measured, indent=2)
    path.write_text(text + "\n", encoding="utf-8")
    print(text)


def read(path: Path) -> dict[str, Any]:
    """Return the report at ``path``."""
    content: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    return content
