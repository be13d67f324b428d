"""What an update costs on the wire, against the entropy of what changed.

The bytes are counted while the real puller pulls the real delta of two packed bundles:
every question and answer as MQTT publishes with their headers and acknowledgements, the
offer and the delta in them. Not counted: TCP and TLS below, and the metadata and the
seal, whose limit is another.

The reference is the order-0 entropy of the difference of the two packed bundles, all of
it, headers and manifest and zeros included: of int8 models byte by byte (wrapping), one
histogram for the whole file; of float32 models word by word (as unsigned integers,
wrapping, folded), with a histogram for each of the four bytes of a word. That is below
the entropy of one histogram of all bytes, so it is the stricter one. (One of whole words
would say nothing: hardly any word of a difference comes twice, so that its entropy is
that of a list of their numbers, from which nobody could make the words again.)

The models are the committed one of examples/fashion (its convolutions are int8, its last
layer is float32) and the float32 weights of that example's cloud model. A fine-tune moves
each int8 weight by a rounded normal that leaves 71 % where they were; its biases and its
float32 layer move too. Golden examples stay as they were: new ones cost what they cost.
"""

from __future__ import annotations

import asyncio
import json
import lzma
import random
import shutil
import tempfile
import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from benchmarks.limits import Limit, progress
from broker import topics
from broker.codec import encode
from broker.messages import Blob, Get, UpdatePolicy
from bundle import layout
from bundle.delta.coded import encode as compressed
from bundle.delta.lanes import entropy_bytes, planes
from bundle.delta.offering import offer_delta
from bundle.folder_tree import FolderTree
from bundle.pack import pack
from bundle.seal import make_seal
from bundle.source import NotThere, Piece
from bundle.tree_source import TreeSource
from edge_agent.adapters.day_file import DayFile
from edge_agent.loops.metering import Metering
from edge_agent.loops.pulling import Puller
from examples.fashion import labelled

EXAMPLE: Final = Path(labelled.__file__).parent
SMALL: Final = EXAMPLE / "edge" / "small"
WEIGHTS: Final = EXAMPLE / "cloud/fashion/1/variables/variables.data-00000-of-00001"
AGENT: Final = "a-gateway-in-a-hall-01"
MOST: Final = 1.25
# Where the committed model's tensors lie, as its flatbuffer has them.
CONVOLUTIONS: Final = ((3360, 144), (4504, 4608), (10568, 13824), (26296, 27648))
LAST_INT8: Final = (56108, 36864)
BIASES: Final = ((3936, 64), (9744, 128), (25216, 192), (54960, 256), (94000, 256))
LAST_FLOAT: Final = ((94344, 2560), (96992, 40))
# 29 % of rounded normals of this width are not 0.
TUNED: Final = 0.4725
# A head of its own, as a classifier's: a fifth of the file, as in facts of the field.
HEAD_SHARE: Final = 0.2
# MQTT: fixed header and length, topic and its length, packet id; and the PUBACK.
PUBACK_BYTES: Final = 4

Bytes = NDArray[np.uint8]


class Counting:
    """A source over MQTT as far as its bytes go; the registry is at hand."""

    name = "counted"

    def __init__(self, tree: FolderTree) -> None:
        self._source = TreeSource(tree)
        self.bytes = 0
        self.questions = 0

    async def read(self, path: str, offset: int, length: int) -> Piece:
        """As the registry reads, and what that would be on the wire."""
        get = Get(want="file", path=path, offset=offset, length=length)
        self.questions += 1
        self.bytes += _published(topics.gets(AGENT), encode(get))
        asked = Blob(want="file", path=path, offset=offset)
        try:
            piece = await self._source.read(path, offset, length)
        except NotThere as error:
            told = str(error)
            self._hear(asked.model_copy(update={"status": "not_found", "reason": told}))
            raise
        found = {"data": piece.data, "total_bytes": piece.total_bytes}
        self._hear(asked.model_copy(update=found))
        return piece

    def _hear(self, blob: Blob) -> None:
        self.bytes += _published(topics.blobs(AGENT), encode(blob))


