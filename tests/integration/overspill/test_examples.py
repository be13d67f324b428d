"""`overspill examples`: what is kept is listed, exported as a data set, and purged."""

from __future__ import annotations

import io
import json
import subprocess
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from broker.messages import EdgeOpinion, Medium, Reason, Request, Result, Status, Tensor
from bundle.manifest import ImageRecipe
from cloud_worker.adapters.example_part import Part
from cloud_worker.adapters.example_store import Captured, ExampleStore
from cloud_worker.adapters.example_view import NoExamples
from cloud_worker.core.examples import Quota, Quotas
from cloud_worker.core.spec import ModelSpec, ServedModel
from overspill.commands.examples import BadChoice, app
from overspill.export import CannotExport
from overspill.program import environment, python

LABELS = ("shirt", "T-shirt/top", "bag")
RECIPE = ImageRecipe(input="image", width=4, height=2, channels=1, scale=1 / 255)
MODEL = ServedModel(
    "fashion",
    "9",
    ModelSpec((), (), batched=True),
    max_batch=8,
    labels=LABELS,
    preprocess=RECIPE,
)
HOUR_MS = 3_600_000


@dataclass(frozen=True)
class Said:
    """What a command printed, and its exit code."""

    code: int
    out: str
    err: str

    @property
    def document(self) -> Any:
        return json.loads(self.out)


