"""That a delta is offered: which blob it is. Unsigned, for what comes of it is verified."""

from __future__ import annotations

from typing import Annotated, Final, Literal, Self

from pydantic import BaseModel, ConfigDict, Field, StrictInt, ValidationError
from pydantic import model_validator as validated

from bundle.manifest import Digest
from bundle.seal import (
    CHUNK_BYTES,
    MAX_CHUNK_BYTES,
    MAX_CHUNKS,
    MAX_PACKED_BYTES,
    MIN_CHUNK_BYTES,
)

MAX_OFFER_BYTES: Final = 512 * 1024


class DeltaRejected(ValueError):
    """A delta or its offer cannot be used; the whole file is fetched instead."""


class Offer(BaseModel):
    """A delta's blob. Where it lies says of what base it makes what file.

    `full`: there is no delta that is worth it, and no blob. A blob of one chunk need
    not name it beside its own digest.
    """

    model_config = ConfigDict(frozen=True, extra="ignore")

    format: Literal[1] = 1
    kind: Literal["subtract", "prefix", "full"]
    sha256: Digest = "0" * 64
    size_bytes: Annotated[StrictInt, Field(ge=0, le=MAX_PACKED_BYTES)] = 0
    chunk_bytes: Annotated[StrictInt, Field(ge=MIN_CHUNK_BYTES, le=MAX_CHUNK_BYTES)] = (
        CHUNK_BYTES
    )
    chunks: Annotated[tuple[Digest, ...], Field(max_length=MAX_CHUNKS)] = ()

    @validated(mode="before")
    @classmethod
    def _one_chunk(cls, stated: object) -> object:
        if not isinstance(stated, dict) or "chunks" in stated:
            return stated
        size, cut = stated.get("size_bytes"), stated.get("chunk_bytes", CHUNK_BYTES)
        if isinstance(size, int) and isinstance(cut, int) and 0 < size <= cut:
            return {**stated, "chunks": (stated.get("sha256"),)}
        return stated

    @validated(mode="after")
    def _chunks_cover(self) -> Self:
        if len(self.chunks) != -(-self.size_bytes // self.chunk_bytes):
            raise ValueError(
                f"{self.size_bytes} bytes are not {len(self.chunks)} chunks of "
                f"{self.chunk_bytes}"
            )
        return self

    def to_json(self) -> bytes:
        """As `read_offer` reads it; nothing is said that goes without saying."""
        left_out = {"chunks"} if len(self.chunks) < 2 else None
        return self.model_dump_json(exclude_defaults=True, exclude=left_out).encode()


def read_offer(data: bytes) -> Offer:
    """An offer as it came from a source.

    Raises:
        DeltaRejected: too long, or not an offer.
    """
    if len(data) > MAX_OFFER_BYTES:
        raise DeltaRejected(f"an offer of {len(data)} bytes is over {MAX_OFFER_BYTES}")
    try:
        return Offer.model_validate_json(data)
    except ValidationError as error:
        fault = error.errors(include_url=False, include_input=False)[0]
        where = ".".join(str(part) for part in fault["loc"]) or "offer"
        raise DeltaRejected(f"not an offer: {where}: {fault['msg']}") from error
