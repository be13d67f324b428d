"""Bundles of no real model: seeded bytes of the size that was asked for."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Final

import numpy as np

from overspill.simulate.plan import AFTER, BEFORE, MODEL, Plan

MOVED_SHARE: Final = 0.3


def write_bundles(plan: Plan, folder: Path) -> tuple[Path, Path]:
    """The folders of the version that agents have and of the one that is rolled out.

    Model files are int8 noise; the second differs from the first as a fine-tuned one
    would: some weights moved by a step.

    Raises:
        OSError: the disk is full.
    """
    rng = np.random.default_rng(plan.seed)
    first = rng.normal(0, 30, plan.model_bytes).clip(-127, 127).astype(np.int8)
    moved = rng.random(plan.model_bytes) < MOVED_SHARE
    step = rng.choice(np.array([-1, 1], np.int8), plan.model_bytes)
    second = np.where(moved, first + step, first).astype(np.int8)
    return (
        _write(folder / f"{MODEL}-{BEFORE}", BEFORE, first.tobytes()),
        _write(folder / f"{MODEL}-{AFTER}", AFTER, second.tobytes()),
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
