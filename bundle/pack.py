"""A folder to one file and back. The same folder gives the same bytes, always.

A packed bundle is an uncompressed tar: `manifest.json` first, then each file it
names, in order. Unpacking believes nothing: only regular files that the manifest
names, each of the size and digest it states, all within limits, and the folder
appears only once every byte was checked and synced.
"""

from __future__ import annotations

import hashlib
import io
import json
import shutil
import tarfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any, Final

from bundle.canonical import canonical
from bundle.durable import part_beside, replacing, sync_folder, write_file
from bundle.manifest import (
    MANIFEST_FILE,
    MAX_MANIFEST_BYTES,
    FileEntry,
    Manifest,
    ManifestError,
    parse_manifest,
)
from bundle.seal import MAX_PACKED_BYTES, Seal

MAX_MODEL_BYTES: Final = 512 * 1024 * 1024
MAX_FILES: Final = 64
MAX_NAME_CHARACTERS: Final = 100
COPY_BYTES: Final = 1024 * 1024
END_BYTES: Final = 2 * tarfile.BLOCKSIZE


class BundleRejected(ValueError):
    """A bundle cannot be packed or must not be used; says which part and why."""


@dataclass(frozen=True, slots=True)
class UnpackLimits:
    """What an unpacked bundle may cost on disk."""

    max_total_bytes: int = MAX_PACKED_BYTES
    max_file_bytes: int = MAX_MODEL_BYTES
    max_files: int = MAX_FILES


DEFAULT_LIMITS: Final = UnpackLimits()


def pack(source_dir: Path, out: Path) -> Manifest:
    """Pack the folder's manifest and the files it names into `out`.

    Packed are `model_file`, the golden file, and what `files` lists beside them;
    sizes and digests are filled in. Other files in the folder stay out.

    Args:
        source_dir: a folder with `manifest.json`.
        out: the tar to write; it appears whole or not at all.

    Returns:
        The manifest as packed, with `files` filled.

    Raises:
        BundleRejected: the manifest is bad, or a file is missing or too big.
        OSError: `out` cannot be written.
    """
    stated = _read_source_manifest(source_dir)
    manifest = _validated(canonical(stated), source_dir / MANIFEST_FILE)
    names = sorted(_named_files(manifest))
    if len(names) + 1 > MAX_FILES:
        raise BundleRejected(f"{source_dir} names {len(names)} files, over {MAX_FILES}")
    entries = {name: _entry(source_dir / name) for name in names}
    filled = canonical(
        {
            **stated,
            "files": {name: entry.model_dump() for name, entry in entries.items()},
        }
    )
    if len(filled) > MAX_MANIFEST_BYTES:
        raise BundleRejected(f"the manifest is over {MAX_MANIFEST_BYTES} bytes")
    with replacing(out) as file:
        with tarfile.open(fileobj=file, mode="w", format=tarfile.USTAR_FORMAT) as tar:
            tar.addfile(_member(MANIFEST_FILE, len(filled)), io.BytesIO(filled))
            for name, entry in entries.items():
                with (source_dir / name).open("rb") as content:
                    tar.addfile(_member(name, entry.size_bytes), content)
            end = tar.offset
        # A tape's record of 10 KB would double a small model on its way.
        file.truncate(end + END_BYTES)
    return _validated(filled, source_dir / MANIFEST_FILE)


def unpack(
    packed: Path,
    dest: Path,
    limits: UnpackLimits = DEFAULT_LIMITS,
    *,
    seal: Seal | None = None,
) -> Manifest:
    """Unpack a bundle into the new folder `dest`, checking every byte.

    Call `bundle.seal.verify_packed` first: this checks the bundle against its own
    manifest, not against who made it.

    Args:
        packed: the tar.
        dest: a folder that is not there yet, or is empty; its parent exists.
        limits: how much may be written.
        seal: when given, the manifest must carry the name and version it states.

    Raises:
        BundleRejected: not a bundle, a link, a device or a path among its members, a
            file that the manifest does not name, or over a limit; a file missing or
            not of the stated size or digest. `dest` is then not created.
        FileExistsError: `dest` has something in it.
        OSError: the disk is full.
    """
    if dest.exists() and (not dest.is_dir() or any(dest.iterdir())):
        raise FileExistsError(f"{dest} already holds something: unpack into a new one")
    part = part_beside(dest)
    part.mkdir()
    try:
        manifest = _unpack_into(packed, part, limits)
        _check_identity(manifest, seal)
        sync_folder(part)
        part.rename(dest)
    except BaseException:
        shutil.rmtree(part, ignore_errors=True)
        raise
    sync_folder(dest.parent)
    return manifest


def read_manifest(packed: Path) -> Manifest:
    """The manifest of a packed bundle, without unpacking it.

    Raises:
        BundleRejected: it is not a bundle, or its manifest is bad.
        OSError: the file cannot be read.
    """
    with _members(packed) as members:
        return _validated(_first_manifest(members), packed)


Members = Iterator[tuple[tarfile.TarInfo, IO[bytes]]]


def _unpack_into(packed: Path, folder: Path, limits: UnpackLimits) -> Manifest:
    with _members(packed) as members:
        stated = _first_manifest(members)
        manifest = _validated(stated, packed)
        _check_limits(manifest, len(stated), limits)
        missing = dict(manifest.files)
        for member, content in members:
            entry = missing.pop(member.name, None)
            if entry is None:
                raise BundleRejected(
                    f"member {member.name[:80]!r} is not named by the manifest, "
                    "or comes twice"
                )
            _copy_checked(member, content, entry, folder / member.name)
    if missing:
        raise BundleRejected(f"the bundle lacks {', '.join(sorted(missing))}")
    write_file(folder / MANIFEST_FILE, stated)
    return manifest


