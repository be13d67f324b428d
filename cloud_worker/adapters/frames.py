"""What the consumer and a model's process say to each other over a socket.

A frame is a little-endian length and a MessagePack map. Tensors are never in it: they
lie on a tray (`trays.py`), and a frame says which and where. A frame that the model's
process got wrong is a `FrameError`, which costs that process its life and the consumer
nothing. This module imports neither TensorFlow nor asyncio.
"""

from __future__ import annotations

import struct
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from math import prod
from pathlib import Path
from typing import Any, Final, Literal

import msgpack

from broker.messages import ITEM_BYTES
from cloud_worker.adapters.runtime import Tuning
from cloud_worker.core.line import Signature
from cloud_worker.core.outputs import BatchOutputs, OutputBlock
from cloud_worker.core.spec import ModelSpec, Padding, TensorSpec

PREFIX: Final = struct.Struct("<I")
MAX_FRAME_BYTES: Final = 16 * 1024 * 1024
MAX_OUTPUT_BYTES: Final = 4 * 1024**3

Format = Literal["saved_model", "keras", "keras_h5", "tflite", "onnx"]
Take = Callable[[int, int], bytes]


class FrameError(ValueError):
    """The other end sent something that is not a frame."""


@dataclass(frozen=True, slots=True)
class ModelSource:
    """Where a model version lies and how it is to be loaded.

    It is warmed at each length of `padding`, if its inputs are to be padded.
    """

    name: str
    version: str
    format: Format
    path: Path
    max_batch: int
    padding: Padding | None = None

    @property
    def key(self) -> str:
        """What the worker knows it by."""
        return f"{self.name}/{self.version}"


@dataclass(frozen=True, slots=True)
class Loaded:
    """The answer to a `load`: what the model is, and how many batches it runs at once."""

    spec: ModelSpec
    at_once: int


def frame(header: Mapping[str, Any]) -> bytes:
    """Pack a frame."""
    packed: bytes = msgpack.packb(header)
    return PREFIX.pack(len(packed)) + packed


def read_prefix(data: bytes | bytearray) -> int:
    """The length of the map that follows a prefix.

    Raises:
        FrameError: it is over its bound.
    """
    size: int = PREFIX.unpack_from(data)[0]
    if size > MAX_FRAME_BYTES:
        raise FrameError(f"a frame of {size} bytes")
    return size


def read_header(data: bytes | bytearray | memoryview) -> dict[str, Any]:
    """The map of a frame.

    Raises:
        FrameError: it is not a MessagePack map.
    """
    try:
        header = msgpack.unpackb(data, use_list=False)
    except (ValueError, msgpack.UnpackException) as error:
        raise FrameError(f"header: {error}") from error
    if not isinstance(header, dict):
        raise FrameError("the header is not a map")
    return header


def load_header(source: ModelSource, tuning: Tuning) -> dict[str, Any]:
    """Ask for the model to be loaded and warmed up."""
    return {
        "name": source.name,
        "version": source.version,
        "format": source.format,
        "path": str(source.path),
        "max_batch": source.max_batch,
        "padding": None if source.padding is None else asdict(source.padding),
        "tuning": asdict(tuning),
    }


def read_source(header: Mapping[str, Any]) -> tuple[ModelSource, Tuning]:
    """The model that a `load` header names, and how to run it."""
    padding = header["padding"]
    source = ModelSource(
        name=header["name"],
        version=header["version"],
        format=header["format"],
        path=Path(header["path"]),
        max_batch=header["max_batch"],
        padding=None if padding is None else Padding(**padding),
    )
    return source, Tuning(**header["tuning"])


def loaded_header(loaded: Loaded) -> dict[str, Any]:
    """Answer that the model is loaded."""
    return {"spec": asdict(loaded.spec), "at_once": loaded.at_once}


def read_loaded(header: Mapping[str, Any]) -> Loaded:
    """The answer to a `load`.

    Raises:
        FrameError: it is not one.
    """
    try:
        spec = header["spec"]
        return Loaded(
            ModelSpec(
                inputs=tuple(TensorSpec(**each) for each in spec["inputs"]),
                outputs=tuple(TensorSpec(**each) for each in spec["outputs"]),
                batched=spec["batched"],
                costs_ms=spec["costs_ms"],
                item_costs_ms=spec["item_costs_ms"],
            ),
            max(1, int(header["at_once"])),
        )
    except (KeyError, TypeError, ValueError) as error:
        raise FrameError(f"answer to a load: {error!r}") from error


def run_header(
    number: int, tray: int, size: int, signature: Signature, count: int
) -> dict[str, Any]:
    """Ask for a batch of `count` requests of one signature.

    The tray holds, in its first `size` bytes, for each input in turn the buffers of
    all requests.
    """
    return {
        "batch": number,
        "tray": tray,
        "size": size,
        "inputs": signature,
        "count": count,
    }


def outputs_header(number: int, outputs: BatchOutputs, start: int) -> dict[str, Any]:
    """Answer with a batch's outputs, which lie on its tray from `start` in turn."""
    return {
        "batch": number,
        "start": start,
        "count": outputs.count,
        "infer_ms": outputs.infer_ms,
        "blocks": [
            (block.name, block.dtype, block.shapes, len(block.data))
            for block in outputs.blocks
        ],
    }


def read_outputs(header: Mapping[str, Any], take: Take, count: int) -> BatchOutputs:
    """The outputs of a batch of `count` requests.

    Args:
        header: as `outputs_header` makes it.
        take: gives a copy of so many bytes of the tray, from where to how many.
        count: how many requests the batch had.

    Raises:
        FrameError: the header does not say what lies on the tray.
    """
    try:
        blocks = header["blocks"]
        for name, dtype, shapes, size in blocks:
            _check_block(name, dtype, shapes, size, count)
        total = sum(size for *_, size in blocks)
        if total > MAX_OUTPUT_BYTES:
            raise ValueError(f"outputs of {total} bytes")  # noqa: TRY301 - as the rest
        body = memoryview(take(header["start"], total))
        infer_ms = float(header["infer_ms"])
    except FrameError:
        raise
    except (KeyError, TypeError, ValueError, OverflowError, OSError) as error:
        # A wild offset is the system's to refuse: EINVAL, or too few bytes.
        raise FrameError(f"answer to a batch: {error!r}") from error
    cut = []
    at = 0
    for name, dtype, shapes, size in blocks:
        cut.append(OutputBlock(name, dtype, shapes, body[at : at + size]))
        at += size
    return BatchOutputs(count, tuple(cut), infer_ms)


def _check_block(
    name: object,
    dtype: str,
    shapes: tuple[tuple[int, ...], ...],
    size: int,
    count: int,
) -> None:
    items = (
        prod(shapes[0]) * count if len(shapes) == 1 else sum(prod(s) for s in shapes)
    )
    if (
        not isinstance(name, str)
        or len(shapes) not in {1, count}
        or any(side < 0 for shape in shapes for side in shape)
        or items * ITEM_BYTES[dtype] != size
    ):
        raise FrameError(
            f"output {name!r}: {size} bytes of {dtype} for shapes {shapes[:3]}"
        )
