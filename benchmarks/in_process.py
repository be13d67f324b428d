"""The SavedModel called in one process at each batch size: what a pool can hope for."""

from __future__ import annotations

import json
import os
import sys
import time
from pathlib import Path
from typing import Final

import numpy as np

BATCHES: Final = (1, 8, 16, 32, 64, 128)
SECONDS_EACH: Final = 2.0


def images_per_second(model_folder: Path, images: np.ndarray) -> dict[int, float]:
    """Images a second by batch size, float32 [n, 28, 28, 1] in, logits out."""
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
    import tensorflow as tf

    loaded = tf.saved_model.load(str(model_folder))
    serve = loaded.signatures["serving_default"]
    rates = {}
    for batch in BATCHES:
        chosen = np.ascontiguousarray(images[:batch])
        for _ in range(3):
            serve(image=tf.constant(chosen))["logits"].numpy()
        started = time.perf_counter()
        done = 0
        while (taken := time.perf_counter() - started) < SECONDS_EACH:
            serve(image=tf.constant(chosen))["logits"].numpy()
            done += batch
        rates[batch] = done / taken
    return rates


def main() -> None:
    stored = np.load(sys.argv[2])["images"][: max(BATCHES), :, :, None]
    images = (stored / 255).astype(np.float32)
    print(json.dumps(images_per_second(Path(sys.argv[1]), images)))


if __name__ == "__main__":
    main()
