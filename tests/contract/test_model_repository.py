"""What a worker finds in a folder of models, and what it says of the rest."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from cloud_worker.adapters.repository import (
    NoRepository,
    Sidecar,
    Unservable,
    find_models,
)
from cloud_worker.core.spec import ModelSpec, Padding, TensorSpec


def put(root: Path, *paths: str) -> Path:
    for path in paths:
        (root / path).parent.mkdir(parents=True, exist_ok=True)
        (root / path).write_bytes(b"model")
    return root


def versions(root: Path, name: str) -> list[str]:
    return [each.source.version for each in find_models(root, max_batch=8).models[name]]


def reasons(root: Path) -> dict[str, str]:
    found = find_models(root, max_batch=8)
    return {each.path.name: each.reason for each in found.refused}


def test_each_format_is_known_by_its_files(tmp_path: Path) -> None:
    put(tmp_path, "a/1/saved_model.pb", "b/1/any.keras", "c/1/any.tflite")
    found = find_models(tmp_path, max_batch=8).models
    sources = {name: each[0].source for name, each in found.items()}
    assert {name: each.format for name, each in sources.items()} == {
        "a": "saved_model",
        "b": "keras",
        "c": "tflite",
    }
    assert sources["a"].path == tmp_path / "a" / "1"
    assert sources["c"].path == tmp_path / "c" / "1" / "any.tflite"
    assert sources["a"].max_batch == 8


@pytest.mark.parametrize(
    ("names", "newest_first"),
    [
        (["1", "2", "10"], ["10", "2", "1"]),
        (["1.9", "1.10", "1.2"], ["1.10", "1.9", "1.2"]),
        (["beta", "alpha", "3"], ["3", "beta", "alpha"]),
        (["2024-01-02", "2023-12-31"], ["2024-01-02", "2023-12-31"]),
    ],
)
def test_the_newest_version_comes_first(
    tmp_path: Path, names: list[str], newest_first: list[str]
) -> None:
    put(tmp_path, *(f"m/{name}/m.tflite" for name in names))
    assert versions(tmp_path, "m") == newest_first


def test_a_half_copied_version_hides_no_other(tmp_path: Path) -> None:
    put(tmp_path, "m/1/m.tflite", "m/2/variables/variables.index", "n/1/n.tflite")
    assert versions(tmp_path, "m") == ["1"]
    assert versions(tmp_path, "n") == ["1"]
    assert "half copied" in reasons(tmp_path)["2"]


@pytest.mark.parametrize("name", ["a.b", "Fashion", "a b", "-a", "x" * 65])
def test_a_name_that_would_change_the_routing_is_refused(
    tmp_path: Path, name: str
) -> None:
    put(tmp_path, f"{name}/1/m.tflite", "good/1/m.tflite")
    assert list(find_models(tmp_path, max_batch=8).models) == ["good"]
    assert "not a valid id" in reasons(tmp_path)[name]


def test_a_version_that_cannot_travel_is_refused(tmp_path: Path) -> None:
    put(tmp_path, "m/V1/m.tflite", "m/1/m.tflite")
    assert versions(tmp_path, "m") == ["1"]
    assert "not valid" in reasons(tmp_path)["V1"]


def test_hidden_folders_and_loose_files_are_no_models(tmp_path: Path) -> None:
    put(tmp_path, ".git/1/m.tflite", "m/.3.part/m.tflite", "m/1/m.tflite", "README")
    assert versions(tmp_path, "m") == ["1"]
    assert reasons(tmp_path) == {}


def test_two_models_in_one_version_are_refused(tmp_path: Path) -> None:
    put(tmp_path, "m/1/a.tflite", "m/1/b.keras", "n/1/n.tflite")
    assert "b.keras, a.tflite" in reasons(tmp_path)["1"]


def sidecar(root: Path, text: str) -> Path:
    put(root, "m/2/m.tflite", "m/1/m.tflite")
    (root / "m" / "2" / "model.json").write_text(text)
    return root


def test_model_json_says_what_a_model_file_does_not(tmp_path: Path) -> None:
    said: dict[str, Any] = {
        "preprocess": {"input": "image", "width": 28, "height": 28, "channels": 1},
        "labels": ["a", "b"],
        "max_batch": 3,
        "decision": {"output": "logits"},
        "pad": {"axis": 1, "sizes": [16, 4, 16]},
        "later": "fields are ignored",
    }
    sidecar(tmp_path, json.dumps(said))
    newest = find_models(tmp_path, max_batch=8).models["m"][0]
    assert newest.source.max_batch == 3
    assert newest.source.padding == Padding(1, (4, 16))
    assert newest.sidecar.labels == ["a", "b"]
    assert newest.sidecar.preprocess is not None
    assert newest.sidecar.preprocess.width == 28


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("", "model.json: "),
        ("[]", "model.json: "),
        ('{"max_batch": 0}', "max_batch"),
        ('{"preprocess": {"input": "x"}}', "preprocess.width"),
        ('{"pad": {"axis": 0, "sizes": [4]}}', "pad.axis"),
        ('{"pad": {"axis": 1, "sizes": []}}', "pad.sizes"),
        ('{"decision": {"output": "y", "score": "luck"}}', "decision.score"),
    ],
)
def test_a_wrong_model_json_costs_that_version_only(
    tmp_path: Path, text: str, reason: str
) -> None:
    sidecar(tmp_path, text)
    assert versions(tmp_path, "m") == ["1"]
    assert reason in reasons(tmp_path)["2"]


@pytest.mark.parametrize(
    ("said", "reason"),
    [
        ({"decision": {"output": "z"}}, "decides by output 'z'"),
        ({"pad": {"axis": 1, "sizes": [4]}}, "no input has a free axis 1"),
        ({"labels": ["a", "b" * 1025]}, "a label of 1025 characters"),
        (
            {"preprocess": {"input": "z", "width": 1, "height": 1, "channels": 1}},
            "makes the input 'z'",
        ),
    ],
)
def test_model_json_must_speak_of_the_model_beside_it(
    tmp_path: Path, said: dict[str, Any], reason: str
) -> None:
    put(tmp_path, "m/1/m.tflite")
    found = find_models(tmp_path, max_batch=8).models["m"][0]
    candidate = replace(found, sidecar=Sidecar.model_validate(said))
    x = TensorSpec("x", "float32", (-1, 1))
    with pytest.raises(Unservable, match=reason):
        candidate.served(ModelSpec((x,), (x,), batched=True))


def test_a_missing_folder_is_named(tmp_path: Path) -> None:
    with pytest.raises(NoRepository, match=r"nowhere.*No such file"):
        find_models(tmp_path / "nowhere", max_batch=8)


def test_a_folder_without_a_model_says_what_was_wrong_in_it(tmp_path: Path) -> None:
    (tmp_path / "m" / "1").mkdir(parents=True)
    with pytest.raises(NoRepository, match=r"holds no model.*half copied"):
        find_models(tmp_path, max_batch=8)
