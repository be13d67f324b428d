"""An encoded image becomes a tensor exactly as its bundle says. Bounded before decoding.

The edge and the cloud decode with this one function, so that a spilled image means
the same to both models. Size and format are read from the header, and an image with
too many pixels is refused before any of them is decoded.
"""

from __future__ import annotations

import io
from typing import TYPE_CHECKING, Final

import numpy as np
from numpy.typing import NDArray

from bundle.manifest import ImageRecipe

if TYPE_CHECKING:
    from PIL import Image

FORMATS: Final = ("PNG", "JPEG")
_WIDE_MODES: Final = ("I", "I;16", "I;16B", "I;16L", "I;16N")
_PIL_MODE: Final = {1: "L", 3: "RGB"}


class UnreadableImage(ValueError):
    """The bytes are not an image this recipe can take; says why, for the device."""


def image_size(data: bytes) -> tuple[int, int]:
    """Width and height of a PNG or JPEG, from its header only, before rotation.

    Raises:
        UnreadableImage: it is neither, or its header is damaged.
    """
    with _opened(data) as image:
        return image.size


def decode_image(
    data: bytes, recipe: ImageRecipe, *, max_pixels: int
) -> NDArray[np.float32]:
    """Decode, convert, resize and scale one image.

    The orientation that a camera noted (EXIF) is applied. Transparent pixels are
    laid over black. 16-bit grey is scaled to 0..255, as 8-bit is.

    Args:
        data: the bytes of a PNG or JPEG.
        recipe: see `ImageRecipe`.
        max_pixels: width times height at most.

    Returns:
        float32 of shape [1, height, width, channels]: `pixel * scale + offset`.

    Raises:
        UnreadableImage: not a PNG or JPEG, too many pixels, truncated or damaged.
    """
    with _opened(data) as image:
        width, height = image.size
        if width * height > max_pixels:
            raise UnreadableImage(
                f"image of {width}x{height} pixels is over the limit of {max_pixels}"
            )
        pixels = _pixels(image, recipe)
    shaped = pixels.reshape(1, recipe.height, recipe.width, recipe.channels)
    return shaped * np.float32(recipe.scale) + np.float32(recipe.offset)


def _opened(data: bytes) -> Image.Image:
    from PIL import Image  # noqa: PLC0415 - 30 ms that only images need to pay

    try:
        return Image.open(io.BytesIO(data), formats=FORMATS)
    except (Image.DecompressionBombError, Image.DecompressionBombWarning) as error:
        raise UnreadableImage(f"image is far too large: {error}") from error
    except Exception as error:  # decoders raise anything on hostile bytes
        raise UnreadableImage(
            f"image of {len(data)} bytes has no readable PNG or JPEG header"
        ) from error


def _pixels(image: Image.Image, recipe: ImageRecipe) -> NDArray[np.float32]:
    from PIL.Image import Resampling  # noqa: PLC0415 - see above

    try:
        image.load()
        flat = _flattened(_upright(image), _PIL_MODE[recipe.channels])
        size = (recipe.width, recipe.height)
        if flat.size != size:
            flat = flat.resize(size, Resampling.BILINEAR)
        return np.asarray(flat, np.float32)
    except MemoryError as error:
        raise UnreadableImage("image does not fit into memory") from error
    except Exception as error:  # decoders raise anything on hostile bytes
        raise UnreadableImage(f"image is truncated or damaged: {error}") from error


def _upright(image: Image.Image) -> Image.Image:
    from PIL import ImageOps  # noqa: PLC0415 - see above

    if "exif" not in image.info:
        return image
    try:
        return ImageOps.exif_transpose(image)
    except Exception:  # noqa: BLE001 - a damaged note leaves the pixels as good as ever
        return image


def _flattened(image: Image.Image, mode: str) -> Image.Image:
    """An image of 8 bits a channel without transparency."""
    from PIL import Image as Images  # noqa: PLC0415 - see above

    if image.mode in _WIDE_MODES:
        # `convert` would clip 16 bits at 255 and turn the image white.
        wide = np.asarray(image, np.float32) / 257.0
        image = Images.fromarray(np.clip(np.rint(wide), 0, 255).astype(np.uint8))
    elif image.has_transparency_data:
        image = image.convert("RGBA")
        black = Images.new("RGBA", image.size, (0, 0, 0, 255))
        image = Images.alpha_composite(black, image)
    return image if image.mode == mode else image.convert(mode)
