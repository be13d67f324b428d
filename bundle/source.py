"""Where files of a registry come from: one port, over MQTT, HTTPS or a folder."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol


class NotThere(LookupError):
    """The source says that there is no such file."""


class SourceUnavailable(Exception):
    """The source cannot be asked now, was too slow or broke off; another may do.

    `retry_after_s` is when it asks to be asked again, or None.
    """

    def __init__(self, reason: str, retry_after_s: float | None = None) -> None:
        super().__init__(reason)
        self.retry_after_s = retry_after_s


@dataclass(frozen=True, slots=True)
class Piece:
    """A range of a file; `total_bytes` is the size of the whole, as the source says."""

    data: bytes
    total_bytes: int


class Source(Protocol):
    """Gives ranges of files. Nothing of what it says is trusted."""

    name: str

    async def read(self, path: str, offset: int, length: int) -> Piece:
        """At most `length` bytes of the file from `offset` on; fewer only at its end.

        Raises:
            NotThere: no such file.
            SourceUnavailable: not now; within the source's own deadline.
        """
        ...
