"""What a request's payload is to a model: facts to route it by, and tensors to run."""

from __future__ import annotations

import asyncio
from typing import Final

from bundle.recipe import decode_image, image_size
from edge_agent.core.answers import Array
from edge_agent.core.payload import DeviceRequest
from edge_agent.core.routing import RequestFacts
from edge_agent.core.served import Served
from edge_agent.core.tensors import BadInput

# Decoding more than this takes milliseconds, so it leaves the event loop.
INLINE_PIXELS: Final = 128 * 128


def facts_of(request: DeviceRequest, deadline_ms: float) -> RequestFacts:
    """What is known of a request before its model runs.

    Raises:
        UnreadableImage: its image says no size.
    """
    if request.medium is not None:
        width, height = image_size(request.medium[1])
        pixels: int | None = width * height
    else:
        pixels = None
    return RequestFacts(
        payload_bytes=request.payload_bytes,
        pixels=pixels,
        shapes={name: array.shape for name, array in (request.tensors or {}).items()},
        forced=request.forced,
        remaining_ms=deadline_ms,
    )


async def inputs_of(request: DeviceRequest, served: Served) -> dict[str, Array]:
    """The tensors of a request, its image decoded by the bundle's recipe.

    Raises:
        BadInput: an image for a model that takes none.
        UnreadableImage: it does not decode.
    """
    if request.medium is None:
        return dict(request.tensors or {})
    recipe = served.manifest.preprocess
    if recipe is None:
        raise BadInput(
            f"model {request.model!r} takes tensors, not images: its bundle has no "
            "preprocess recipe"
        )
    data = request.medium[1]
    width, height = image_size(data)
    most = served.manifest.limits.max_pixels
    if width * height <= INLINE_PIXELS:
        return {recipe.input: decode_image(data, recipe, max_pixels=most)}
    decoded = await asyncio.to_thread(decode_image, data, recipe, max_pixels=most)
    return {recipe.input: decoded}
