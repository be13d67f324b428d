"""Where the example lies: the models, bundles and images that a demo needs.

It is part of the checkout and not of the wheel, so it is looked for beside the package.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Self

from bundle.manifest import MANIFEST_FILE, Manifest, parse_manifest


class ExampleMissing(Exception):
    """The example is not beside the package."""


@dataclass(frozen=True, slots=True)
class Example:
    """The folder `examples/fashion` of a checkout."""

    folder: Path

    @classmethod
    def beside_package(cls) -> Self:
        """The example of the checkout that this package is part of.

        Raises:
            ExampleMissing: there is none, as after an installation from a wheel.
        """
        return cls.at(Path(__file__).resolve().parent.parent / "examples" / "fashion")

    @classmethod
    def at(cls, folder: Path) -> Self:
        """The example in a folder, once its parts are known to be there.

        Raises:
            ExampleMissing: one is not.
        """
        example = cls(folder)
        for needed in (example.images, example.repository, *example.bundles):
            if not needed.exists():
                raise ExampleMissing(
                    f"{needed} is not there: the models and images of the example are "
                    "in the source checkout and not in the wheel, so run this in a "
                    "clone of the repository (`make demo`)"
                )
        return example

    @property
    def model(self) -> str:
        """The name of the model."""
        return "fashion"

    @property
    def images(self) -> Path:
        """1,000 test images and their labels."""
        return self.folder / "images" / "test1000.npz"

    @property
    def shirt(self) -> Path:
        """One image that the first version is unsure of."""
        return self.folder / "images" / "shirt.png"

    @property
    def large_picture(self) -> Path:
        """One image that is too large for the edge."""
        return self.folder / "images" / "wardrobe.jpg"

    @property
    def repository(self) -> Path:
        """What the workers serve."""
        return self.folder / "cloud"

    @property
    def bundles(self) -> tuple[Path, Path]:
        """The edge model's first and second version."""
        return self.folder / "edge" / "tiny", self.folder / "edge" / "small"

    def manifests(self) -> tuple[Manifest, Manifest]:
        """What the two versions say of themselves.

        Raises:
            ManifestError: one is damaged.
        """
        first, second = (
            parse_manifest((each / MANIFEST_FILE).read_bytes()) for each in self.bundles
        )
        return first, second
