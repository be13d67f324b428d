from __future__ import annotations

import contextlib
import io
import struct
import zlib
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image, PngImagePlugin

from bundle.manifest import ImageRecipe
from bundle.recipe import UnreadableImage, decode_image, image_size

ENOUGH = 1_000_000


def recipe(**changes: Any) -> ImageRecipe:
    usual: dict[str, Any] = {"input": "x", "width": 4, "height": 2, "channels": 1}
    return ImageRecipe(**{**usual, **changes})


def encoded(image: Image.Image, kind: str = "PNG", **options: Any) -> bytes:
    out = io.BytesIO()
    image.save(out, kind, **options)
    return out.getvalue()


GREY = np.arange(8, dtype=np.uint8).reshape(2, 4) * 30
PNG = encoded(Image.fromarray(GREY))


def header_only(width: int, height: int) -> bytes:
    """A PNG that claims a size and holds nothing."""
    body = b"IHDR" + struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    idat = b"IDAT" + zlib.compress(b"")
    chunks = [
        struct.pack(">I", len(each) - 4) + each + struct.pack(">I", zlib.crc32(each))
        for each in (body, idat)
    ]
    return b"\x89PNG\r\n\x1a\n" + b"".join(chunks)


def test_pixels_come_scaled_and_shaped_as_the_recipe_says() -> None:
    got = decode_image(PNG, recipe(scale=1 / 127.5, offset=-1.0), max_pixels=ENOUGH)
    assert got.dtype == np.float32
    assert got.shape == (1, 2, 4, 1)
    assert np.allclose(got[0, :, :, 0], GREY / 127.5 - 1, atol=1e-6)


def test_an_image_of_another_size_is_resized_to_the_models() -> None:
    flat = Image.new("L", (40, 30), 100)
    got = decode_image(encoded(flat), recipe(channels=3), max_pixels=ENOUGH)
    assert got.shape == (1, 2, 4, 3)
    assert (got == 100).all()


def test_the_size_is_read_without_decoding() -> None:
    assert image_size(PNG) == (4, 2)
    assert image_size(header_only(3000, 2000)) == (3000, 2000)
    assert image_size(encoded(Image.new("RGB", (9, 7)), "JPEG")) == (9, 7)


def test_an_image_with_too_many_pixels_is_refused_by_its_header() -> None:
    with pytest.raises(UnreadableImage, match="3000x2000 pixels is over the limit"):
        decode_image(header_only(3000, 2000), recipe(), max_pixels=5_999_999)


@pytest.mark.parametrize("side", [12_000, 60_000])
def test_a_decompression_bomb_is_refused(side: int) -> None:
    with pytest.raises(UnreadableImage, match="far too large"):
        decode_image(header_only(side, side), recipe(), max_pixels=ENOUGH)


