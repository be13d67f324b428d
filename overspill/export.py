"""Examples as a data set that `overspill model build` reads; the cloud's answers are labels.

An `.npz` with `x`, `y` and `names`, or a folder of pictures by class. Inputs stay as
they were sent, but for pictures in an `.npz`, which the model's own recipe decodes.
"""

from __future__ import annotations

import io
import shutil
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray
from PIL import Image
from pydantic import ValidationError

from broker.messages import Tensor
from bundle.durable import replacing, write_file
from bundle.manifest import ImageRecipe
from bundle.recipe import UnreadableImage, decode_image
from cloud_worker.adapters.example_view import Found
from cloud_worker.core.example_record import Example, Unreadable

MAX_PIXELS: Final = 50_000_000
SUFFIX_OF: Final = {"image/png": ".png", "image/jpeg": ".jpg"}


class CannotExport(Exception):
    """There is nothing to export, or nowhere; says why."""


@dataclass(frozen=True, slots=True)
class Export:
    """What an export has written.

    Attributes:
        path: the file or folder.
        classes: how many examples of each.
        left_out: how many were not, by why.
    """

    path: Path
    classes: dict[str, int]
    left_out: dict[str, int] = field(default_factory=dict)

    @property
    def examples(self) -> int:
        """In all."""
        return sum(self.classes.values())


@dataclass(frozen=True, slots=True, eq=False)
class _Taken:
    digest: str
    count: int
    label: str
    value: NDArray[Any]


class _LeftOut(Exception):
    """Why one example cannot be a part of the data set."""


Step = Callable[[int], None]


def to_npz(
    found: Sequence[Found],
    path: Path,
    *,
    only_input: str | None = None,
    force: bool = False,
    told: Step = lambda _: None,
) -> Export:
    """Write examples of one model into an `.npz`.

    `x` [n, …] in the dtype they were sent in (pictures: uint8), `y` int64 [n] as
    indexes into `names`; `count` and `digest` [n] beside them.

    Args:
        found: of one model; the same inputs may be in several parts.
        path: where to.
        only_input: which input is `x`, of a model with several.
        force: replace the file.
        told: called with how many have been read.

    Raises:
        CannotExport: none of them can be a part of it, or the file is there.
        OSError: the disk does not let it.
    """
    if path.exists() and not force:
        raise CannotExport(f"{path} is there already: --force replaces it")
    left_out: Counter[str] = Counter()
    names = _names(found)
    pixels = _as_pixels(found)
    taken: list[_Taken] = []
    for done, each in enumerate(_once(found), start=1):
        try:
            label = _label(each, names)
            value = _value(each, only_input, pixels=pixels)
            taken.append(_Taken(each.row.digest, each.row.count, label, value))
        except _LeftOut as why:
            left_out[str(why)] += 1
        told(done)
    taken = _alike(taken, left_out)
    if not taken:
        raise _nothing(left_out)
    names = names or tuple(sorted({each.label for each in taken}))
    with replacing(path, mode=0o600) as file:
        np.savez_compressed(
            file,
            allow_pickle=False,
            x=np.stack([each.value for each in taken]),
            y=np.array([names.index(each.label) for each in taken], np.int64),
            names=np.array(names),
            count=np.array([each.count for each in taken], np.int64),
            digest=np.array([each.digest for each in taken]),
        )
    return Export(path, dict(Counter(each.label for each in taken)), dict(left_out))


def to_folder(
    found: Sequence[Found], path: Path, *, told: Step = lambda _: None
) -> Export:
    """Write pictures into a folder for each class.

    Those that were sent as images are written as they came, those that were sent as
    bytes [height, width, 1 or 3] as PNG.

    Raises:
        CannotExport: none is a picture, or there is something at `path`.
        OSError: the disk does not let it.
    """
    if path.exists():
        raise CannotExport(f"{path} is there already: name a new folder")
    half = path.with_name(f".{path.name}.part")
    shutil.rmtree(half, ignore_errors=True)
    half.mkdir(mode=0o700)
    left_out: Counter[str] = Counter()
    classes: Counter[str] = Counter()
    folders: dict[str, str] = {}
    try:
        for done, each in enumerate(_once(found), start=1):
            try:
                label = _label(each, ())
                suffix, data = _picture(_read(each))
                folder = _folder_name(label, folders)
                (half / folder).mkdir(exist_ok=True)
                write_file(half / folder / f"{each.row.digest}{suffix}", data)
                classes[label] += 1
            except _LeftOut as why:
                left_out[str(why)] += 1
            told(done)
        if classes:
            half.rename(path)
    finally:
        shutil.rmtree(half, ignore_errors=True)
    if not classes:
        raise _nothing(left_out)
    return Export(path, dict(classes), dict(left_out))


