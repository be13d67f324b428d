"""Read data sets: pictures in folders by class, `.npz`, CSV, Parquet, a Python function.

What cannot be read is skipped by name, and counted; the core decides whether it is too
much.
"""

from __future__ import annotations

import csv
import zipfile
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from builder.adapters.models import by_entry_point
from builder.core.labelled import Labelled, labelled
from builder.core.refusal import BuildRefused
from builder.core.splits import PARTS

SUFFIXES: Final = frozenset({".png", ".jpg", ".jpeg", ".bmp", ".gif", ".webp", ".ppm"})
# Other people's names of the parts.
PART_NAMES: Final[Mapping[str, int]] = {
    **{name: index for index, name in enumerate(PARTS)},
    "training": 0,
    "val": 2,
    "valid": 2,
    "validation": 2,
    "calibration": 2,
    "testing": 3,
}


@dataclass(frozen=True, slots=True)
class Reading:
    """How a data set is to be read.

    Attributes:
        source: a folder, a file, or `module:function`.
        label: the column of the labels, in a table.
        part: the column that names each row's part, if the table has it.
        width: what pictures are resized to; None takes the first one's.
        height: as `width`.
        channels: 1 for grey, 3 for colours.
        scale: what a stored value is multiplied by.
        offset: what is then added.
        names: the classes in the order of the models' outputs; None sorts them.
    """

    source: str
    label: str = "label"
    part: str = "part"
    width: int | None = None
    height: int | None = None
    channels: int = 3
    scale: float = 1.0
    offset: float = 0.0
    names: tuple[str, ...] | None = None


def read(
    how: Reading, folder: Path, told: Callable[[int, int], None] = lambda _d, _a: None
) -> Labelled:
    """Read a data set.

    Args:
        how: what and how.
        folder: what a relative source is relative to.
        told: called with how many pictures are read, and of how many.

    Raises:
        BuildRefused: there is no such source, or it cannot be used.
    """
    path = folder / how.source
    if path.is_dir():
        return _read_folder(path, how, told)
    if path.suffix == ".npz":
        return _read_npz(path, how)
    if path.suffix == ".csv":
        return _read_csv(path, how)
    if path.suffix in (".parquet", ".pq"):
        return _read_parquet(path, how)
    if ":" in how.source:
        found = by_entry_point(how.source)
        if not isinstance(found, Labelled):
            raise BuildRefused(
                f"{how.source} is to return a builder.core.labelled.Labelled, got "
                f"{type(found).__name__}"
            )
        return found
    raise BuildRefused(
        f"no data set at {path}: a folder of pictures by class, .npz, .csv, .parquet "
        "or module:function is one"
    )


def decode_picture(path: Path, shape: tuple[int, int, int]) -> NDArray[np.uint8]:
    """One picture as bytes [height, width, channels], as an agent decodes it.

    Raises:
        BuildRefused: it is no picture.
    """
    height, width, channels = shape
    try:
        with Image.open(path) as picture:
            picture.load()
            sized = picture.convert("L" if channels == 1 else "RGB")
    except (OSError, SyntaxError, ValueError, Image.DecompressionBombError) as error:
        raise BuildRefused(f"{path} is no picture: {error}") from error
    if sized.size != (width, height):
        sized = sized.resize((width, height), Image.Resampling.BILINEAR)
    return np.asarray(sized, np.uint8).reshape(shape)


def _read_folder(
    path: Path, how: Reading, told: Callable[[int, int], None]
) -> Labelled:
    tops = sorted(each for each in path.iterdir() if each.is_dir())
    parted = bool(tops) and all(each.name in PART_NAMES for each in tops)
    places = (
        [
            (PART_NAMES[top.name], each)
            for top in tops
            for each in sorted(top.iterdir())
            if each.is_dir()
        ]
        if parted
        else [(0, top) for top in tops]
    )
    files = [
        (part, place.name, file)
        for part, place in places
        for file in sorted(place.iterdir())
        if file.suffix.lower() in SUFFIXES
    ]
    # A class whose folder is empty is a mistake to be told of, not no class.
    names = how.names or tuple(sorted({place.name for _, place in places}))
    shape = _picture_shape(how, [file for _, _, file in files])
    pictures, labels, parts, skipped = [], [], [], []
    for done, (part, label, file) in enumerate(files):
        try:
            pictures.append(decode_picture(file, shape))
        except BuildRefused:
            skipped.append(str(file.relative_to(path)))
            continue
        labels.append(label)
        parts.append(part)
        if done % 500 == 0:
            told(done, len(files))
    if not pictures:
        raise BuildRefused(f"{path} holds no picture that can be read")
    return labelled(
        np.stack(pictures),
        np.array(labels),
        names,
        parts=np.array(parts, np.int64) if parted else None,
        skipped=tuple(skipped),
        scale=how.scale,
        offset=how.offset,
    )


