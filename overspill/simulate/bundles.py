"""Bundles of no real model: seeded bytes of the size that was asked for."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Final

import numpy as np

from overspill.simulate.plan import AFTER, BEFORE, MODEL, Plan

# A step of training moves a weight by so much at most.
STEPS: Final = np.arange(-4, 5, dtype=np.int8)


def write_bundles(plan: Plan, folder: Path) -> tuple[Path, Path]:
    """The folders of the version that agents have and of the one that is rolled out.

    Model files are int8 noise; the second differs from the first as a fine-tuned one
    would: some weights moved a little. Where all of them do, nothing is left of it.

    Raises:
        OSError: the disk is full.
    """
    rng = np.random.default_rng(plan.seed)
    first = rng.normal(0, 30, plan.model_bytes).clip(-127, 127).astype(np.int8)
    if plan.moved_share < 1.0:
        moved = rng.random(plan.model_bytes) < plan.moved_share
        second = first + np.where(moved, rng.choice(STEPS, plan.model_bytes), 0)
    else:
        second = rng.integers(-128, 128, plan.model_bytes, np.int8)
    return (
        _write(folder / f"{MODEL}-{BEFORE}", BEFORE, first.tobytes()),
        _write(folder / f"{MODEL}-{AFTER}", AFTER, second.astype(np.int8).tobytes()),
    )


def _write(folder: Path, version: str, model: bytes) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "model.tflite").write_bytes(model)
    (folder / "manifest.json").write_text(
        json.dumps(
            {
                "format": 1,
                "name": MODEL,
                "version": version,
                "model_file": "model.tflite",
            }
        )
    )
    return folder
