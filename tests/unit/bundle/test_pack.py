"""Packing is deterministic; unpacking believes nothing."""

from __future__ import annotations

import gzip
import hashlib
import io
import json
import os
import tarfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from bundle import pack as packing
from bundle.manifest import MANIFEST_FILE
from bundle.pack import BundleRejected, UnpackLimits, pack, read_manifest, unpack
from bundle.seal import make_seal

MODEL = b"TFL3" + bytes(range(256)) * 20


def manifest(**changes: object) -> dict[str, Any]:
    return {
        "format": 1,
        "name": "fashion",
        "version": "1",
        "model_file": "model.tflite",
        "labels": ["shirt", "boot"],
        "golden": {"file": "golden.npz"},
        **changes,
    }


@pytest.fixture
def source(tmp_path: Path) -> Path:
    folder = tmp_path / "source"
    folder.mkdir()
    (folder / MANIFEST_FILE).write_text(json.dumps(manifest()))
    (folder / "model.tflite").write_bytes(MODEL)
    (folder / "golden.npz").write_bytes(b"golden")
    (folder / "notes.txt").write_text("not part of it")
    return folder


def digest(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()


def tar_of(path: Path, *members: tuple[str | tarfile.TarInfo, bytes]) -> Path:
    with tarfile.open(path, "w", format=tarfile.GNU_FORMAT) as tar:
        for what, data in members:
            info = tarfile.TarInfo(what) if isinstance(what, str) else what
            if info.isreg():
                info.size = len(data)
            tar.addfile(info, io.BytesIO(data) if info.isreg() else None)
    return path


def stated(**files: bytes) -> bytes:
    """A manifest whose `files` are right for the given contents."""
    named = {name.replace("_", "."): data for name, data in files.items()}
    return json.dumps(
        manifest(
            golden=None,
            files={
                name: {"sha256": digest(data), "size_bytes": len(data)}
                for name, data in named.items()
            },
        )
    ).encode()


def test_a_bundle_comes_back_as_it_was(source: Path, tmp_path: Path) -> None:
    packed = pack(source, tmp_path / "b.tar")
    unpacked = unpack(tmp_path / "b.tar", tmp_path / "dest")
    assert unpacked == packed
    assert sorted(each.name for each in (tmp_path / "dest").iterdir()) == [
        "golden.npz",
        MANIFEST_FILE,
        "model.tflite",
    ]
    assert (tmp_path / "dest" / "model.tflite").read_bytes() == MODEL
    assert packed.files["model.tflite"].sha256 == digest(MODEL)
    assert read_manifest(tmp_path / "b.tar") == packed


def test_the_same_folder_gives_the_same_bytes(source: Path, tmp_path: Path) -> None:
    pack(source, tmp_path / "a.tar")
    for path in source.iterdir():
        os.utime(path, (1, 1))
        path.chmod(0o600)
    # The same content, written otherwise.
    (source / MANIFEST_FILE).write_text(
        json.dumps(dict(reversed(manifest().items())), indent=3)
    )
    pack(source, tmp_path / "b.tar")
    assert (tmp_path / "a.tar").read_bytes() == (tmp_path / "b.tar").read_bytes()


def test_an_unpacked_bundle_packs_to_the_same_bytes(
    source: Path, tmp_path: Path
) -> None:
    pack(source, tmp_path / "a.tar")
    unpack(tmp_path / "a.tar", tmp_path / "dest")
    pack(tmp_path / "dest", tmp_path / "b.tar")
    assert (tmp_path / "a.tar").read_bytes() == (tmp_path / "b.tar").read_bytes()


def test_fields_this_version_does_not_know_stay_in_the_bundle(
    source: Path, tmp_path: Path
) -> None:
    (source / MANIFEST_FILE).write_text(json.dumps(manifest(later={"a": 1})))
    pack(source, tmp_path / "b.tar")
    unpack(tmp_path / "b.tar", tmp_path / "dest")
    kept = json.loads((tmp_path / "dest" / MANIFEST_FILE).read_bytes())
    assert kept["later"] == {"a": 1}


@pytest.mark.parametrize(
    ("spoil", "says"),
    [
        (lambda d: (d / MANIFEST_FILE).unlink(), "manifest.json"),
        (lambda d: (d / MANIFEST_FILE).write_text("{"), "manifest.json"),
        (lambda d: (d / MANIFEST_FILE).write_text("[]"), "manifest.json"),
        (
            lambda d: (d / MANIFEST_FILE).write_text(json.dumps(manifest(format=2))),
            "format",
        ),
        (
            lambda d: (d / MANIFEST_FILE).write_text(
                json.dumps(manifest(model_file="../etc/passwd"))
            ),
            "model_file",
        ),
        (
            lambda d: (d / MANIFEST_FILE).write_text(
                json.dumps(manifest(extra=float("nan")))
            ),
            "manifest.json",
        ),
        (lambda d: (d / "model.tflite").unlink(), "model.tflite is named"),
        (lambda d: (d / "golden.npz").unlink(), "golden.npz is named"),
    ],
)
def test_a_folder_that_is_no_bundle_is_refused_and_says_why(
    spoil: Callable[[Path], object], says: str, source: Path, tmp_path: Path
) -> None:
    spoil(source)
    with pytest.raises(BundleRejected, match=says):
        pack(source, tmp_path / "b.tar")
    assert [each.name for each in tmp_path.iterdir()] == ["source"]


def test_a_model_over_the_limit_is_refused_without_reading_it(
    source: Path, tmp_path: Path
) -> None:
    with (source / "model.tflite").open("r+b") as file:
        file.truncate(packing.MAX_MODEL_BYTES + 1)
    with pytest.raises(BundleRejected, match=r"model\.tflite of 536870913 bytes"):
        pack(source, tmp_path / "b.tar")


@pytest.mark.parametrize("name", ["../evil", "/etc/evil", "a/b", ".hidden"])
def test_a_path_that_leaves_the_folder_is_refused(name: str, tmp_path: Path) -> None:
    packed = tar_of(
        tmp_path / "b.tar",
        (MANIFEST_FILE, stated(model_tflite=MODEL)),
        ("model.tflite", MODEL),
        (name, b"evil"),
    )
    with pytest.raises(BundleRejected, match="not named by the manifest"):
        unpack(packed, tmp_path / "dest")
    assert [each.name for each in tmp_path.iterdir()] == ["b.tar"]


def test_a_manifest_that_names_a_path_is_refused(tmp_path: Path) -> None:
    bad = json.loads(stated(model_tflite=MODEL))
    bad["files"]["../evil"] = {"sha256": digest(b"evil"), "size_bytes": 4}
    packed = tar_of(
        tmp_path / "b.tar",
        (MANIFEST_FILE, json.dumps(bad).encode()),
        ("model.tflite", MODEL),
        ("../evil", b"evil"),
    )
    with pytest.raises(BundleRejected, match="files"):
        unpack(packed, tmp_path / "dest")
    assert [each.name for each in tmp_path.iterdir()] == ["b.tar"]


@pytest.mark.parametrize(
    "kind",
    [
        tarfile.SYMTYPE,
        tarfile.LNKTYPE,
        tarfile.CHRTYPE,
        tarfile.FIFOTYPE,
        tarfile.DIRTYPE,
        tarfile.CONTTYPE,
        tarfile.GNUTYPE_SPARSE,
    ],
)
def test_only_regular_files_are_members(kind: bytes, tmp_path: Path) -> None:
    link = tarfile.TarInfo("model.tflite")
    link.type = kind
    link.linkname = "/etc/passwd"
    packed = tar_of(
        tmp_path / "b.tar",
        (MANIFEST_FILE, stated(model_tflite=MODEL)),
        (link, b""),
    )
    with pytest.raises(BundleRejected):
        unpack(packed, tmp_path / "dest")
    assert not (tmp_path / "dest").exists()


def test_changed_missing_doubled_and_unsized_members_are_refused(
    tmp_path: Path,
) -> None:
    good = (MANIFEST_FILE, stated(model_tflite=MODEL))
    evil = MODEL[:-1] + b"!"
    cases: dict[str, list[tuple[str | tarfile.TarInfo, bytes]]] = {
        "is not what the manifest says": [good, ("model.tflite", evil)],
        "the manifest says 5124": [good, ("model.tflite", MODEL[:-1])],
        "lacks model.tflite": [good],
        "or comes twice": [good, ("model.tflite", MODEL), ("model.tflite", MODEL)],
        "starts with manifest.json": [("model.tflite", MODEL), good],
        "states no digest of model.tflite": [(MANIFEST_FILE, stated())],
    }
    for says, members in cases.items():
        packed = tar_of(tmp_path / "b.tar", *members)
        with pytest.raises(BundleRejected, match=says):
            unpack(packed, tmp_path / "dest")
        assert [each.name for each in tmp_path.iterdir()] == ["b.tar"]


def test_a_bomb_is_refused_before_it_is_written(tmp_path: Path) -> None:
    packed = tar_of(
        tmp_path / "b.tar",
        (MANIFEST_FILE, stated(model_tflite=MODEL, a=b"1", b=b"2")),
        ("model.tflite", MODEL),
        ("a", b"1"),
        ("b", b"2"),
    )
    for limits, says in (
        (UnpackLimits(max_file_bytes=100), "model.tflite of 5124 bytes"),
        (UnpackLimits(max_total_bytes=5200), "bytes in all"),
        (UnpackLimits(max_files=3), "3 files are over the limit of 3"),
    ):
        with pytest.raises(BundleRejected, match=says):
            unpack(packed, tmp_path / "dest", limits)
    unpack(packed, tmp_path / "dest")


def test_a_header_that_promises_terabytes_is_refused(tmp_path: Path) -> None:
    info = tarfile.TarInfo(MANIFEST_FILE)
    info.size = 2**42
    (tmp_path / "b.tar").write_bytes(info.tobuf(tarfile.GNU_FORMAT) + b"x" * 512)
    with pytest.raises(BundleRejected, match="manifest of 4398046511104 bytes"):
        unpack(tmp_path / "b.tar", tmp_path / "dest")


def test_a_compressed_tar_is_not_a_bundle(source: Path, tmp_path: Path) -> None:
    pack(source, tmp_path / "b.tar")
    (tmp_path / "b.tgz").write_bytes(gzip.compress((tmp_path / "b.tar").read_bytes()))
    with pytest.raises(BundleRejected, match="not a packed bundle"):
        unpack(tmp_path / "b.tgz", tmp_path / "dest")


def test_a_bundle_cut_anywhere_is_refused(source: Path, tmp_path: Path) -> None:
    pack(source, tmp_path / "b.tar")
    whole = (tmp_path / "b.tar").read_bytes()
    # What follows the last member is padding, which tells nothing.
    last = whole.rindex(MODEL) + len(MODEL)
    for size in (0, 1, 511, 512, 600, 1024, 2000, last - 1):
        (tmp_path / "cut.tar").write_bytes(whole[:size])
        with pytest.raises(BundleRejected):
            unpack(tmp_path / "cut.tar", tmp_path / "dest")
        assert not (tmp_path / "dest").exists()


def test_any_single_changed_byte_of_content_is_noticed(
    source: Path, tmp_path: Path
) -> None:
    pack(source, tmp_path / "b.tar")
    whole = bytearray((tmp_path / "b.tar").read_bytes())
    at = whole.index(b"TFL3")
    for offset in range(at, at + len(MODEL), 997):
        changed = bytearray(whole)
        changed[offset] ^= 1
        (tmp_path / "c.tar").write_bytes(changed)
        with pytest.raises(BundleRejected, match=r"model\.tflite is not what"):
            unpack(tmp_path / "c.tar", tmp_path / "dest")


def test_a_manifest_that_is_not_the_sealed_version_is_refused(
    source: Path, tmp_path: Path
) -> None:
    pack(source, tmp_path / "b.tar")
    seal = make_seal(tmp_path / "b.tar", "fashion", "2")
    with pytest.raises(BundleRejected, match="sealed as fashion 2"):
        unpack(tmp_path / "b.tar", tmp_path / "dest", seal=seal)
    assert not (tmp_path / "dest").exists()


def test_unpacking_never_writes_over_what_is_there(
    source: Path, tmp_path: Path
) -> None:
    pack(source, tmp_path / "b.tar")
    unpack(tmp_path / "b.tar", tmp_path / "dest")
    with pytest.raises(FileExistsError, match="already holds something"):
        unpack(tmp_path / "b.tar", tmp_path / "dest")
