from __future__ import annotations

import io
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from overspill.load.payloads import BadPayload, read_payloads

EXAMPLE = Path(__file__).parents[4] / "examples" / "fashion" / "images"


def test_random_inputs_have_the_names_types_and_shapes_asked_for() -> None:
    first, *others = read_payloads("random:x=float32[1,4],y=int64[2, 3]")

    assert first.tensors is not None
    assert {name: (each.dtype, each.shape) for name, each in first.tensors.items()} == {
        "x": ("float32", [1, 4]),
        "y": ("int64", [2, 3]),
    }
    assert all(each.tensors != first.tensors for each in others)


def test_the_same_seed_makes_the_same_payloads() -> None:
    spec = "random:x=float32[1,4]"

    def values(seed: int) -> list[object]:
        return [each.tensors for each in read_payloads(spec, seed=seed)]

    assert values(1) == values(1) != values(2)


def test_a_size_makes_a_payload_of_so_many_bytes() -> None:
    assert {each.size_bytes for each in read_payloads("1KiB")} == {1024}


def test_a_folder_gives_its_images_as_they_are() -> None:
    found = read_payloads(str(EXAMPLE))

    assert [each.name for each in found] == ["shirt.png", "wardrobe.jpg"]
    media = [each.medium.media_type for each in found if each.medium]
    assert media == ["image/png", "image/jpeg"]


def test_an_array_of_images_is_sent_as_png() -> None:
    found = read_payloads(f"{EXAMPLE / 'test1000.npz'}#images")

    assert len(found) == 1000
    assert found[7].medium is not None
    with Image.open(io.BytesIO(found[7].medium.data)) as image:
        assert image.size == (28, 28)


def test_each_row_of_an_npz_is_a_request(tmp_path: Path) -> None:
    file = tmp_path / "rows.npz"
    np.savez(file, x=np.arange(12, dtype=">f4").reshape(3, 4))

    second = read_payloads(str(file))[1].tensors

    assert second is not None
    assert (second["x"].dtype, second["x"].shape) == ("float32", [1, 4])
    assert np.frombuffer(second["x"].data, "<f4").tolist() == [4.0, 5.0, 6.0, 7.0]


@pytest.mark.parametrize(
    ("spec", "says"),
    [
        ("nowhere", "is no payload"),
        ("random:x", "write x=float32"),
        ("random:x=complex64[1]", "is not one of"),
        ("model:nowhere.tflite", "is not there"),
        (f"{EXAMPLE / 'test1000.npz'}#pictures", "has no 'pictures'"),
        (f"{EXAMPLE / 'test1000.npz'}#labels", "images are uint8"),
        ("nowhere.npz", "cannot be read"),
        (str(EXAMPLE.parent / "edge"), "holds no .png"),
    ],
)
def test_what_cannot_be_sent_is_refused_with_what_to_do(spec: str, says: str) -> None:
    with pytest.raises(BadPayload, match=says):
        read_payloads(spec)
