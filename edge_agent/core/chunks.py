"""What a blob is made of: pieces of one length, each known by its digest. Pure."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Protocol, Self

from bundle import layout


class Sealed(Protocol):
    """What states a blob: a seal, or the offer of a delta."""

    @property
    def sha256(self) -> str: ...  # noqa: D102 - as named
    @property
    def size_bytes(self) -> int: ...  # noqa: D102 - as named
    @property
    def chunk_bytes(self) -> int: ...  # noqa: D102 - as named
    @property
    def chunks(self) -> tuple[str, ...]: ...  # noqa: D102 - as named


@dataclass(frozen=True, slots=True)
class Chunks:
    """A blob of a registry, cut up.

    Chunk `i` is the bytes from `i * chunk_bytes` on; the last may be shorter.

    Attributes:
        sha256: the digest of the whole, in hexadecimal.
        digests: those of the chunks, in order.
    """

    sha256: str
    size_bytes: int
    chunk_bytes: int
    digests: tuple[str, ...]

    @classmethod
    def of(cls, sealed: Sealed) -> Self:
        """The chunks that a seal or an offer states."""
        return cls(
            sealed.sha256, sealed.size_bytes, sealed.chunk_bytes, tuple(sealed.chunks)
        )

    @property
    def path(self) -> str:
        """Where the blob lies in a registry."""
        return layout.blob(self.sha256)

    def __len__(self) -> int:
        return len(self.digests)

    def span(self, index: int) -> tuple[int, int]:
        """Offset and length of a chunk, in bytes."""
        offset = index * self.chunk_bytes
        return offset, min(self.chunk_bytes, self.size_bytes - offset)

    def index_at(self, offset: int) -> int | None:
        """The chunk that begins at `offset`; None where none does."""
        index, inside = divmod(offset, self.chunk_bytes)
        return index if not inside and 0 <= index < len(self.digests) else None

    def is_chunk(self, index: int, data: bytes | memoryview) -> bool:
        """Whether `data` is that chunk, by length and digest."""
        _, length = self.span(index)
        return (
            len(data) == length
            and hashlib.sha256(data).hexdigest() == self.digests[index]
        )

    def places(self) -> Iterator[tuple[int, int, int]]:
        """Index, offset and length of each chunk."""
        for index in range(len(self.digests)):
            yield index, *self.span(index)