@pytest.fixture
def run(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> Any:
    """Runs a command in this process, and says its failures as `overspill` does.

    Not by `overspill.__main__`: that sets up the logs of the whole process.
    """

    def command(*arguments: object) -> Said:
        given = [*map(str, arguments), "--folder", str(tmp_path / "examples")]
        code, fault = 0, ""
        capsys.readouterr()  # What was logged before it.
        try:
            app(args=given, prog_name="overspill examples")
        except SystemExit as ended:
            code = int(ended.code or 0)
        except (BadChoice, CannotExport, NoExamples) as error:
            code, fault = 1, f"error: {error}\n"
        said = capsys.readouterr()
        return Said(code, said.out, said.err + fault)

    return command


def png(shade: int) -> bytes:
    out = io.BytesIO()
    Image.new("L", (4, 2), shade).save(out, "PNG")
    return out.getvalue()


def picture(shade: int, label: str | None, **changes: Any) -> Captured:
    request = Request(
        id=f"p{shade}",
        device="cam1",
        model="fashion",
        reason=Reason.HARD,
        expires_at_ms=1,
        medium=Medium(media_type="image/png", data=png(shade)),
        edge=EdgeOpinion(label="bag", confidence=0.4, version="3"),
    ).model_copy(update=changes)
    result = Result(
        id=request.id,
        device="cam1",
        model="fashion",
        status=Status.OK,
        version="9",
        label=label,
        confidence=None if label is None else 0.9,
    )
    return Captured(request, "agent-1", result, MODEL, 1_000 + shade, batched=True)


def rows(*values: float, label: str = "shirt", dtype: str = "float32") -> Captured:
    array = np.array([values], dtype)
    tensors = {"x": Tensor(dtype=dtype, shape=list(array.shape), data=array.tobytes())}
    made = picture(round(values[0]), label, medium=None, tensors=tensors)
    request = made.request.model_copy(update={"model": "rows"})
    model = replace(MODEL, name="rows", preprocess=None)
    return replace(made, request=request, model=model)


def keep(folder: Path, *captured: Captured) -> ExampleStore:
    whole = Quota(100, 10**8)
    store = ExampleStore(folder, quotas=Quotas(whole, whole, whole), reserve_bytes=0)
    store.keep(captured)
    return store


@pytest.fixture
def some(tmp_path: Path) -> None:
    keep(
        tmp_path / "examples",
        picture(10, "T-shirt/top"),
        picture(20, "T-shirt/top"),
        picture(30, "bag"),
        picture(40, None),
        picture(50, "bag", device="cam2", reason=Reason.AUDIT),
    ).close()


@pytest.mark.usefixtures("some")
def test_what_is_kept_is_listed_by_what_chooses(run: Any) -> None:
    listed = run("list", "--json").document
    assert listed["count"] == 5
    assert listed["models"] == {
        "fashion": {"T-shirt/top": 2, "bag": 2, "(no label)": 1}
    }
    assert [each["at_ms"] for each in listed["examples"]] == [
        1050,
        1040,
        1030,
        1020,
        1010,
    ]
    for arguments, count in (
        (("--class", "bag"), 2),
        (("--reason", "audit"), 1),
        (("--disagreed",), 2),
        (("--device", "agent-1/cam2"), 1),
        (("--model", "other"), 0),
        (("--older", "1h"), 5),
    ):
        assert run("list", "--json", *arguments).document["count"] == count, arguments
    said = run("list", "--limit", "1")
    assert "T-shirt/top 2" in said.out
    assert "1 shown, of 5" in said.err


@pytest.mark.usefixtures("some")
def test_one_example_is_shown_and_saved(run: Any, tmp_path: Path) -> None:
    newest = run("list", "--json").document["examples"][0]
    said = run("show", newest["digest"][:12], "--save", tmp_path / "a.png")
    assert said.code == 0
    assert "cloud    bag 0.90" in said.out
    assert "edge     bag 0.40, version 3" in said.out
    assert "agreed" in said.out
    assert (tmp_path / "a.png").read_bytes() == png(50)
    assert run("show", newest["digest"], "--json").document["reason"] == "audit"
    unknown = run("show", "ffff0000ffff")
    assert unknown.code == 1
    assert unknown.err.startswith("error: none begins with 'ffff0000ffff'")


@pytest.mark.usefixtures("some")
def test_pictures_are_exported_as_numpy_reads_them(run: Any, tmp_path: Path) -> None:
    file = tmp_path / "hard.npz"
    said = run("export", file)
    assert said.code == 0, said.err
    assert said.out == f"4 examples of 2 classes in {file}\n"
    assert "1 left out: the cloud gave no label" in said.err
    with np.load(file, allow_pickle=False) as held:
        assert held["x"].dtype == np.uint8
        assert held["x"].shape == (4, 2, 4, 1)
        assert tuple(held["names"]) == LABELS
        by_shade = dict(zip(held["x"][:, 0, 0, 0], held["y"], strict=True))
        assert by_shade == {10: 1, 20: 1, 30: 2, 50: 2}
    again = run("export", file)
    assert again.code == 1
    assert "--force replaces it" in again.err
    document = run("export", file, "--force", "--json", "--class", "bag").document
    assert document["classes"] == {"bag": 2}


@pytest.mark.usefixtures("some")
def test_pictures_are_exported_into_a_folder_by_class(run: Any, tmp_path: Path) -> None:
    folder = tmp_path / "hard"
    assert run("export", folder).code == 0
    assert {each.name for each in folder.iterdir()} == {"T-shirt_top", "bag"}
    shades = {Image.open(each).getpixel((0, 0)) for each in folder.glob("bag/*.png")}
    assert shades == {30, 50}
    assert "name a new folder" in run("export", folder).err


def test_rows_are_exported_as_they_were_sent(run: Any, tmp_path: Path) -> None:
    keep(
        tmp_path / "examples",
        rows(1, 2, 3),
        rows(4, 5, 6, label="bag"),
        rows(7, 8, label="bag"),
        rows(9, 9, 9, dtype="int32"),
    )
    file = tmp_path / "rows.npz"
    said = run("export", file, "--model", "rows")
    assert said.code == 0, said.err
    assert "2 left out: it has another shape or dtype than most" in said.err
    with np.load(file) as held:
        assert sorted(map(tuple, held["x"])) == [(1, 2, 3), (4, 5, 6)]
        assert held["x"].dtype == np.float32
    assert "it is no picture" in run("export", tmp_path / "no").err
    assert not (tmp_path / "no").exists()


def test_examples_of_several_workers_are_one_data_set(run: Any, tmp_path: Path) -> None:
    folder = tmp_path / "examples"
    one = keep(folder, picture(1, "bag"), picture(2, "bag"))
    two = keep(folder, picture(2, "bag"), picture(3, "shirt"))
    assert run("list", "--json").document["count"] == 4
    file = tmp_path / "hard.npz"
    assert run("export", file).code == 0
    with np.load(file) as held:
        assert sorted(held["x"][:, 0, 0, 0]) == [1, 2, 3]
    one.close()
    two.close()


def test_two_models_are_two_data_sets(run: Any, tmp_path: Path) -> None:
    keep(tmp_path / "examples", picture(1, "bag"), rows(1, 2, 3))
    said = run("export", tmp_path / "a.npz")
    assert said.code == 1
    assert said.err == (
        "error: there are examples of fashion, rows: say which --model\n"
    )


def test_a_device_s_examples_are_purged_beside_a_worker(
    run: Any, tmp_path: Path
) -> None:
    folder = tmp_path / "examples"
    store = keep(folder, picture(1, "bag"), picture(2, "bag", device="cam2"))
    refused = run("purge", "--all", "--device", "agent-1/cam2")
    assert refused.code == 1
    assert "needs --yes" in refused.err
    said = run("purge", "--all", "--device", "agent-1/cam2", "--yes", "--json")
    assert said.document == {"purged": 1, "models": {"fashion": 1}}
    assert len(list(folder.rglob("*.example"))) == 1
    # The worker goes on, and knows.
    (told,) = store.keep([picture(2, "bag")])
    assert told.kept
    assert not told.again
    (left,) = run("list", "--json", "--limit", "1").document["examples"]
    assert run("purge", left["digest"]).out == "purged 1 examples\n"
    assert "say which" in run("purge").err
    assert "say which" in run("purge", left["digest"], "--model", "a").err


def test_a_purge_reaches_what_a_killed_worker_has_left_without_a_row(
    run: Any, tmp_path: Path
) -> None:
    folder = tmp_path / "examples"
    keep(folder, picture(1, "bag"), picture(2, "bag")).close()
    part = Part(folder / "part-1")
    index = part.open()
    with index.writing():
        index.take_out("fashion", next(index.rows()).digest)
    index.close()
    assert run("list", "--json").document["count"] == 1
    assert run("purge", "--all", "--yes", "--json").document["purged"] == 2
    assert list(folder.rglob("*.example")) == []


@pytest.mark.usefixtures("some")
def test_a_damaged_file_is_left_out(run: Any, tmp_path: Path) -> None:
    damaged = min((tmp_path / "examples").rglob("*.example"))
    damaged.write_bytes(b"not an example")
    said = run("export", tmp_path / "hard.npz", "--json")
    assert said.code == 0, said.err
    left_out = said.document["left_out"]
    assert (
        left_out.get("its file is gone or damaged", 0)
        + said.document["examples"]
        + left_out.get("the cloud gave no label", 0)
        == 5
    )


def test_a_folder_without_examples_is_said_to_be_one(tmp_path: Path) -> None:
    nothing = tmp_path / "nothing"
    said = subprocess.run(
        [*python("overspill"), "examples", "list", "--folder", str(nothing)],
        capture_output=True,
        text=True,
        env=environment(),
        check=False,
        timeout=50,
    )
    assert said.returncode == 1
    assert said.stderr.startswith(f"error: no examples are kept in {nothing}: workers")
    assert len(said.stderr.splitlines()) == 1
