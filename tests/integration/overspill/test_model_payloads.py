"""Payloads of a model's own shape, which a process of its own finds out."""

from __future__ import annotations

from pathlib import Path

import pytest

from overspill.load.payloads import BadPayload, read_payloads

MODELS = Path(__file__).parents[2] / "contract" / "worker_models"


def test_a_model_is_asked_what_it_takes() -> None:
    found = read_payloads(f"model:{MODELS / 'line_lite' / '1' / 'line.tflite'}")

    assert found[0].tensors is not None
    assert [(n, t.dtype, t.shape) for n, t in found[0].tensors.items()] == [
        ("x", "float32", [1, 4])
    ]


def test_a_file_that_is_no_model_is_refused_with_the_reason(tmp_path: Path) -> None:
    file = tmp_path / "broken.tflite"
    file.write_bytes(b"not a model")

    with pytest.raises(BadPayload, match=r"broken\.tflite"):
        read_payloads(f"model:{file}")
