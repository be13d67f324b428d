"""What the tests of the examples serve: the examples' models, and one of token ids."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Final

import numpy as np
from numpy.typing import NDArray

from builder.app import Build, Built
from builder.core.progress import Silent
from builder.settings import BuildFile

ROOT: Final = Path(__file__).parents[3]
EXAMPLES: Final = ROOT / "examples"

# Texts of whole words by their ids: which of two words comes more often. 0 fills up.
WORDS: Final = 20
LENGTH: Final = 12
YES, NO = 3, 7
CLASSES: Final = ["no", "yes"]


def texts(
    count: int, longest: int, seed: int
) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Token ids [count, longest], filled up with 0, and the class of each."""
    chance = np.random.default_rng(seed)
    ids = chance.integers(1, WORDS, (count, longest))
    lengths = chance.integers(4, longest + 1, (count, 1))
    ids[np.arange(longest) >= lengths] = 0
    more = (ids == YES).sum(axis=1) - (ids == NO).sum(axis=1)
    clear = more != 0
    return ids[clear], (more[clear] > 0).astype(np.int64)


def cloud_of_tokens(folder: Path) -> None:
    """Write a SavedModel that knows, of texts of any length, which word prevails."""
    import tensorflow as tf

    def serve(ids: tf.Tensor) -> dict[str, tf.Tensor]:
        more = tf.reduce_sum(
            tf.cast(ids == YES, tf.float32) - tf.cast(ids == NO, tf.float32), axis=1
        )
        return {"logits": tf.stack([-more, more], axis=1)}

    taken = tf.TensorSpec((None, None), tf.int32, name="ids")
    signature = tf.function(serve, input_signature=[taken])
    tf.saved_model.save(
        tf.Module(), str(folder), signatures={"serving_default": signature}
    )
    said = {
        "labels": CLASSES,
        "decision": {"output": "logits"},
        "pad": {"axis": 1, "sizes": [LENGTH, 4 * LENGTH]},
    }
    (folder / "model.json").write_text(json.dumps(said))


def built_of_tokens(folder: Path, cloud: Path) -> Built:
    """Distil the default student for token ids, and calibrate it."""
    ids, labels = texts(6_000, LENGTH, seed=1)
    _, first = np.unique(ids, axis=0, return_index=True)
    np.savez(folder / "texts.npz", x=ids[first], y=labels[first], names=CLASSES)
    options = BuildFile.model_validate(
        {
            "name": "words",
            "version": "1",
            "target": "at most 20% spilled, with 90% confidence",
            "input": "ids",
            "cloud": {"model": str(cloud)},
            "data": {"source": "texts.npz"},
            "student": {"epochs": 2, "peak_rate": 0.02},
            "candidates": {"quantizations": ["float16"]},
            "keep": {"max_kb": 12},
        }
    )
    return Build(options, folder, folder / "built", Silent()).run()


def pool_models(folder: Path, tokens: Path) -> Path:
    """A model repository of both examples and of the model of token ids."""
    for name in ("diamonds", "spoken"):
        shutil.copytree(EXAMPLES / name / "cloud" / name, folder / name)
    shutil.copytree(tokens, folder / "words" / "1")
    return folder
