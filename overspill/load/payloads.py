"""What requests carry, read or made before the first one is sent.

`DIR` or `FILE` of PNG or JPEG; `FILE.npz`, each array an input, one item of the first
axis a request; `FILE.npz#NAME`, that array as PNG images; `random:NAME=DTYPE[SHAPE]`;
`model:PATH`, random of the shape that a model takes; `1KiB`, so many bytes.
"""

from __future__ import annotations

import io
import json
import re
import subprocess
from collections.abc import Sequence
from math import prod
from pathlib import Path
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from broker.messages import ITEM_BYTES, Medium, Tensor
from overspill.load.mix import Payload
from overspill.load.quantities import BadQuantity, size_bytes
from overspill.program import environment, python

MOST_PAYLOADS: Final = 10_000
# Different ones, unless they would fill the memory.
RANDOM_VARIANTS: Final = 16
RANDOM_ITEMS: Final = 64_000_000
SIGNATURE_WITHIN_S: Final = 120
_MEDIA: Final = {
    ".png": "image/png",
    ".jpg": "image/jpeg",
    ".jpeg": "image/jpeg",
}
_INPUT: Final = re.compile(r"([^=\[\],]+)=([a-z0-9]+)\[([0-9, ]*)\]")


class BadPayload(ValueError):
    """What should be sent cannot be read or made."""


def read_payloads(spec: str, *, seed: int = 0) -> tuple[Payload, ...]:
    """The payloads that a text names, at least one. Blocks.

    Args:
        spec: as the top of this module describes.
        seed: for random ones.

    Raises:
        BadPayload: it names none.
    """
    kind, colon, rest = spec.partition(":")
    if colon and kind == "random":
        return _random(_parse_inputs(rest), seed)
    if colon and kind == "model":
        return _random(_signature(Path(rest)), seed)
    file, _, array = spec.partition("#")
    path = Path(file)
    if path.suffix == ".npz":
        return _arrays(path, array)
    if path.exists():
        return _images(path)
    try:
        size = size_bytes(spec)
    except BadQuantity:
        raise BadPayload(
            f"{spec!r} is no payload: name a folder of images, an image, an .npz, "
            "random:NAME=DTYPE[SHAPE], model:PATH or a size such as 1KiB"
        ) from None
    return _random([("payload", "uint8", (1, size))], seed)


def _images(path: Path) -> tuple[Payload, ...]:
    files = sorted(path.iterdir()) if path.is_dir() else [path]
    found = [
        Payload(each.name, medium=Medium(media_type=media, data=each.read_bytes()))
        for each in files[:MOST_PAYLOADS]
        if (media := _MEDIA.get(each.suffix.lower()))
    ]
    if not found:
        raise BadPayload(f"{path} holds no .png or .jpg")
    return tuple(found)


def _arrays(path: Path, as_images: str) -> tuple[Payload, ...]:
    try:
        with np.load(path, allow_pickle=False) as file:
            arrays = {name: file[name] for name in file.files}
    except (OSError, ValueError) as error:
        raise BadPayload(f"{path} cannot be read as .npz: {error}") from error
    if as_images:
        if as_images not in arrays:
            raise BadPayload(f"{path} has no {as_images!r}, but {sorted(arrays)}")
        return _as_png(path, arrays[as_images])
    lengths = {array.shape[:1] for array in arrays.values()}
    if len(lengths) != 1 or not all(length and length[0] for length in lengths):
        raise BadPayload(
            f"{path}: the first axis of each array counts the requests, so all have "
            f"one of the same length, not {sorted(lengths)}"
        )
    ((count,),) = lengths
    return tuple(
        Payload(
            str(index),
            tensors={
                name: _tensor(path.name, name, array[index : index + 1])
                for name, array in arrays.items()
            },
        )
        for index in range(min(count, MOST_PAYLOADS))
    )


def _as_png(path: Path, images: NDArray[Any]) -> tuple[Payload, ...]:
    if images.dtype != np.uint8 or images.ndim not in {3, 4} or not len(images):
        raise BadPayload(
            f"{path}: images are uint8 [n, height, width] or [n, height, width, 3], "
            f"not {images.dtype} {list(images.shape)}"
        )
    found = []
    for index, pixels in enumerate(images[:MOST_PAYLOADS]):
        file = io.BytesIO()
        Image.fromarray(pixels).save(file, format="PNG")
        medium = Medium(media_type="image/png", data=file.getvalue())
        found.append(Payload(str(index), medium=medium))
    return tuple(found)


_Input = tuple[str, str, tuple[int, ...]]


def _parse_inputs(text: str) -> list[_Input]:
    inputs = [
        (name, dtype, tuple(int(side) for side in shape.split(",") if side.strip()))
        for name, dtype, shape in _INPUT.findall(text)
    ]
    written = ",".join(each.group(0) for each in _INPUT.finditer(text))
    if not inputs or written != text:
        raise BadPayload(f"{text!r} is no input: write x=float32[1,28,28,1]")
    return inputs


def _random(inputs: Sequence[_Input], seed: int) -> tuple[Payload, ...]:
    rng = np.random.default_rng(seed)
    items = sum(prod(shape) for _, _, shape in inputs)
    variants = min(RANDOM_VARIANTS, max(1, RANDOM_ITEMS // max(items, 1)))
    return tuple(
        Payload(
            str(index),
            tensors={
                name: _tensor("random", name, _values(rng, dtype, shape))
                for name, dtype, shape in inputs
            },
        )
        for index in range(variants)
    )


def _values(
    rng: np.random.Generator, dtype: str, shape: tuple[int, ...]
) -> NDArray[Any]:
    if dtype not in ITEM_BYTES:
        raise BadPayload(f"dtype {dtype!r} is not one of {sorted(ITEM_BYTES)}")
    if dtype.startswith("float"):
        return rng.random(shape).astype(dtype)
    return rng.integers(0, 2 if dtype == "bool" else 128, shape, dtype=dtype)


def _tensor(where: str, name: str, array: NDArray[Any]) -> Tensor:
    if array.dtype.name not in ITEM_BYTES:
        raise BadPayload(f"{where}: {name!r} is {array.dtype}, which no model takes")
    little = array.astype(array.dtype.newbyteorder("<"), copy=False)
    return Tensor(
        dtype=array.dtype.name, shape=list(array.shape), data=little.tobytes()
    )


def _signature(path: Path) -> list[_Input]:
    """What a model takes; a process of its own loads it, and its memory goes too."""
    if not path.exists():
        raise BadPayload(f"{path} is not there: name a .tflite or a SavedModel folder")
    command = python("overspill.load.signature", str(path))
    try:
        done = subprocess.run(  # noqa: S603 - our own module
            command,
            capture_output=True,
            text=True,
            check=False,
            env=environment(),
            timeout=SIGNATURE_WITHIN_S,
        )
    except subprocess.TimeoutExpired:
        raise BadPayload(
            f"{path} was not loaded within {SIGNATURE_WITHIN_S} s"
        ) from None
    if done.returncode:
        said = done.stderr.strip().splitlines()
        raise BadPayload(f"{path}: {said[-1] if said else 'cannot be loaded'}")
    found = json.loads(done.stdout.splitlines()[-1])
    return [(name, dtype, tuple(shape)) for name, dtype, shape in found]
