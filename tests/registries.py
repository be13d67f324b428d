"""Registries for tests: two versions of a bundle in a real tree, and unreliable sources."""

from __future__ import annotations

import asyncio
import hashlib
import json
from collections import Counter
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

import numpy as np

from bundle import layout
from bundle.folder_tree import FolderTree
from bundle.pack import pack
from bundle.seal import Seal, make_seal
from bundle.source import NotThere, Piece, Source, SourceUnavailable

CHUNK_BYTES = 4 * 1024


def model_bytes(size: int, seed: int = 1) -> bytes:
    """Weights that no compressor can do much about."""
    weights = np.random.default_rng(seed).normal(0, 40, size)
    return bytes(weights.astype(np.int8).tobytes())


def tuned(model: bytes, share: float = 0.05, seed: int = 2) -> bytes:
    """The same with a share of the weights moved by one."""
    rng = np.random.default_rng(seed)
    old = np.frombuffer(model, np.int8)
    moved = (rng.random(len(old)) < share) * rng.choice([-1, 1], len(old))
    return bytes((old + moved.astype(np.int8)).tobytes())


def packed_bundle(folder: Path, version: str, model: bytes, **more: Any) -> Path:
    """A packed bundle `fashion` that holds `model`."""
    source = folder / f"source-{version}"
    source.mkdir(parents=True)
    (source / "model.tflite").write_bytes(model)
    manifest = {
        "format": 1,
        "name": "fashion",
        "version": version,
        "model_file": "model.tflite",
        **more,
    }
    (source / "manifest.json").write_text(json.dumps(manifest))
    packed = folder / f"fashion-{version}.bundle"
    pack(source, packed)
    return packed


def sha256_of(path: Path) -> str:
    """A file's digest in hexadecimal."""
    return hashlib.sha256(path.read_bytes()).hexdigest()


class Registry:
    """A tree in a folder, and what was published in it."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self.tree = FolderTree(folder / "registry")

    def publish(
        self, version: str, model: bytes, *, chunk_bytes: int = CHUNK_BYTES, **more: Any
    ) -> tuple[Path, Seal]:
        """Put a version's blob there; gives the packed bundle and its seal."""
        packed = packed_bundle(self._folder, version, model, **more)
        seal = make_seal(packed, "fashion", version, chunk_bytes=chunk_bytes)
        self.tree.write_copy(layout.blob(seal.sha256), packed)
        return packed, seal

    def path(self, path: str) -> Path:
        """Where a file of the tree lies on this disk."""
        return self.tree.root / path


class Wayward:
    """A source with a mind of its own, in front of a good one.

    Attributes:
        asked: how often, by path and offset.
        mood: what becomes of one question; gives None to pass it on.
    """

    def __init__(
        self,
        name: str,
        source: Source,
        mood: Callable[[str, int, int], Awaitable[Piece | None]] | None = None,
    ) -> None:
        self.name = name
        self.asked: Counter[tuple[str, int]] = Counter()
        self.mood = mood
        self._source = source

    async def read(self, path: str, offset: int, length: int) -> Piece:
        """As the mood is, or as the source behind it does."""
        self.asked[path, offset] += 1
        piece = None if self.mood is None else await self.mood(path, offset, length)
        return await self._source.read(path, offset, length) if piece is None else piece

    def chunks_of(self, seal: Seal) -> int:
        """How many questions were for chunks of that blob."""
        path = layout.blob(seal.sha256)
        return sum(count for (of, _), count in self.asked.items() if of == path)


async def lies(_path: str, _offset: int, length: int) -> Piece | None:
    """Other bytes of the right length."""
    return Piece(b"\x00" * length, length)


async def stalls(_path: str, _offset: int, _length: int) -> Piece | None:
    """Nothing, for ever."""
    await asyncio.Event().wait()
    return None


async def fails(_path: str, _offset: int, _length: int) -> Piece | None:
    """Not now."""
    raise SourceUnavailable("the test took it away")


async def lacks(path: str, _offset: int, _length: int) -> Piece | None:
    """No such file."""
    raise NotThere(f"the test has no {path}")