@pytest.mark.parametrize("kind", ["PNG", "JPEG"])
def test_a_truncated_image_is_unreadable_wherever_it_is_cut(kind: str) -> None:
    noise = np.random.default_rng(1).integers(0, 256, (64, 64), np.uint8)
    whole = encoded(Image.fromarray(noise), kind)
    for cut in range(0, len(whole) * 3 // 4, 37):
        with pytest.raises(UnreadableImage):
            decode_image(whole[:cut], recipe(), max_pixels=ENOUGH)


@pytest.mark.parametrize("kind", ["GIF", "BMP", "TIFF", "WEBP"])
def test_other_formats_are_refused(kind: str) -> None:
    data = encoded(Image.new("RGB", (8, 8)), kind)
    with pytest.raises(UnreadableImage, match="PNG or JPEG"):
        decode_image(data, recipe(), max_pixels=ENOUGH)


@given(
    st.binary(max_size=200), st.sampled_from([b"", PNG[:30], PNG[:-20], b"\xff\xd8"])
)
def test_no_bytes_raise_anything_else(tail: bytes, start: bytes) -> None:
    with contextlib.suppress(UnreadableImage):
        image_size(start + tail)
    with contextlib.suppress(UnreadableImage):
        decode_image(start + tail, recipe(), max_pixels=10_000)


@given(st.integers(8, len(PNG) - 1), st.integers(0, 255))
def test_a_damaged_png_is_read_or_refused_and_never_crashes(at: int, byte: int) -> None:
    damaged = bytearray(PNG)
    damaged[at] = byte
    try:
        got = decode_image(bytes(damaged), recipe(), max_pixels=10_000)
    except UnreadableImage:
        return
    assert got.shape == (1, 2, 4, 1)


def test_transparent_pixels_lie_over_black() -> None:
    image = Image.new("RGBA", (4, 2), (200, 200, 200, 0))
    image.putpixel((0, 0), (200, 200, 200, 255))
    got = decode_image(encoded(image), recipe(channels=3), max_pixels=ENOUGH)
    assert got[0, 0, 0].tolist() == [200, 200, 200]
    assert got[0, 1, 3].tolist() == [0, 0, 0]


def test_palettes_become_their_colours_and_transparency_in_them_counts() -> None:
    image = Image.new("P", (4, 2), 0)
    image.putpalette([10, 20, 30, 250, 240, 230])
    image.putpixel((3, 1), 1)
    got = decode_image(encoded(image), recipe(channels=3), max_pixels=ENOUGH)
    assert got[0, 0, 0].tolist() == [10, 20, 30]
    assert got[0, 1, 3].tolist() == [250, 240, 230]
    clear = encoded(image, transparency=1)
    got = decode_image(clear, recipe(channels=3), max_pixels=ENOUGH)
    assert got[0, 1, 3].tolist() == [0, 0, 0]


def test_sixteen_bit_grey_keeps_its_range() -> None:
    wide = (np.arange(8, dtype=np.uint16) * 9362).reshape(2, 4)
    got = decode_image(encoded(Image.fromarray(wide)), recipe(), max_pixels=ENOUGH)
    assert np.abs(got[0, :, :, 0] - wide / 257).max() <= 0.5


@pytest.mark.parametrize("mode", ["1", "L", "LA", "P", "RGB", "RGBA", "I;16"])
@pytest.mark.parametrize("channels", [1, 3])
def test_every_mode_a_png_can_have_is_taken(mode: str, channels: int) -> None:
    data = encoded(Image.new(mode, (5, 5)))
    got = decode_image(data, recipe(channels=channels), max_pixels=ENOUGH)
    assert got.shape == (1, 2, 4, channels)
    assert (got == 0).all()


@pytest.mark.parametrize("mode", ["L", "RGB", "CMYK"])
def test_every_mode_a_jpeg_can_have_is_taken(mode: str) -> None:
    data = encoded(Image.new(mode, (5, 5)), "JPEG")
    got = decode_image(data, recipe(channels=3), max_pixels=ENOUGH)
    assert got.shape == (1, 2, 4, 3)


def test_a_photograph_taken_sideways_is_turned_upright() -> None:
    exif = Image.Exif()
    exif[0x0112] = 6  # turn by 90 degrees clockwise to show
    tall = Image.fromarray(np.repeat(GREY[:1], 2, axis=0).T.copy())
    turned = encoded(tall, exif=exif)
    got = decode_image(turned, recipe(), max_pixels=ENOUGH)
    assert got[0, 0, :, 0].tolist() == GREY[0][::-1].tolist()


def test_a_damaged_orientation_note_does_not_cost_the_image() -> None:
    data = encoded(
        Image.fromarray(GREY), exif=b"Exif\x00\x00II*\x00\xff\xff\xff\xff\x01"
    )
    got = decode_image(data, recipe(), max_pixels=ENOUGH)
    assert got[0, 0, :, 0].tolist() == GREY[0].tolist()


def test_a_text_chunk_that_unpacks_to_megabytes_is_refused_or_ignored() -> None:
    notes = PngImagePlugin.PngInfo()
    notes.add_text("bomb", "x" * 50_000_000, zip=True)
    data = encoded(Image.fromarray(GREY), pnginfo=notes)
    assert len(data) < 100_000
    with pytest.raises(UnreadableImage):
        decode_image(data, recipe(), max_pixels=ENOUGH)
