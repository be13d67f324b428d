"""Whole builds of models that learn in a second, with TensorFlow and LiteRT."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Callable
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import typer
from PIL import Image
from typer.testing import CliRunner, Result
from typing_extensions import override

from builder.adapters import models
from builder.adapters.explaining import explain, page
from builder.app import Build, Built
from builder.cli.build import build as build_command
from builder.cli.explain import explain as explain_command
from builder.core.progress import Silent
from builder.core.refusal import BuildRefused
from builder.settings import BuildFile, read_build_file
from bundle.pack import pack

pytestmark = [
    # The converter's own: it still uses an interpreter that it calls deprecated.
    pytest.mark.filterwarnings("ignore"),
    pytest.mark.timeout(120),
]

SIDE = 8
BUILD = """
name = "stripes"
version = "1"
target = "at most 20% spilled, with 90% confidence"
[cloud]
model = "cloud.keras"
[data]
source = "data.npz"
scale = 0.00392156862745098
[student]
model = "tests.integration.builder.students:small"
epochs = 4
peak_rate = 0.01
[candidates]
quantizations = ["float16", "int8"]
representative = 20
"""


class Heard(Silent):
    """Keeps the names of the steps."""

    def __init__(self) -> None:
        self.steps: list[str] = []

    @override
    def begin(self, what: str) -> None:
        self.steps.append(what)


def striped(n: int) -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(0)
    labels = rng.integers(0, 2, n)
    pictures = rng.integers(0, 140, (n, SIDE, SIDE, 1))
    for label in (0, 1):
        pictures[labels == label, :, 4 * label : 4 * label + 2] += 18
    return pictures.astype(np.uint8), labels


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    from tensorflow import keras

    root = tmp_path_factory.mktemp("build")
    x, y = striped(2400)
    np.savez(root / "data.npz", x=x, y=y)
    # The difference of the two stripes is all there is to know.
    weights = np.zeros((SIDE, SIDE, 1, 2), np.float32)
    weights[:, 0:2, 0, 0] = weights[:, 4:6, 0, 1] = 3.0
    cloud = keras.Sequential(
        [keras.Input((SIDE, SIDE, 1)), keras.layers.Flatten(), keras.layers.Dense(2)]
    )
    cloud.layers[-1].set_weights([weights.reshape(-1, 2), np.zeros(2, np.float32)])
    cloud.save(root / "cloud.keras")
    (root / "build.toml").write_text(BUILD, encoding="utf-8")
    return root


def options(folder: Path, **said: Any) -> BuildFile:
    return read_build_file(folder / "build.toml", said)


@pytest.fixture(scope="module")
def built(folder: Path) -> Built:
    return Build(options(folder), folder, folder / "out", Silent()).run()


def test_a_build_makes_a_bundle_that_packs_with_its_report(
    built: Built, tmp_path: Path
) -> None:
    assert built.bundle is not None
    manifest = pack(built.bundle, tmp_path / "packed.tar")
    assert set(manifest.files) == {
        "golden.npz",
        "model.tflite",
        "report.html",
        "report.json",
    }
    assert manifest.decision is not None
    assert 0 < manifest.decision.threshold < 1
    assert manifest.preprocess is not None
    assert manifest.preprocess.input == "image"


def test_the_report_says_what_was_promised_and_what_came_of_it(built: Built) -> None:
    assert built.bundle is not None
    document = json.loads((built.bundle / "report.json").read_text())
    assert document["promise"]["kept"]
    assert 0 < document["test"]["spilled"] < 0.3
    assert document["test"]["accuracy"] >= document["test"]["edge_accuracy"]
    names = [each["name"] for each in document["candidates"]]
    assert names == ["student-float16", "student-int8"]
    text = built.report.read_text()
    assert "20% spilled" in text
    assert text.count("<svg") >= 3


VOID = frozenset({"meta", "img", "br"})
REFERENCES = frozenset({"src", "href", "xlink:href", "data", "srcset"})


class Outline(HTMLParser):
    """What is open, and everything that a page points at."""

    def __init__(self) -> None:
        super().__init__()
        self.open: list[str] = []
        self.ids: Counter[str] = Counter()
        self.points_at: list[str] = []

    @override
    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        if tag not in VOID:
            self.open.append(tag)
        self._look(attrs)

    @override
    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self._look(attrs)

    @override
    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def _look(self, attrs: list[tuple[str, str | None]]) -> None:
        for name, value in attrs:
            if name == "id":
                self.ids[str(value)] += 1
            if name in REFERENCES:
                self.points_at.append(str(value))


def test_the_report_is_whole_and_needs_nothing_from_outside(
    built: Built, tmp_path: Path
) -> None:
    assert built.bundle is not None
    Image.new("L", (SIDE, SIDE), 90).save(tmp_path / "even.png")
    for text in (
        built.report.read_text(),
        page(explain(tmp_path / "even.png", built.bundle)),
    ):
        found = Outline()
        found.feed(text)
        found.close()
        assert not found.open
        assert max(found.ids.values()) == 1
        inside = {f"#{each}" for each in found.ids}
        for each in found.points_at:
            assert each in inside or each.startswith("data:image/")
        assert "@import" not in text
        assert "<script" not in text
        named = {each.split(")")[0] for each in text.split("url(")[1:]}
        assert named <= inside


def test_a_build_again_goes_on_where_it_stopped_and_makes_the_same(
    built: Built, folder: Path
) -> None:
    heard = Heard()
    again = Build(options(folder), folder, folder / "out", heard).run()
    assert not [each for each in heard.steps if each.startswith(("train", "convert"))]
    assert again.document["promise"] == built.document["promise"]


def test_a_build_that_is_killed_goes_on_and_comes_to_the_same(
    built: Built, folder: Path, tmp_path: Path
) -> None:
    command = [sys.executable, "-m", "overspill", "model", "build", str(folder)]
    process = subprocess.Popen(
        [*command, "--out", str(tmp_path)],
        env={**os.environ, "PYTHONPATH": str(Path(__file__).parents[3])},
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    try:
        deadline = time.monotonic() + 40
        while not (finished := list((tmp_path / "steps").glob("cloud-*.npz"))):
            assert process.poll() is None
            assert time.monotonic() < deadline
            time.sleep(0.01)
    finally:
        process.send_signal(signal.SIGKILL)
        process.wait(40)
    assert not (tmp_path / "bundle").exists()
    before = {each: each.stat().st_mtime_ns for each in finished}
    again = Build(options(folder), folder, tmp_path, Silent()).run()
    assert {each: each.stat().st_mtime_ns for each in finished} == before
    assert again.document["promise"] == built.document["promise"]
    assert again.bundle is not None
    assert built.bundle is not None
    # The converter numbers its tensors by what the process made before.
    with (
        np.load(again.bundle / "golden.npz") as one,
        np.load(built.bundle / "golden.npz") as other,
    ):
        assert set(one.files) == set(other.files)
        for name in one.files:
            assert np.array_equal(one[name], other[name])


def beside(folder: Path, out: Path) -> Path:
    """Another place for a build's results, where its steps are finished already."""
    shutil.copytree(folder / "out" / "steps", out / "steps")
    return out


