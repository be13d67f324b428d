"""A file that is not whole yet, and which of its chunks are there. Blocking.

Beside the file lies a bitmap of its chunks. The bitmap is a hint and digests decide:
what it claims is checked when the file is opened again, so a power cut that kept the
bitmap and lost the bytes costs those bytes only, and a damaged bitmap costs one
reading of the file.
"""

from __future__ import annotations

import hashlib
import os
import threading
import zlib
from collections.abc import Iterable
from pathlib import Path
from typing import Final, Self

from bundle.durable import sync_folder
from edge_agent.core.chunks import Chunks

PART_SUFFIX: Final = ".part"
BITMAP_SUFFIX: Final = ".have"
MAGIC: Final = b"OVHAVE1\n"


class PartFile:
    """The unfinished file for `dest`, open until `close` or `finish`.

    Args:
        dest: what it will be once it is whole.
        chunks: what it must hold.

    Attributes:
        held_bytes: of the chunks that are there.
    """

    def __init__(self, dest: Path, chunks: Chunks) -> None:
        self._dest = dest
        self._chunks = chunks
        self._file = -1
        self._bits = bytearray(-(-len(chunks) // 8))
        # A pull that is left off closes this while a thread may still write: the file
        # that is opened next would get what was meant for this one.
        self._writing = threading.Lock()
        self.held_bytes = 0

    @staticmethod
    def names(dest: Path) -> tuple[Path, Path]:
        """The unfinished file, and its bitmap."""
        return (
            dest.with_name(dest.name + PART_SUFFIX),
            dest.with_name(dest.name + BITMAP_SUFFIX),
        )

    @classmethod
    def drop(cls, dest: Path) -> None:
        """Forget what there is of it."""
        for path in cls.names(dest):
            path.unlink(missing_ok=True)

    def open(self) -> Self:
        """Open or make the file, with room for all of it on the disk.

        Raises:
            OSError: the disk is full, or the folder cannot be written.
        """
        part, bitmap = self.names(self._dest)
        claimed = self._claimed(bitmap) if part.exists() else ()
        self._file = os.open(part, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o644)
        try:
            os.ftruncate(self._file, self._chunks.size_bytes)
            # A disk that is too small is better known now than after most of it.
            os.posix_fallocate(self._file, 0, self._chunks.size_bytes)
            for index in claimed:
                if self._chunks.is_chunk(index, self._read(index)):
                    self._set(index)
            self._save()
        except BaseException:
            self.close()
            raise
        return self

    def close(self) -> None:
        """Let go of it; what it holds stays."""
        with self._writing:
            if self._file >= 0:
                os.close(self._file)
                self._file = -1

    def has(self, index: int) -> bool:
        """Whether that chunk is there."""
        return bool(self._bits[index // 8] & (1 << (index % 8)))

    def missing(self) -> list[int]:
        """The chunks that are not there yet, in order."""
        return [i for i in range(len(self._chunks)) if not self.has(i)]

    def put(self, index: int, data: bytes | memoryview) -> bool:
        """Keep a chunk; says whether it was that chunk, else nothing is kept.

        Raises:
            OSError: the disk.
        """
        if not self._chunks.is_chunk(index, data):
            return False
        with self._writing:
            if not self.has(index):
                offset, _ = self._chunks.span(index)
                _write_all(self._file, data, offset)
                self._set(index)
                self._save()
        return True

    def take_from(self, base: Path) -> int:
        """Copy the chunks that another file holds at the same cuts; says how many.

        Raises:
            OSError: the other file cannot be read, or the disk is full.
        """
        chunks, taken = self._chunks, 0
        wanted: dict[str, list[int]] = {}
        for index in self.missing():
            wanted.setdefault(chunks.digests[index], []).append(index)
        with base.open("rb") as file:
            while wanted and (data := file.read(chunks.chunk_bytes)):
                digest = hashlib.sha256(data).hexdigest()
                for index in wanted.pop(digest, ()):
                    taken += self.put(index, data)
        return taken

    def finish(self) -> Path:
        """Sync the whole file and give it its name.

        Raises:
            OSError: the disk.
        """
        part, bitmap = self.names(self._dest)
        os.fsync(self._file)
        self.close()
        part.replace(self._dest)
        bitmap.unlink(missing_ok=True)
        sync_folder(self._dest.parent)
        return self._dest

    def _claimed(self, bitmap: Path) -> Iterable[int]:
        """The chunks to check: those the bitmap names; all of them if it is damaged."""
        size = len(self._head()) + len(self._bits) + 4
        try:
            with bitmap.open("rb") as file:
                data = file.read(size + 1)
        except OSError:
            data = b""
        body, crc = data[:-4], data[-4:]
        if (
            len(data) != size
            or not body.startswith(self._head())
            or zlib.crc32(body).to_bytes(4, "little") != crc
        ):
            return range(len(self._chunks))
        bits = body[len(self._head()) :]
        return [i for i in range(len(self._chunks)) if bits[i // 8] & (1 << (i % 8))]

    def _head(self) -> bytes:
        cut = self._chunks.chunk_bytes.to_bytes(4, "little")
        return MAGIC + bytes.fromhex(self._chunks.sha256) + cut

    def _set(self, index: int) -> None:
        self._bits[index // 8] |= 1 << (index % 8)
        self.held_bytes += self._chunks.span(index)[1]

    def _save(self) -> None:
        # In one write, after the chunk's own: a process that is killed in between
        # fetches that chunk again.
        body = self._head() + bytes(self._bits)
        _, bitmap = self.names(self._dest)
        file = os.open(bitmap, os.O_WRONLY | os.O_CREAT | os.O_CLOEXEC, 0o644)
        try:
            _write_all(file, body + zlib.crc32(body).to_bytes(4, "little"), 0)
        finally:
            os.close(file)

    def _read(self, index: int) -> bytes:
        offset, length = self._chunks.span(index)
        return os.pread(self._file, length, offset)


def _write_all(file: int, data: bytes | memoryview, offset: int) -> None:
    view = memoryview(data)
    while view:
        written = os.pwrite(file, view, offset)
        view, offset = view[written:], offset + written


def make_by_delta(
    part: PartFile, wanted: Chunks, base: Path, base_sha256: str, delta: Path
) -> None:
    """Fill an unfinished file with what a delta makes of a base, each chunk checked.

    Args:
        part: of the wanted file.
        wanted: what its seal states.
        base: a packed bundle that is here.
        base_sha256: its digest.
        delta: the blob that was offered.

    Raises:
        DeltaRejected: something else would come of it; the chunks before are kept.
        ImportError: this machine has not what the delta needs.
        OSError: the disk.
    """
    # Imported here: an agent at rest needs no decoders.
    from bundle.delta.apply import apply_delta  # noqa: PLC0415
    from bundle.delta.offer import DeltaRejected  # noqa: PLC0415

    held = bytearray()
    index = 0
    for block in apply_delta(base, base_sha256, delta, size_bytes=wanted.size_bytes):
        held += block
        while index < len(wanted) and len(held) >= wanted.span(index)[1]:
            _, length = wanted.span(index)
            if not part.put(index, bytes(held[:length])):
                raise DeltaRejected(f"chunk {index} of it is not what was sealed")
            del held[:length]
            index += 1
    if index < len(wanted):
        raise DeltaRejected(f"it ends before chunk {index} of {len(wanted)}")
