"""Builds of rows in a table: CSV as anybody has it, Parquet where pyarrow is."""

from __future__ import annotations

import csv
from pathlib import Path

import numpy as np
import pytest

from builder.adapters.datasets import Reading, read
from builder.app import Build
from builder.core.progress import Silent
from builder.core.refusal import BuildRefused
from builder.settings import read_build_file

pytestmark = [
    # The converter's own: it still uses an interpreter that it calls deprecated.
    pytest.mark.filterwarnings("ignore"),
    pytest.mark.timeout(120),
]

FEATURES = 6
COLUMNS = [*(f"f{index}" for index in range(FEATURES)), "kind", "part"]
BUILD = """
name = "rows"
version = "1"
target = "at most 30% spilled, with 90% confidence"
[cloud]
model = "cloud.keras"
[data]
source = "rows.csv"
label = "kind"
[student]
epochs = 3
peak_rate = 0.01
[candidates]
quantizations = ["int8"]
representative = 20
[keep]
max_kb = 20
"""


def rows(n: int) -> list[list[object]]:
    """Two kinds of rows, apart by their first two numbers, in named parts."""
    rng = np.random.default_rng(2)
    values = rng.normal(size=(n, FEATURES)).round(6)
    kinds = np.where(values[:, 0] + values[:, 1] > 0, "ripe", "raw")
    parts = np.array(["train", "choose", "calibrate", "test"])[np.arange(n) % 4]
    return [
        [*map(float, value), str(kind), str(part)]
        for value, kind, part in zip(values, kinds, parts, strict=True)
    ]


def save_csv(path: Path, lines: list[list[object]]) -> None:
    with path.open("w", newline="", encoding="utf-8") as file:
        csv.writer(file).writerows([COLUMNS, *lines])


def save_parquet(path: Path, lines: list[list[object]]) -> None:
    pyarrow = pytest.importorskip("pyarrow")
    parquet = pytest.importorskip("pyarrow.parquet")
    columns = [list(each) for each in zip(*lines, strict=True)]
    table = pyarrow.table(dict(zip(COLUMNS, columns, strict=True)))
    parquet.write_table(table, path)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    from tensorflow import keras

    root = tmp_path_factory.mktemp("tables")
    cloud = keras.Sequential([keras.Input((FEATURES,)), keras.layers.Dense(2)])
    weights = np.zeros((FEATURES, 2), np.float32)
    weights[:2, 1] = 5.0
    cloud.layers[-1].set_weights([weights, np.zeros(2, np.float32)])
    cloud.save(root / "cloud.keras")
    (root / "build.toml").write_text(BUILD, encoding="utf-8")
    return root


@pytest.mark.parametrize("kind", ["csv", "parquet"])
def test_a_table_is_built_from(folder: Path, tmp_path: Path, kind: str) -> None:
    table = folder / f"rows.{kind}"
    (save_csv if kind == "csv" else save_parquet)(table, rows(1_600))
    said = read_build_file(folder, {"data": {"source": table.name}})
    built = Build(said, folder, tmp_path, Silent()).run()
    assert built.bundle is not None
    assert built.document["data"]["names"] == ["raw", "ripe"]
    assert built.document["data"]["parts"]["calibrate"] == 400
    assert built.document["test"]["accuracy"] > 0.9


def test_a_parquet_file_reads_as_the_csv_of_the_same_rows(tmp_path: Path) -> None:
    lines = rows(40)
    lines[7][2] = None
    save_csv(tmp_path / "rows.csv", lines)
    save_parquet(tmp_path / "rows.parquet", lines)
    one, other = (
        read(Reading(f"rows.{kind}", label="kind"), tmp_path)
        for kind in ("csv", "parquet")
    )
    assert one.names == other.names
    assert np.array_equal(one.inputs, other.inputs)
    assert np.array_equal(one.labels, other.labels)
    assert one.parts is not None
    assert other.parts is not None
    assert np.array_equal(one.parts, other.parts)
    assert one.skipped == other.skipped == ("line 9",)


def test_a_file_that_is_no_parquet_is_refused_by_name(tmp_path: Path) -> None:
    pytest.importorskip("pyarrow")
    (tmp_path / "rows.parquet").write_bytes(b"PAR1 but not really")
    with pytest.raises(BuildRefused, match=r"cannot read .*rows\.parquet"):
        read(Reading("rows.parquet"), tmp_path)
