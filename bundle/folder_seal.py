"""The seal of a folder that is loaded where it lies: every file's digest, and no other.

A bundle travels packed; the models of the worker pool lie in folders
`{name}/{version}/`. What is not listed is refused as well: a runtime may load whatever
it finds there.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Annotated, Final, Literal

from pydantic import (
    BaseModel,
    ConfigDict,
    Field,
    StringConstraints,
    ValidationError,
)

from bundle.manifest import FileEntry, Name, Version
from bundle.seal import MAX_SEAL_BYTES, SealRejected

MAX_FILES: Final = 8192
RelativePath = Annotated[
    str, StringConstraints(pattern=r"^[^/\x00\\]+(/[^/\x00\\]+){0,15}$", max_length=512)
]


class FolderSeal(BaseModel):
    """What a version's folder holds, by path with `/` between names."""

    model_config = ConfigDict(frozen=True, extra="ignore")

    kind: Literal["overspill.folder"] = "overspill.folder"
    format: Literal[1] = 1
    name: Name
    version: Version
    files: Annotated[
        dict[RelativePath, FileEntry], Field(min_length=1, max_length=MAX_FILES)
    ]


def seal_folder(folder: Path, name: str, version: str) -> FolderSeal:
    """Digest all that is in a folder.

    Raises:
        SealRejected: it is empty, holds a link or too many files, or a name is bad.
        OSError: something cannot be read.
    """
    try:
        return FolderSeal(name=name, version=version, files=dict(_entries(folder)))
    except ValidationError as error:
        fault = error.errors(include_url=False, include_input=False)[0]
        where = ".".join(str(part) for part in fault["loc"])
        raise SealRejected(f"cannot seal {folder}: {where}: {fault['msg']}") from error


def read_folder_seal(data: bytes) -> FolderSeal:
    """The seal in a file, **whose digest the caller has verified**.

    Raises:
        SealRejected: too long or malformed.
    """
    if len(data) > MAX_SEAL_BYTES:
        raise SealRejected(f"a seal of {len(data)} bytes is over {MAX_SEAL_BYTES}")
    try:
        return FolderSeal.model_validate_json(data)
    except ValidationError as error:
        raise SealRejected(
            f"no seal of a folder: {error.errors()[0]['msg']}"
        ) from error


def verify_folder(found: FolderSeal, sealed: FolderSeal) -> None:
    """Return if what was found is what was sealed, no more and no less.

    Raises:
        SealRejected: names the first file that differs.
    """
    if (found.name, found.version) != (sealed.name, sealed.version):
        raise SealRejected(
            f"this is {found.name} {found.version}, sealed was {sealed.name} "
            f"{sealed.version}"
        )
    for path in sorted({*found.files, *sealed.files}):
        if path not in sealed.files:
            raise SealRejected(f"{path} was not sealed: somebody put it there")
        if path not in found.files:
            raise SealRejected(f"{path} is missing")
        if found.files[path].sha256 != sealed.files[path].sha256:
            raise SealRejected(f"{path} is not what was sealed")


def _entries(folder: Path) -> Iterator[tuple[str, FileEntry]]:
    count = 0
    for root, folders, files in os.walk(folder, onerror=_raise):
        folders.sort()
        for name in (*folders, *files):
            path = Path(root, name)
            if path.is_symlink():
                # What a link leads to may change without the folder changing.
                raise SealRejected(f"{path} is a link: put the file itself there")
        for name in sorted(files):
            count += 1
            if count > MAX_FILES:
                raise SealRejected(f"{folder} holds more than {MAX_FILES} files")
            path = Path(root, name)
            if not path.is_file():
                raise SealRejected(f"{path} is no file")
            with path.open("rb") as file:
                digest = hashlib.file_digest(file, "sha256").hexdigest()
                size_bytes = file.tell()
            yield (
                path.relative_to(folder).as_posix(),
                FileEntry(sha256=digest, size_bytes=size_bytes),
            )


def _raise(error: OSError) -> None:
    raise error
