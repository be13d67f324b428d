"""What the consumer and its model process say to each other over a socket.

A frame is a prefix (two little-endian lengths), a MessagePack header and a body of
raw tensor bytes that the header describes. Both ends are one program on one machine,
so a malformed frame is a bug and ends the connection. This module imports neither
TensorFlow nor asyncio.
"""

from __future__ import annotations

import struct
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Final, Literal

import msgpack

from cloud_worker.core.batcher import Signature
from cloud_worker.core.outputs import BatchOutputs, OutputBlock
from cloud_worker.core.spec import ModelSpec, TensorSpec

PREFIX: Final = struct.Struct("<IQ")
MAX_HEADER_BYTES: Final = 16 * 1024 * 1024
MAX_BODY_BYTES: Final = 4 * 1024**3

Format = Literal["saved_model", "keras", "tflite"]


class FrameError(ValueError):
    """The other end sent something that is not a frame."""


@dataclass(frozen=True, slots=True)
class ModelSource:
    """Where a model version lies and how it is to be loaded."""

    name: str
    version: str
    format: Format
    path: Path
    max_batch: int

    @property
    def key(self) -> str:
        """What the model process knows it by."""
        return f"{self.name}/{self.version}"


def frame(header: Mapping[str, Any], body: Sequence[bytes | memoryview] = ()) -> bytes:
    """Pack a header and the parts of a body into one frame."""
    packed: bytes = msgpack.packb(header)
    size = sum(len(part) for part in body)
    return b"".join((PREFIX.pack(len(packed), size), packed, *body))


def read_prefix(data: bytes | bytearray | memoryview) -> tuple[int, int]:
    """The lengths of the header and the body that follow a prefix.

    Raises:
        FrameError: a length is over its bound.
    """
    header_bytes, body_bytes = PREFIX.unpack_from(data)
    if header_bytes > MAX_HEADER_BYTES or body_bytes > MAX_BODY_BYTES:
        raise FrameError(f"frame of {header_bytes} and {body_bytes} bytes")
    return header_bytes, body_bytes


def read_header(data: bytes | bytearray | memoryview) -> dict[str, Any]:
    """The header of a frame.

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


def load_header(source: ModelSource) -> dict[str, Any]:
    """Ask for a model to be loaded and warmed up."""
    return {
        "op": "load",
        "name": source.name,
        "version": source.version,
        "format": source.format,
        "path": str(source.path),
        "max_batch": source.max_batch,
    }


def read_source(header: Mapping[str, Any]) -> ModelSource:
    """The model that a `load` header names."""
    return ModelSource(
        name=header["name"],
        version=header["version"],
        format=header["format"],
        path=Path(header["path"]),
        max_batch=header["max_batch"],
    )


def spec_header(spec: ModelSpec) -> dict[str, Any]:
    """Answer that a model is loaded."""
    return {"spec": asdict(spec)}


def read_spec(header: Mapping[str, Any], body: memoryview) -> ModelSpec:
    """The signature in the answer to a `load`."""
    del body
    spec = header["spec"]
    return ModelSpec(
        inputs=tuple(TensorSpec(**each) for each in spec["inputs"]),
        outputs=tuple(TensorSpec(**each) for each in spec["outputs"]),
        batched=spec["batched"],
        costs_ms=spec["costs_ms"],
    )


def run_header(key: str, signature: Signature, count: int) -> dict[str, Any]:
    """Ask for a batch of `count` requests of one signature.

    The body holds, for each input in turn, the buffers of all requests.
    """
    return {"op": "run", "key": key, "inputs": signature, "count": count}


def outputs_header(outputs: BatchOutputs) -> dict[str, Any]:
    """Answer with a batch's outputs; the body holds their data in turn."""
    return {
        "count": outputs.count,
        "infer_ms": outputs.infer_ms,
        "blocks": [
            (block.name, block.dtype, block.shapes, len(block.data))
            for block in outputs.blocks
        ],
    }


def read_outputs(header: Mapping[str, Any], body: memoryview) -> BatchOutputs:
    """The outputs in the answer to a `run`."""
    blocks = []
    start = 0
    for name, dtype, shapes, size in header["blocks"]:
        blocks.append(OutputBlock(name, dtype, shapes, body[start : start + size]))
        start += size
    return BatchOutputs(header["count"], tuple(blocks), header["infer_ms"])
