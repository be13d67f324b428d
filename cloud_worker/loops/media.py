"""Decode encoded media outside the event loop, as the model's recipe says."""

from __future__ import annotations

import asyncio
from concurrent.futures import ThreadPoolExecutor

from broker.messages import Medium, Tensor
from bundle.manifest import ImageRecipe
from bundle.recipe import UnreadableImage, decode_image
from cloud_worker.core.intake import Invalid
from cloud_worker.core.spec import ServedModel


class Decoder:
    """Images to tensors in a bounded number of threads.

    Args:
        threads: where the decoding runs.
        max_pixels: an image with more is refused before it is decoded.
    """

    def __init__(self, threads: ThreadPoolExecutor, *, max_pixels: int) -> None:
        self._threads = threads
        self._max_pixels = max_pixels

    async def decode(
        self, medium: Medium, model: ServedModel
    ) -> dict[str, Tensor] | Invalid:
        """The model's input, or why the medium does not give it."""
        recipe = model.preprocess
        if recipe is None:
            return Invalid(
                f"model {model.name!r} takes tensors, not {medium.media_type}: its "
                "model.json has no preprocess"
            )
        if not medium.media_type.startswith("image/"):
            return Invalid(f"a medium of type {medium.media_type!r} is not an image")
        dtype = model.spec.inputs[0].dtype
        return await asyncio.get_running_loop().run_in_executor(
            self._threads, _decode, medium.data, recipe, dtype, self._max_pixels
        )


def _decode(
    data: bytes, recipe: ImageRecipe, dtype: str, max_pixels: int
) -> dict[str, Tensor] | Invalid:
    try:
        array = decode_image(data, recipe, max_pixels=max_pixels)
    except UnreadableImage as error:
        return Invalid(str(error))
    values = array.round().clip(0, 255) if dtype == "uint8" else array
    return {
        recipe.input: Tensor(
            dtype=dtype, shape=list(array.shape), data=values.astype(dtype).tobytes()
        )
    }
