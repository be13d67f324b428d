"""Write the images the demo sends: 1,000 of the test set, one shirt, one oversized picture."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import TYPE_CHECKING, Final

import numpy as np
from PIL import Image

from examples.fashion import data, reports

if TYPE_CHECKING:
    from numpy.typing import NDArray

HERE = Path(__file__).resolve().parent

COUNT: Final = 1_000
SHIRT: Final = 6
TILE: Final = 200
COLUMNS: Final = 7
ROWS: Final = 5
JPEG_QUALITY: Final = 70


def main() -> None:
    """Write the three files."""
    options = _parser().parse_args()
    try:
        test = data.load(options.data).test
    except data.MissingDatasetError as error:
        raise SystemExit(f"make_images: {error}") from None
    out: Path = options.out
    out.mkdir(parents=True, exist_ok=True)

    np.savez_compressed(
        out / "test1000.npz", images=test.images[:COUNT], labels=test.labels[:COUNT]
    )
    shirts = np.flatnonzero(test.labels == SHIRT)
    _save_png(test.images[shirts[options.shirt]], out / "shirt.png")
    rng = np.random.default_rng(options.seed)
    chosen = rng.choice(COUNT, COLUMNS * ROWS, replace=False)
    _save_wardrobe(test.images[chosen], out / "wardrobe.jpg")
    reports.write(
        reports.FOLDER / "make_images.json",
        {
            "seed": options.seed,
            "shirt_is_test_image": int(shirts[options.shirt]),
            "bytes": {path.name: path.stat().st_size for path in sorted(out.iterdir())},
        },
    )


def _save_png(image: NDArray[np.uint8], path: Path) -> None:
    Image.fromarray(image).save(path, optimize=True)


def _save_wardrobe(images: NDArray[np.uint8], path: Path) -> None:
    """Write ``images`` [35, 28, 28] side by side as a 1400 x 1000 colour JPEG."""
    picture = Image.new("RGB", (COLUMNS * TILE, ROWS * TILE))
    for index, image in enumerate(images):
        tile = Image.fromarray(image).resize((TILE, TILE), Image.Resampling.BICUBIC)
        corner = (index % COLUMNS * TILE, index // COLUMNS * TILE)
        picture.paste(tile.convert("RGB"), corner)
    picture.save(path, quality=JPEG_QUALITY, optimize=True)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument(
        "--seed", type=int, default=1, help="fills the wardrobe, default %(default)s"
    )
    parser.add_argument(
        "--shirt",
        type=int,
        default=5,
        help="which of the test set's shirts is shirt.png, default %(default)s",
    )
    parser.add_argument(
        "--data", type=Path, default=data.DEFAULT_FOLDER, help="default %(default)s"
    )
    parser.add_argument(
        "--out", type=Path, default=HERE / "images", help="default images/"
    )
    return parser


if __name__ == "__main__":
    main()
