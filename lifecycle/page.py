"""What a path of a process's HTTP side answers."""

from __future__ import annotations

from dataclasses import dataclass
from http import HTTPStatus
from typing import Final

TEXT: Final = "text/plain; charset=utf-8"


@dataclass(frozen=True, slots=True)
class Page:
    """What a GET is answered with."""

    status: HTTPStatus
    body: bytes
    content_type: str = TEXT

    @classmethod
    def text(cls, status: HTTPStatus, line: str) -> Page:
        """One line for a person."""
        return cls(status, f"{line}\n".encode())