def _once(found: Sequence[Found]) -> Iterable[Found]:
    """The newest of each; two workers may have been asked the same."""
    return {each.row.digest: each for each in reversed(found)}.values()


def _names(found: Sequence[Found]) -> tuple[str, ...]:
    """The classes as the newest version's model.json names them; empty if it does not."""
    for each in found:
        labels = each.about().get("labels")
        if isinstance(labels, list) and labels:
            return tuple(str(label) for label in labels)
    return ()


def _label(found: Found, names: tuple[str, ...]) -> str:
    label = found.row.label
    if label is None:
        raise _LeftOut("the cloud gave no label")
    if names and label not in names:
        raise _LeftOut("its label is none of the newest version's")
    return label


def _read(found: Found) -> Example:
    try:
        return found.read()
    except (OSError, Unreadable) as error:
        raise _LeftOut("its file is gone or damaged") from error


def _as_pixels(found: Sequence[Found]) -> bool:
    """Whether pictures stay bytes: they do where nothing was sent as tensors."""
    for each in found:
        try:
            if each.read().inputs.medium is None:
                return False
        except (OSError, Unreadable):
            continue
    return True


def _value(found: Found, only_input: str | None, *, pixels: bool) -> NDArray[Any]:
    example = _read(found)
    medium, tensors = example.inputs.medium, example.inputs.tensors or {}
    if medium is not None:
        return _decoded(medium.data, _recipe(found), pixels=pixels)
    if only_input is None and len(tensors) > 1:
        raise _LeftOut(f"it has inputs {', '.join(sorted(tensors))}: choose --input")
    name = only_input or next(iter(tensors), "")
    if name not in tensors:
        raise _LeftOut(f"it has no input {name!r}")
    return _array(tensors[name], batched=example.batched)


def _recipe(found: Found) -> ImageRecipe:
    try:
        return ImageRecipe.model_validate(found.about().get("preprocess"))
    except ValidationError as error:
        raise _LeftOut("nobody said how its picture is decoded") from error


def _decoded(data: bytes, recipe: ImageRecipe, *, pixels: bool) -> NDArray[Any]:
    as_sent = recipe.model_copy(update={"scale": 1.0, "offset": 0.0})
    try:
        array = decode_image(data, as_sent if pixels else recipe, max_pixels=MAX_PIXELS)
    except UnreadableImage as error:
        raise _LeftOut("its picture cannot be read") from error
    picture: NDArray[Any] = array[0]
    return picture.round().astype(np.uint8) if pixels else picture


def _array(tensor: Tensor, *, batched: bool) -> NDArray[Any]:
    array: NDArray[Any] = np.frombuffer(tensor.data, tensor.dtype).reshape(tensor.shape)
    return array.reshape(array.shape[1:]) if batched else array


def _alike(taken: list[_Taken], left_out: Counter[str]) -> list[_Taken]:
    """Those of the commonest shape and dtype: a data set has one."""
    kinds = Counter((each.value.shape, each.value.dtype.str) for each in taken)
    if len(kinds) < 2:
        return taken
    ((shape, dtype), count), *_ = kinds.most_common(1)
    left_out["it has another shape or dtype than most"] += len(taken) - count
    return [
        each
        for each in taken
        if (each.value.shape, each.value.dtype.str) == (shape, dtype)
    ]


def _picture(example: Example) -> tuple[str, bytes]:
    medium, tensors = example.inputs.medium, example.inputs.tensors or {}
    if medium is not None:
        suffix = SUFFIX_OF.get(medium.media_type)
        if suffix is None:
            raise _LeftOut(f"{medium.media_type} is no PNG or JPEG")
        return suffix, medium.data
    if len(tensors) == 1:
        array = _array(next(iter(tensors.values())), batched=example.batched)
        if array.dtype == np.uint8 and array.ndim == 3 and array.shape[2] in (1, 3):
            out = io.BytesIO()
            Image.fromarray(array.squeeze(2) if array.shape[2] == 1 else array).save(
                out, "PNG"
            )
            return ".png", out.getvalue()
    raise _LeftOut("it is no picture: export an .npz")


def _folder_name(label: str, taken: dict[str, str]) -> str:
    """A label as a folder can be called: 'T-shirt/top' is 'T-shirt_top'."""
    name = "".join("_" if each in "/\\\0" else each for each in label).strip()
    name = name if name.strip(".") and not name.startswith(".") else f"_{name}"
    if taken.setdefault(name, label) != label:
        raise CannotExport(
            f"the classes {taken[name]!r} and {label!r} would share the folder {name!r}: "
            "export an .npz"
        )
    return name


def _nothing(left_out: Counter[str]) -> CannotExport:
    if not left_out:
        return CannotExport("no example is chosen by these options")
    why = "; ".join(f"{count}: {said}" for said, count in left_out.most_common(3))
    return CannotExport(f"no example can be exported ({why})")