def _published(topic: str, payload: bytes) -> int:
    body = 2 + len(topic) + 2 + len(payload)
    length_bytes = max(1, -(-body.bit_length() // 7))
    return 1 + length_bytes + body + PUBACK_BYTES


@dataclass(frozen=True, slots=True)
class Change:
    """Two versions of a model. `words`: bytes in one of the difference's words."""

    old: bytes
    new: bytes
    words: int


def measure(work: Path | None = None) -> tuple[dict[str, object], list[Limit]]:
    """Wire bytes of each change, and the limits they are held to."""
    figures: dict[str, object] = {}
    limits: list[Limit] = []
    with tempfile.TemporaryDirectory(dir=work) as folder:
        for number, (name, change) in enumerate(_changes().items()):
            progress(f"delta of {name}")
            row = _measure(Path(folder) / str(number), change)
            figures[name] = row
            ratio = float(row["wire_of_entropy"])
            limits.append(Limit(f"{name}: wire bytes / entropy", ratio, MOST))
    return figures, limits


def _changes() -> Mapping[str, Change]:
    rng = np.random.default_rng(1)
    small = (SMALL / "model.tflite").read_bytes()
    weights = WEIGHTS.read_bytes()
    head = len(weights) // 4 * 4
    return {
        "int8 fine-tune": Change(small, _fine_tuned(small, rng), 1),
        "int8 last layer": Change(small, _moved(small, [LAST_INT8], 1.5, rng), 1),
        "float32 last layer": Change(
            weights, _drifted(weights, round(head * (1 - HEAD_SHARE)), 0.05, rng), 4
        ),
        "float32 last layer of 2.6 KB": Change(small, _relearned(small, rng), 4),
        "float32, every weight 0.1 %": Change(
            weights, _drifted(weights, 0, 0.001, rng), 4
        ),
        "int8, 10 % moved": Change(
            small, _moved(small, [*CONVOLUTIONS, LAST_INT8], 0.304, rng), 1
        ),
    }


def _moved(
    model: bytes,
    tensors: list[tuple[int, int]],
    width: float,
    rng: np.random.Generator,
) -> bytes:
    new = np.frombuffer(model, np.int8).copy()
    for at, size in tensors:
        steps = np.rint(rng.normal(0, width, size)).astype(np.int16)
        new[at : at + size] = np.clip(new[at : at + size] + steps, -127, 127)
    return bytes(new.tobytes())


def _fine_tuned(model: bytes, rng: np.random.Generator) -> bytes:
    new = bytearray(_moved(model, [*CONVOLUTIONS, LAST_INT8], TUNED, rng))
    for at, size in BIASES:
        biases = np.frombuffer(new, "<i4", size // 4, at)
        moved = biases * (1 + rng.normal(0, 0.01, len(biases)))
        new[at : at + size] = np.rint(moved).astype("<i4").tobytes()
    return _relearned(bytes(new), rng, 0.001)


def _relearned(model: bytes, rng: np.random.Generator, width: float = 0.05) -> bytes:
    """The float32 layer moves by some of itself."""
    new = bytearray(model)
    for at, size in LAST_FLOAT:
        floats = np.frombuffer(new, "<f4", size // 4, at)
        moved = floats * (1 + rng.normal(0, width, len(floats))).astype("<f4")
        new[at : at + size] = moved.astype("<f4").tobytes()
    return bytes(new)


def _drifted(
    weights: bytes, begin: int, width: float, rng: np.random.Generator
) -> bytes:
    """Every float32 from a place on moves by some of itself."""
    begin, end = begin // 4 * 4, len(weights) // 4 * 4
    floats = np.frombuffer(weights, "<f4", (end - begin) // 4, begin)
    with np.errstate(all="ignore"):  # some of it is no float at all
        moved = floats * (1 + rng.normal(0, width, len(floats))).astype("<f4")
    return b"".join((weights[:begin], moved.astype("<f4").tobytes(), weights[end:]))


def _measure(folder: Path, change: Change) -> dict[str, Any]:
    folder.mkdir()
    tree = FolderTree(folder / "registry")
    base, wanted = (
        _bundle(folder, version, model)
        for version, model in (("1", change.old), ("2", change.new))
    )
    old, new = (make_seal(each, "fashion", each.name) for each in (base, wanted))
    for packed, seal in ((base, old), (wanted, new)):
        tree.write_copy(layout.blob(seal.sha256), packed)
    began_s = time.process_time()
    offer = offer_delta(tree, old.sha256, new.sha256)
    built_s = time.process_time() - began_s
    source = Counting(tree)
    got = asyncio.run(_pull(source, folder, base, wanted))
    if got.read_bytes() != wanted.read_bytes():
        raise ValueError("the delta made something else")
    was, now = np.fromfile(base, np.uint8), np.fromfile(wanted, np.uint8)
    entropy = _entropy(was, now, change.words)
    plain = (now - was).tobytes()
    return {
        "full_bytes": len(now),
        "entropy_bytes": round(entropy),
        "wire_bytes": source.bytes,
        "wire_of_entropy": round(source.bytes / entropy, 3),
        "wire_of_full": round(source.bytes / len(now), 4),
        "kind": offer.kind,
        "delta_bytes": offer.size_bytes,
        "offer_bytes": len(offer.to_json()),
        "questions": source.questions,
        "built_cpu_s": round(built_s, 2),
        "peers_bytes": {
            "subtract, xz -9": _xz(plain),
            "zstd -19 of all": len(compressed(now.tobytes(), _go_on)[1]),
            "zstd -19, base as prefix": len(
                compressed(now.tobytes(), _go_on, prefix=was.tobytes())[1]
            ),
        },
    }


def _entropy(was: Bytes, now: Bytes, words: int) -> float:
    if len(was) != len(now):
        raise ValueError("the two bundles differ in length: there is no difference")
    whole = len(now) // words * words
    rest = entropy_bytes(now[whole:] - was[whole:])
    return rest + sum(map(entropy_bytes, planes(was[:whole], now[:whole], words)))


async def _pull(source: Counting, folder: Path, base: Path, wanted: Path) -> Path:
    puller = Puller(
        [source],
        folder / "parts",
        metering=Metering(DayFile(folder / "day.json"), local_now_s=lambda: 86_400.0),
        rng=random.Random(1),
    )
    return await puller.pull(
        make_seal(wanted, "fashion", wanted.name),
        base,
        policy=UpdatePolicy(),
        superseded=lambda: False,
    )


def _bundle(folder: Path, version: str, model: bytes) -> Path:
    source = folder / f"source-{version}"
    shutil.copytree(SMALL, source)
    (source / "model.tflite").write_bytes(model)
    stated = json.loads((source / "manifest.json").read_text())
    (source / "manifest.json").write_text(json.dumps({**stated, "version": version}))
    packed = folder / version
    pack(source, packed)
    return packed


def _xz(data: bytes) -> int:
    return len(lzma.compress(data, preset=9 | lzma.PRESET_EXTREME))


def _go_on() -> None:
    """There is no hurry."""