def _check_limits(
    manifest: Manifest, manifest_bytes: int, limits: UnpackLimits
) -> None:
    needed = _named_files(manifest) - manifest.files.keys()
    if needed:
        raise BundleRejected(
            f"the manifest states no digest of {', '.join(sorted(needed))}"
        )
    if len(manifest.files) + 1 > limits.max_files:
        raise BundleRejected(
            f"{len(manifest.files)} files are over the limit of {limits.max_files}"
        )
    for name, entry in manifest.files.items():
        if entry.size_bytes > limits.max_file_bytes:
            raise BundleRejected(
                f"{name} of {entry.size_bytes} bytes is over the limit of "
                f"{limits.max_file_bytes}"
            )
    total = manifest_bytes + sum(each.size_bytes for each in manifest.files.values())
    if total > limits.max_total_bytes:
        raise BundleRejected(
            f"{total} bytes in all are over the limit of {limits.max_total_bytes}"
        )


def _check_identity(manifest: Manifest, seal: Seal | None) -> None:
    if seal is None or (manifest.name, manifest.version) == (seal.name, seal.version):
        return
    raise BundleRejected(
        f"sealed as {seal.name} {seal.version}, but the manifest inside says "
        f"{manifest.name} {manifest.version}"
    )


@contextmanager
def _members(packed: Path) -> Iterator[Members]:
    """The members in order; what is not a plain file of a plain name is refused."""
    try:
        with tarfile.open(packed, mode="r:") as tar:
            yield _plain_members(tar)
    except (tarfile.TarError, EOFError, OverflowError) as error:
        raise BundleRejected(
            f"{packed.name} is not a packed bundle: {error}"
        ) from error


def _plain_members(tar: tarfile.TarFile) -> Members:
    # Whoever reads stops at the first member that the manifest does not name, so
    # what the tar remembers of them is bounded.
    while (member := tar.next()) is not None:
        plain = member.type == tarfile.REGTYPE and not member.pax_headers
        content = tar.extractfile(member) if plain else None
        if content is None:
            raise BundleRejected(
                f"member {member.name[:80]!r} is not a regular file: refused"
            )
        yield member, content


def _first_manifest(members: Members) -> bytes:
    member, content = next(members, (None, None))
    if member is None or content is None or member.name != MANIFEST_FILE:
        raise BundleRejected(f"a bundle starts with {MANIFEST_FILE}; this does not")
    if member.size > MAX_MANIFEST_BYTES:
        raise BundleRejected(
            f"manifest of {member.size} bytes is over {MAX_MANIFEST_BYTES}"
        )
    return content.read()


def _copy_checked(
    member: tarfile.TarInfo, content: IO[bytes], entry: FileEntry, dest: Path
) -> None:
    if member.size != entry.size_bytes:
        raise BundleRejected(
            f"{member.name} has {member.size} bytes, the manifest says "
            f"{entry.size_bytes}"
        )
    digest = hashlib.sha256()
    with replacing(dest) as file:
        while piece := content.read(COPY_BYTES):
            digest.update(piece)
            file.write(piece)
        if digest.hexdigest() != entry.sha256:
            raise BundleRejected(
                f"{member.name} is not what the manifest says: "
                f"digest {digest.hexdigest()[:16]}…, stated {entry.sha256[:16]}…"
            )


def _read_source_manifest(source_dir: Path) -> dict[str, Any]:
    path = source_dir / MANIFEST_FILE
    try:
        with path.open("rb") as file:
            data = file.read(MAX_MANIFEST_BYTES + 1)
    except OSError as error:
        raise BundleRejected(
            f"cannot read {path}: {error.strerror}; a bundle's folder holds one"
        ) from error
    # Validated as it stands, then kept as a mapping: fields that this version
    # does not know stay in the bundle.
    _validated(data, path)
    try:
        stated = json.loads(data)
        canonical(stated)
    except (ValueError, RecursionError) as error:
        raise BundleRejected(f"{path}: {error}") from error
    return dict(stated)


def _validated(data: bytes, where: Path) -> Manifest:
    try:
        return parse_manifest(data)
    except ManifestError as error:
        raise BundleRejected(f"{where.name}: {error}") from error


def _named_files(manifest: Manifest) -> set[str]:
    golden = {manifest.golden.file} if manifest.golden else set[str]()
    return {manifest.model_file, *golden, *manifest.files}


def _entry(path: Path) -> FileEntry:
    if len(path.name) > MAX_NAME_CHARACTERS:
        raise BundleRejected(
            f"{path.name[:40]}… is over {MAX_NAME_CHARACTERS} characters: rename it"
        )
    if path.name == MANIFEST_FILE:
        raise BundleRejected(f"{MANIFEST_FILE} cannot name itself among its files")
    if not path.is_file():
        raise BundleRejected(f"{path.name} is named by the manifest but is not there")
    size = path.stat().st_size
    if size > MAX_MODEL_BYTES:
        raise BundleRejected(
            f"{path.name} of {size} bytes is over the limit of {MAX_MODEL_BYTES}"
        )
    with path.open("rb") as file:
        digest = hashlib.file_digest(file, "sha256").hexdigest()
    return FileEntry(sha256=digest, size_bytes=size)


def _member(name: str, size_bytes: int) -> tarfile.TarInfo:
    member = tarfile.TarInfo(name)
    member.size = size_bytes
    member.mode = 0o644
    return member
