"""The images that devices send, and what is really on them."""

from __future__ import annotations

import io
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self

import numpy as np
from numpy.typing import NDArray
from PIL import Image


class BadImages(Exception):
    """The file does not hold the images of a demo."""


@dataclass(frozen=True, slots=True, eq=False)
class LabelledImages:
    """Grey images uint8 [n, height, width] and the index of each one's class [n]."""

    pixels: NDArray[np.uint8]
    labels: NDArray[np.integer[Any]]

    @classmethod
    def load(cls, path: Path, count: int | None = None) -> Self:
        """Read the first `count` images of an `.npz` with `images` and `labels`.

        Raises:
            BadImages: it is not there, or is no such file.
        """
        try:
            with np.load(path, allow_pickle=False) as file:
                return cls(file["images"][:count], file["labels"][:count])
        except (OSError, ValueError, KeyError) as error:
            raise BadImages(f"{path} does not hold labelled images: {error}") from error

    def __len__(self) -> int:
        return len(self.pixels)

    def png(self, index: int) -> bytes:
        """One image as a camera would send it."""
        file = io.BytesIO()
        Image.fromarray(self.pixels[index]).save(file, format="PNG")
        return file.getvalue()