def test_a_target_that_cannot_be_kept_makes_no_bundle_and_names_the_nearest(
    built: Built, folder: Path, tmp_path: Path
) -> None:
    out = beside(folder, tmp_path)
    (out / "bundle").mkdir()
    asked = options(folder, target="0.01 points worse")
    refused = Build(asked, folder, out, Silent()).run()
    assert refused.bundle is None
    assert not (out / "bundle").exists()
    assert "nearest that can be met" in refused.document["promise"]["says"]
    assert "No promise" in refused.report.read_text()


def test_a_limit_that_nothing_keeps_to_makes_no_bundle(
    built: Built, folder: Path, tmp_path: Path
) -> None:
    asked = options(folder, keep={"max_kb": 0.1})
    refused = Build(asked, folder, beside(folder, tmp_path), Silent()).run()
    assert refused.bundle is None
    assert "no candidate keeps to every limit" in refused.choice.why


def invoked(command: Callable[..., None], *arguments: str) -> Result:
    app = typer.Typer()
    app.command()(command)
    return CliRunner().invoke(app, list(arguments))


def test_the_command_shows_the_candidates_and_says_what_is_next(
    built: Built, folder: Path, tmp_path: Path
) -> None:
    out = beside(folder, tmp_path)
    found = invoked(build_command, str(folder), "--out", str(out))
    assert found.exit_code == 0, found.output
    assert "student-int8" in found.output
    assert f"Next: overspill model publish {out / 'bundle'}" in found.output


