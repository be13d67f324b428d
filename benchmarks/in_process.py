"""The SavedModel called in one process: what a pool can hope for.

Reads from standard input how many seconds to run, a line each, and answers with
images a second at its best batch size; before that it says which size is best.
"""

from __future__ import annotations

import json
import os
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

BATCHES: Final = (1, 8, 16, 32, 64, 128)
SECONDS_EACH: Final = 1.5
WARM_CALLS: Final = 3


def loaded(folder: Path, images: NDArray[np.float32]) -> Callable[[int], Any]:
    """A function that runs one batch of a size: float32 [n, 28, 28, 1] in, logits out."""
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
    import tensorflow as tf

    model = tf.saved_model.load(str(folder))
    serve = model.signatures["serving_default"]
    batches = {size: np.ascontiguousarray(images[:size]) for size in BATCHES}

    def call(size: int) -> Any:  # noqa: ANN401 - untyped library
        return serve(image=tf.constant(batches[size]))["logits"].numpy()

    call.model = model  # type: ignore[attr-defined] # or it is collected
    return call


def per_second(call: Callable[[int], Any], size: int, seconds: float) -> float:
    """Images a second at one batch size."""
    started = time.perf_counter()
    done = 0
    while (taken := time.perf_counter() - started) < seconds:
        call(size)
        done += size
    return done / taken


def main() -> None:
    stored = np.load(sys.argv[2])["images"][: max(BATCHES), :, :, None]
    call = loaded(Path(sys.argv[1]), (stored / 255).astype(np.float32))
    for size in BATCHES:
        for _ in range(WARM_CALLS):
            call(size)
    rates = {size: per_second(call, size, SECONDS_EACH) for size in BATCHES}
    best = max(rates, key=lambda size: rates[size])
    print(json.dumps({"rates": rates, "best": best}), flush=True)
    for line in sys.stdin:
        print(per_second(call, best, float(line)), flush=True)


if __name__ == "__main__":
    main()
