"""The statement of one packed bundle: its digest and those of its chunks.

The fleet's keys sign the seal's own digest (`bundle.trust`). Nothing of a bundle is
unpacked before its seal was found signed, and no chunk is kept whose digest the seal
does not name.
"""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import Annotated, Final, Literal, Self

from pydantic import (
    BaseModel,
    ConfigDict,
    Field,
    StrictInt,
    ValidationError,
    model_validator,
)

from bundle.canonical import canonical
from bundle.manifest import Digest, Name, Requires, Version

CHUNK_BYTES: Final = 128 * 1024
MIN_CHUNK_BYTES: Final = 1024
MAX_CHUNK_BYTES: Final = 1024 * 1024
MAX_PACKED_BYTES: Final = 640 * 1024 * 1024
MAX_CHUNKS: Final = 16 * 1024
MAX_SEAL_BYTES: Final = 2 * 1024 * 1024


class SealRejected(ValueError):
    """A seal, or what it should seal, cannot be trusted; says why."""


class Seal(BaseModel):
    """What a packed bundle is, down to the digest of each chunk.

    Chunk `i` is the bytes `[i * chunk_bytes, (i + 1) * chunk_bytes)` of the packed
    file; the last may be shorter. `epoch` only ever grows for a model: to go back to an
    earlier version is a new epoch of it. `way_back`: it was signed with the publish of
    the epoch before, so that this can be taken back without the keys.
    """

    model_config = ConfigDict(frozen=True, extra="ignore")

    kind: Literal["overspill.seal"] = "overspill.seal"
    format: Literal[1] = 1
    name: Name
    version: Version
    epoch: Annotated[StrictInt, Field(ge=0, le=2**53)] = 0
    way_back: bool = False
    requires: Requires = Field(default_factory=Requires)
    size_bytes: Annotated[StrictInt, Field(ge=1, le=MAX_PACKED_BYTES)]
    sha256: Digest
    chunk_bytes: Annotated[StrictInt, Field(ge=MIN_CHUNK_BYTES, le=MAX_CHUNK_BYTES)] = (
        CHUNK_BYTES
    )
    chunks: Annotated[tuple[Digest, ...], Field(max_length=MAX_CHUNKS)]

    @model_validator(mode="after")
    def _chunks_cover(self) -> Self:
        want = -(-self.size_bytes // self.chunk_bytes)
        if len(self.chunks) != want:
            raise ValueError(
                f"{self.size_bytes} bytes make {want} chunks of {self.chunk_bytes}, "
                f"but {len(self.chunks)} are listed"
            )
        return self

    def chunk_span(self, index: int) -> tuple[int, int]:
        """Where chunk `index` lies in the packed file: offset and length in bytes.

        Raises:
            SealRejected: there is no such chunk.
        """
        if not 0 <= index < len(self.chunks):
            raise SealRejected(
                f"{self.name} {self.version} has chunks 0 to {len(self.chunks) - 1}, "
                f"not {index}"
            )
        offset = index * self.chunk_bytes
        return offset, min(self.chunk_bytes, self.size_bytes - offset)

    def check_chunk(self, index: int, data: bytes) -> None:
        """Return if `data` is chunk `index`.

        Raises:
            SealRejected: no such chunk, wrong length or wrong digest.
        """
        _, length = self.chunk_span(index)
        if len(data) != length:
            raise SealRejected(
                f"chunk {index} of {self.name} {self.version} has {length} bytes, "
                f"got {len(data)}"
            )
        if hashlib.sha256(data).hexdigest() != self.chunks[index]:
            raise SealRejected(
                f"chunk {index} of {self.name} {self.version} is not what was sealed"
            )


def write_seal(seal: Seal) -> bytes:
    """The seal as the file whose digest is signed."""
    return canonical(seal.model_dump(mode="json"))


def read_seal(data: bytes) -> Seal:
    """The seal in a file, **whose digest the caller has verified**.

    Raises:
        SealRejected: too long or malformed.
    """
    if len(data) > MAX_SEAL_BYTES:
        raise SealRejected(f"a seal of {len(data)} bytes is over {MAX_SEAL_BYTES}")
    try:
        return Seal.model_validate_json(data)
    except ValidationError as error:
        raise SealRejected(f"seal refused: {_first_fault(error)}") from error


def check_names(seal: Seal, model: str, version: str, epoch: int) -> Seal:
    """The seal, if it is the one that was asked for.

    Raises:
        SealRejected: it seals another model, version or epoch.
    """
    if (seal.name, seal.version, seal.epoch) != (model, version, epoch):
        raise SealRejected(
            f"asked for {model} {version} in epoch {epoch}, sealed is {seal.name} "
            f"{seal.version} in epoch {seal.epoch}"
        )
    return seal


def make_seal(
    packed: Path, name: str, version: str, *, chunk_bytes: int = CHUNK_BYTES
) -> Seal:
    """Digest a packed bundle.

    Args:
        packed: the tar that `pack` wrote.
        name: the manifest's own name.
        version: the manifest's own version.
        chunk_bytes: the size of a chunk on the wire.

    Raises:
        SealRejected: the file is empty or too big, or a name is not valid.
        OSError: the file cannot be read.
    """
    whole = hashlib.sha256()
    chunks: list[str] = []
    with packed.open("rb") as file:
        while data := file.read(chunk_bytes):
            whole.update(data)
            chunks.append(hashlib.sha256(data).hexdigest())
        size = file.tell()
    try:
        return Seal(
            name=name,
            version=version,
            size_bytes=size,
            sha256=whole.hexdigest(),
            chunk_bytes=chunk_bytes,
            chunks=tuple(chunks),
        )
    except ValidationError as error:
        raise SealRejected(f"cannot seal {packed}: {_first_fault(error)}") from error


def verify_packed(packed: Path, seal: Seal) -> None:
    """Return if the file is what was sealed, to the byte.

    Raises:
        SealRejected: its size or digest is another.
        OSError: the file cannot be read.
    """
    size = packed.stat().st_size
    if size != seal.size_bytes:
        raise SealRejected(
            f"bundle {seal.name} {seal.version} has {size} bytes, "
            f"sealed were {seal.size_bytes}"
        )
    with packed.open("rb") as file:
        digest = hashlib.file_digest(file, "sha256").hexdigest()
    if digest != seal.sha256:
        raise SealRejected(
            f"bundle {seal.name} {seal.version} has digest {digest[:16]}…, "
            f"sealed was {seal.sha256[:16]}…"
        )


def _first_fault(error: ValidationError) -> str:
    fault = error.errors(include_url=False, include_input=False)[0]
    where = ".".join(str(part) for part in fault["loc"]) or "seal"
    return f"{where}: {fault['msg']}"