def test_the_command_is_refused_with_the_nearest_target(
    built: Built, folder: Path, tmp_path: Path
) -> None:
    out = beside(folder, tmp_path)
    arguments = [str(folder), "--out", str(out), "--target", "0.01 points worse"]
    found = invoked(build_command, *arguments, "--json")
    assert isinstance(found.exception, BuildRefused)
    assert "--accept-nearest" in str(found.exception)


def test_the_command_explains_an_answer(built: Built, tmp_path: Path) -> None:
    assert built.bundle is not None
    Image.new("L", (SIDE, SIDE), 90).save(tmp_path / "even.png")
    page_file = tmp_path / "page.html"
    found = invoked(
        explain_command,
        *[str(tmp_path / "even.png"), "--bundle", str(built.bundle)],
        *["--out", str(page_file)],
    )
    assert found.exit_code == 0, found.output
    assert "threshold" in found.output
    assert "<svg" in page_file.read_text()


def test_an_existing_tflite_is_calibrated_as_it_is(built: Built, folder: Path) -> None:
    assert built.bundle is not None
    given = options(folder, edge=str(built.bundle / "model.tflite"))
    found = Build(given, folder, folder / "given", Silent()).run()
    assert found.choice.chosen == "given-as_given"
    assert found.bundle is not None


def test_an_answer_is_explained_with_where_it_hangs(
    built: Built, tmp_path: Path
) -> None:

    assert built.bundle is not None
    picture = np.full((SIDE, SIDE), 60, np.uint8)
    picture[:, 4:6] = 90
    Image.fromarray(picture).save(tmp_path / "one.png")
    found = explain(tmp_path / "one.png", built.bundle)
    assert found.label == "1"
    assert not found.hard
    column = found.heat.sum(axis=0)
    assert int(column.argmax()) in (3, 4, 5, 6)
    assert "<svg" in page(found)
    json.dumps(found.as_json(), allow_nan=False)


def test_a_cloud_model_with_two_outputs_has_to_be_told_which(tmp_path: Path) -> None:
    from tensorflow import keras

    given = keras.Input((3,))
    two = keras.Model(
        given,
        [
            keras.layers.Dense(2, name="one")(given),
            keras.layers.Dense(2, name="two")(given),
        ],
    )
    two.save(tmp_path / "two.keras")
    with pytest.raises(BuildRefused, match="has the outputs one, two: say which"):
        models.open_model(tmp_path / "two.keras")
    network = models.open_model(tmp_path / "two.keras", "two")
    rows = models.outputs_of(network, lambda part: np.ones((5, 3), np.float32)[part], 5)
    assert rows.shape == (5, 2)


def test_a_cloud_model_of_another_shape_is_refused(folder: Path) -> None:
    network = models.open_model(folder / "cloud.keras")
    with pytest.raises(BuildRefused, match="does not take the data set's examples"):
        models.outputs_of(network, lambda part: np.ones((5, 3), np.float32)[part], 5)


def test_a_softmax_at_the_end_is_taken_away(tmp_path: Path) -> None:
    from tensorflow import keras

    model = keras.Sequential(
        [keras.Input((3,)), keras.layers.Dense(4, activation="softmax")]
    )
    model.save(tmp_path / "soft.h5")
    network = models.open_model(tmp_path / "soft.h5")
    rows = models.outputs_of(network, lambda part: np.ones((2, 3), np.float32)[part], 2)
    assert abs(float(rows[0].sum()) - 1) > 1e-3


def test_a_build_file_with_a_wrong_field_is_refused_by_its_name(tmp_path: Path) -> None:
    (tmp_path / "build.toml").write_text(BUILD + "\n[keep]\nmax_kilos = 3\n")
    with pytest.raises(BuildRefused, match=r"keep\.max_kilos"):
        read_build_file(tmp_path)
    with pytest.raises(BuildRefused, match="target"):
        read_build_file(tmp_path / "build.toml", {"keep": None, "target": "be good"})
    with pytest.raises(BuildRefused, match="cannot read"):
        read_build_file(tmp_path / "missing.toml")
    said = {"name": "a", "version": "1", "data": {"source": "data.npz"}}
    with pytest.raises(BuildRefused, match="there is no cloud model"):
        read_build_file(None, said)
    assert read_build_file(None, {**said, "target": "5% spilled"}).name == "a"
