from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from builder.adapters.datasets import Reading, decode_picture, read
from builder.core.refusal import BuildRefused


def draw(path: Path, grey: int) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("L", (6, 4), grey).save(path)


def test_a_folder_of_pictures_by_class_is_read_and_what_is_broken_is_named(
    tmp_path: Path,
) -> None:
    for index in range(3):
        draw(tmp_path / "cat" / f"{index}.png", 10 * index)
        draw(tmp_path / "dog" / f"{index}.png", 100 + index)
    (tmp_path / "dog" / "broken.png").write_bytes(b"no picture")
    data = read(Reading(str(tmp_path), channels=1), tmp_path)
    assert data.names == ("cat", "dog")
    assert data.shape == (4, 6, 1)
    assert data.labels.tolist() == [0, 0, 0, 1, 1, 1]
    assert data.skipped == ("dog/broken.png",)


def test_folders_named_by_part_are_parts(tmp_path: Path) -> None:
    for index, part in enumerate(("train", "val", "test")):
        for label in ("cat", "dog"):
            draw(tmp_path / part / label / "0.png", index)
    data = read(Reading(str(tmp_path), channels=3, width=2, height=2), tmp_path)
    assert data.parts is not None
    assert data.parts.tolist() == [3, 3, 0, 0, 2, 2]
    assert data.shape == (2, 2, 3)


def test_a_class_whose_folder_is_empty_keeps_its_name(tmp_path: Path) -> None:
    draw(tmp_path / "cat" / "0.png", 1)
    (tmp_path / "dog").mkdir()
    assert read(Reading(str(tmp_path), channels=1), tmp_path).names == ("cat", "dog")


def test_an_npz_is_read_whole_or_by_part(tmp_path: Path) -> None:
    x, y = np.arange(12.0).reshape(6, 2), np.array([0, 1, 0, 1, 0, 1])
    np.savez(tmp_path / "whole.npz", x=x, y=y)
    assert read(Reading("whole.npz"), tmp_path).parts is None
    np.savez(tmp_path / "parts.npz", x_train=x, y_train=y, x_test=x + 1, y_test=y)
    data = read(Reading("parts.npz"), tmp_path)
    assert data.parts is not None
    assert data.parts.tolist() == [0] * 6 + [3] * 6
    np.savez(tmp_path / "half.npz", x_train=x)
    with pytest.raises(BuildRefused, match="has no y_train"):
        read(Reading("half.npz"), tmp_path)
    (tmp_path / "bad.npz").write_bytes(b"PK\x03\x04nothing")
    with pytest.raises(BuildRefused, match="cannot read"):
        read(Reading("bad.npz"), tmp_path)


def test_a_csv_is_read_and_lines_without_numbers_are_named(tmp_path: Path) -> None:
    (tmp_path / "rows.csv").write_text(
        "a,b,kind,part\n1,2,ripe,train\n3,4,raw,test\n5,none,raw,test\n",
        encoding="utf-8",
    )
    data = read(Reading("rows.csv", label="kind"), tmp_path)
    assert data.inputs.tolist() == [[1, 2], [3, 4]]
    assert data.names == ("raw", "ripe")
    assert data.columns == ("a", "b")
    assert data.skipped == ("line 4",)
    with pytest.raises(BuildRefused, match="no column 'label'"):
        read(Reading("rows.csv"), tmp_path)


def test_a_source_that_is_nothing_is_refused_with_what_would_do(tmp_path: Path) -> None:
    with pytest.raises(BuildRefused, match="no data set at"):
        read(Reading("missing"), tmp_path)
    with pytest.raises(BuildRefused, match="no entry point"):
        read(Reading("no_such_module:load"), tmp_path)
    with pytest.raises(BuildRefused, match="is no picture"):
        decode_picture(tmp_path / "missing.png", (2, 2, 1))
