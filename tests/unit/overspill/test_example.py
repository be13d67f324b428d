"""The example beside the package, or one clear sentence."""

from __future__ import annotations

from pathlib import Path

import pytest

from overspill.example import Example, ExampleMissing


def test_the_checkout_brings_two_versions_of_one_model() -> None:
    first, second = Example.beside_package().manifests()

    assert first.name == second.name == Example.beside_package().model
    assert (first.version, second.version) == ("1", "2")
    assert first.labels == second.labels


def test_a_wheel_does_not_and_says_where_it_is(tmp_path: Path) -> None:
    with pytest.raises(ExampleMissing, match="in a clone of the repository"):
        Example.at(tmp_path)