def _picture_shape(how: Reading, files: list[Path]) -> tuple[int, int, int]:
    if how.width is not None and how.height is not None:
        return how.height, how.width, how.channels
    for file in files:
        try:
            with Image.open(file) as picture:
                return picture.height, picture.width, how.channels
        except (OSError, SyntaxError, ValueError):
            continue
    raise BuildRefused("no picture that can be read, in any class's folder")


def _read_npz(path: Path, how: Reading) -> Labelled:
    try:
        # Opened here, because NumPy leaves a file open that is no archive.
        with path.open("rb") as file, np.load(file, allow_pickle=False) as held:
            arrays = {name: held[name] for name in held.files}
    except (OSError, ValueError, EOFError, zipfile.BadZipFile) as error:
        raise BuildRefused(f"cannot read {path}: {error}") from error
    more: dict[str, Any] = {"scale": how.scale, "offset": how.offset}
    names = how.names
    if names is None and "names" in arrays:
        names = tuple(str(each) for each in arrays["names"])
    if {"x", "y"} <= set(arrays):
        if "part" in arrays:
            more["parts"] = _parts(arrays["part"])
        return labelled(arrays["x"], arrays["y"], names, **more)
    held = [part for part in PART_NAMES if f"x_{part}" in arrays]
    if not held:
        raise BuildRefused(
            f"{path} holds {', '.join(sorted(arrays))}: x and y are needed, or x_train, "
            "y_train, x_calibrate, …"
        )
    missing = [f"y_{part}" for part in held if f"y_{part}" not in arrays]
    if missing:
        raise BuildRefused(f"labels do not match: {path} has no {missing[0]}")
    return labelled(
        np.concatenate([arrays[f"x_{part}"] for part in held]),
        np.concatenate([arrays[f"y_{part}"] for part in held]),
        names,
        parts=np.concatenate(
            [np.full(len(arrays[f"x_{part}"]), PART_NAMES[part]) for part in held]
        ),
        **more,
    )


def _read_csv(path: Path, how: Reading) -> Labelled:
    try:
        with path.open(newline="", encoding="utf-8") as file:
            rows = csv.reader(file)
            columns = next(rows, [])
            lines = list(rows)
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise BuildRefused(f"cannot read {path}: {error}") from error
    return _table(path, how, columns, lines)


def _read_parquet(path: Path, how: Reading) -> Labelled:
    try:
        import pyarrow.parquet
    except ModuleNotFoundError as error:
        raise BuildRefused(
            f"{path} needs pyarrow: run `pip install pyarrow`"
        ) from error
    try:
        table = pyarrow.parquet.read_table(path)
    except (OSError, pyarrow.ArrowException) as error:
        raise BuildRefused(f"cannot read {path}: {error}") from error
    columns = list(table.column_names)
    values = [table.column(name).to_pylist() for name in columns]
    return _table(path, how, columns, [list(row) for row in zip(*values, strict=True)])


def _table(
    path: Path, how: Reading, columns: list[str], lines: list[list[Any]]
) -> Labelled:
    if how.label not in columns:
        raise BuildRefused(
            f"{path} has no column {how.label!r} of labels; its columns are "
            f"{', '.join(columns)}"
        )
    label = columns.index(how.label)
    part = columns.index(how.part) if how.part in columns else None
    features = [each for each in range(len(columns)) if each not in (label, part)]
    values, labels, parts, skipped = [], [], [], []
    for number, line in enumerate(lines, start=2):
        try:
            values.append([float(line[each]) for each in features])
        except (ValueError, TypeError, IndexError):
            skipped.append(f"line {number}")
            continue
        labels.append(str(line[label]))
        parts.append(line[part] if part is not None else "train")
    if not values:
        raise BuildRefused(f"{path} holds no line of numbers")
    numbers = np.array(values, np.float32)
    return labelled(
        numbers * np.float32(how.scale) + np.float32(how.offset),
        _label_array(labels, how.names),
        how.names,
        parts=_parts(np.array(parts)) if part is not None else None,
        skipped=tuple(skipped),
        columns=tuple(columns[each] for each in features),
    )


def _label_array(labels: list[str], names: tuple[str, ...] | None) -> NDArray[Any]:
    """Labels as indexes where all are, and no name says otherwise."""
    if all(each.isdigit() for each in labels) and not set(labels) <= set(names or ()):
        return np.array([int(each) for each in labels], np.int64)
    return np.array(labels)


def _parts(said: NDArray[Any]) -> NDArray[np.int64]:
    if np.issubdtype(said.dtype, np.integer):
        if said.min() < 0 or said.max() >= len(PARTS):
            raise BuildRefused(f"a part is one of 0..{len(PARTS) - 1}")
        return said.astype(np.int64)
    strange = sorted({str(each) for each in said} - set(PART_NAMES))
    if strange:
        raise BuildRefused(
            f"a part is one of {', '.join(PARTS)}, got {', '.join(strange[:5])}"
        )
    return np.array([PART_NAMES[str(each)] for each in said], np.int64)
