"""When a version in the repository counts: not while it is being copied."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from cloud_worker.adapters.library import Holdings, Library
from cloud_worker.adapters.repository import NoRepository
from cloud_worker.core.policy import LATEST, Policy
from cloud_worker.core.shelf import Key

NEVER_S = 1e9


def put(folder: Path, text: str = "model", name: str = "m.tflite") -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    (folder / name).write_text(text)
    return folder


def library(root: Path, **more: object) -> Library:
    """One that believes two equal looks, or a new name, and never mere age."""
    return Library(root, max_batch=8, settle_s=NEVER_S, **more)  # type: ignore[arg-type] # as its own


def versions(held: Holdings, name: str = "m") -> list[str]:
    return [each.version for each in held.shelves[name].versions]


def test_a_version_counts_when_two_looks_find_it_the_same(tmp_path: Path) -> None:
    put(tmp_path / "m" / "1")
    shelves = library(tmp_path)
    assert versions(shelves.look()) == ["1"], "to begin with, what there is must do"
    put(tmp_path / "m" / "2", "half")
    assert versions(shelves.look()) == ["1"]
    put(tmp_path / "m" / "2", "half and more")
    assert versions(shelves.look()) == ["1"]
    held = shelves.look()
    assert versions(held) == ["2", "1"]
    assert held.candidates[Key("m", "2")].source.path.read_text() == "half and more"


def test_a_version_that_gets_its_name_when_it_is_whole_counts_at_once(
    tmp_path: Path,
) -> None:
    put(tmp_path / "m" / "1")
    shelves = library(tmp_path)
    shelves.look()
    put(tmp_path / "m" / ".2.part").rename(tmp_path / "m" / "2")
    assert versions(shelves.look()) == ["2", "1"]


def test_a_version_that_has_lain_there_for_long_counts_at_once(tmp_path: Path) -> None:
    put(tmp_path / "m" / "1")
    shelves = Library(tmp_path, max_batch=8, settle_s=-1.0)
    shelves.look()
    put(tmp_path / "m" / "2")
    assert versions(shelves.look()) == ["2", "1"]


def test_at_the_start_what_has_settled_goes_before_what_is_being_copied(
    tmp_path: Path,
) -> None:
    put(tmp_path / "m" / ".1").rename(tmp_path / "m" / "1")
    put(tmp_path / "m" / "2", "half")
    put(tmp_path / "n" / "1", "half")
    shelves = library(tmp_path)
    first = shelves.look()
    assert (versions(first), versions(first, "n")) == (["1"], ["1"])
    assert versions(shelves.look()) == ["2", "1"]


def test_a_version_that_is_written_over_stays_as_it_was_until_that_is_done(
    tmp_path: Path,
) -> None:
    put(tmp_path / "m" / "1")
    folder = put(tmp_path / "m" / "2")
    shelves = library(tmp_path)
    before = shelves.look().shelves["m"]
    put(folder, "other")
    assert shelves.look().shelves["m"] == before
    (folder / "m.tflite").unlink()
    assert shelves.look().shelves["m"] == before, "no model in it, as yet"
    put(folder, "another")
    assert shelves.look().shelves["m"] == before
    assert shelves.look().shelves["m"] != before


def test_a_deleted_version_and_a_deleted_model_are_gone(tmp_path: Path) -> None:
    for name in ("m", "n"):
        for version in ("1", "2"):
            put(tmp_path / name / version)
    shelves = library(tmp_path)
    shelves.look()
    shutil.rmtree(tmp_path / "m" / "2")
    shutil.rmtree(tmp_path / "n")
    held = shelves.look()
    assert list(held.shelves) == ["m"]
    assert versions(held) == ["1"]
    shutil.rmtree(tmp_path / "m")
    with pytest.raises(NoRepository):
        shelves.look()


def test_a_policy_is_read_at_each_look_and_a_wrong_one_changes_nothing(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    put(tmp_path / "m" / "1")
    policy = tmp_path / "m" / "policy.json"
    shelves = library(tmp_path)
    assert shelves.look().shelves["m"].policy == LATEST
    policy.write_text('{"pinned": "1"}')
    assert shelves.look().shelves["m"].policy == Policy(pinned="1")
    policy.write_text('{"pined": "1"}')
    for _ in range(3):
        assert shelves.look().shelves["m"].policy == Policy(pinned="1")
    assert capsys.readouterr().out.count("pined") == 1
    policy.unlink()
    assert shelves.look().shelves["m"].policy == LATEST


def test_a_model_whose_policy_was_never_right_is_not_served(tmp_path: Path) -> None:
    put(tmp_path / "m" / "1")
    put(tmp_path / "n" / "1")
    (tmp_path / "m" / "policy.json").write_text("{")
    shelves = library(tmp_path)
    assert list(shelves.look().shelves) == ["n"]
    (tmp_path / "m" / "policy.json").write_text('{"latest": true}')
    assert list(shelves.look().shelves) == ["m", "n"]


def test_only_some_models_are_looked_at(tmp_path: Path) -> None:
    for name in ("m", "n"):
        put(tmp_path / name / "1")
    assert list(library(tmp_path, only=["n"]).look().shelves) == ["n"]
    with pytest.raises(NoRepository, match="holds no model named x or y"):
        library(tmp_path, only=["x", "y"]).look()


def test_what_cannot_be_read_waits(tmp_path: Path) -> None:
    put(tmp_path / "m" / "1")
    folder = put(tmp_path / "m" / "2")
    (folder / "variables").symlink_to(tmp_path / "nowhere")
    shelves = library(tmp_path)
    for _ in range(3):
        assert versions(shelves.look()) == ["1"]
