"""What every peer serves: the same three models, called in the same way.

A peer brings its queue, its processes and its batches; the model is not its concern.
"""

from __future__ import annotations

import base64
import os
import threading
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, Final

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")

URL: Final = os.environ.get("BENCH_AMQP_URL", "")
QUEUE: Final = os.environ.get("BENCH_QUEUE", "")
RESULTS: Final = os.environ.get("BENCH_RESULTS", "")
PORT: Final = int(os.environ.get("BENCH_PORT", "0"))
# Whether to give up speed for what the others promise, or to run as it comes.
SAFE: Final = os.environ.get("BENCH_SAFE") == "1"
MAX_BATCH: Final = int(os.environ.get("BENCH_MAX_BATCH", "32"))
LINGER_S: Final = float(os.environ.get("BENCH_LINGER_S", "0.01"))
MODELS: Final = ("noop", "stub", "resnet")

_served: dict[str, Callable[[Sequence[bytes]], list[int]]] = {}
_loading: Final = threading.Lock()


def decoded(text: str) -> bytes:
    """The bytes that JSON carried."""
    return base64.b64decode(text)


def answers(model: str, bodies: Sequence[bytes]) -> list[int]:
    """One small number for each body, from one call of the model."""
    if model == "noop":
        return [each[0] for each in bodies]
    with _loading:
        if not _served:
            _served.update(_loaded())
    return _served[model](bodies)


def load() -> None:
    """Load and warm the models, before the first request."""
    answers("stub", [bytes(1024)])
    for size in (1, 2, MAX_BATCH):
        answers("stub", [bytes(1024)] * size)
        answers("resnet", [bytes(4 * 28 * 28)] * size)


def _loaded() -> dict[str, Callable[[Sequence[bytes]], list[int]]]:
    import numpy as np
    import tensorflow as tf

    folder = Path(os.environ["BENCH_MODELS"])

    def open_model(name: str, input_: str, dtype: Any, shape: tuple[int, ...]) -> Any:
        model = tf.saved_model.load(str(folder / name / "1"))
        serve = model.signatures["serving_default"]

        def call(bodies: Sequence[bytes]) -> list[int]:
            rows = np.frombuffer(b"".join(bodies), dtype).reshape(len(bodies), *shape)
            logits = next(iter(serve(**{input_: tf.constant(rows)}).values()))
            return [int(each) for each in np.argmax(logits.numpy(), axis=1)]

        call.model = model  # type: ignore[attr-defined] # or it is collected
        return call

    return {
        "stub": open_model("stub", "payload", np.uint8, (1024,)),
        "resnet": open_model("resnet", "image", np.float32, (28, 28, 1)),
    }
