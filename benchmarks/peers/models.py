"""The models that every contender serves, written into one repository.

`noop`   1 KB in, its first byte out (LiteRT for ours; the peers run no model at all).
`stub`   a chain of small matrix products whose length is a + b·n, calibrated here to
         6 ms + 0.6 ms a row. Not a sleep: a sleep would let threads overlap what one
         processor cannot, and no SavedModel can sleep.
`resnet` the example's ResNet.

    python -m benchmarks.peers.models FOLDER
"""

from __future__ import annotations

import json
import os
import shutil
import sys
import time
from pathlib import Path
from typing import Any, Final

ROOT: Final = Path(__file__).parent.parent.parent
RESNET: Final = ROOT / "examples" / "fashion" / "cloud" / "fashion" / "1"
FIXED_MS: Final = 6.0
ROW_MS: Final = 0.6
STUB_MAX_BATCH: Final = 32
SIDE: Final = 96
TRIAL_STEPS: Final = 400
REPEATS: Final = 100


def write_repository(folder: Path) -> dict[str, float]:
    """Write the three; gives what the stub was calibrated to.

    Returns:
        Microseconds a step of the chain, and the milliseconds that a batch of 1 and of
        32 took afterwards.
    """
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
    shutil.copytree(RESNET, folder / "resnet" / "1")
    _write_noop(folder / "noop" / "1")
    trial = folder / ".trial"
    _write_stub(trial, float(TRIAL_STEPS), 0.0)
    step_ms = _milliseconds(trial, 1) / TRIAL_STEPS
    shutil.rmtree(trial)
    final = folder / "stub" / "1"
    _write_stub(final, FIXED_MS / step_ms, ROW_MS / step_ms)
    (final / "model.json").write_text(json.dumps({"max_batch": STUB_MAX_BATCH}))
    return {
        "step_us": round(step_ms * 1000, 2),
        "stub_1_ms": round(_milliseconds(final, 1), 2),
        "stub_32_ms": round(_milliseconds(final, 32), 2),
    }


def _write_noop(folder: Path) -> None:
    import tensorflow as tf

    def first(payload: Any) -> dict[str, Any]:  # noqa: ANN401 - untyped library
        return {"first": payload[:, :1]}

    module = tf.Module()
    spec = tf.TensorSpec([None, 1024], tf.uint8, name="payload")
    module.serve = tf.function(first, input_signature=[spec])
    saved = folder / ".saved"
    tf.saved_model.save(module, str(saved), {"serving_default": module.serve})
    converted = tf.lite.TFLiteConverter.from_saved_model(str(saved)).convert()
    shutil.rmtree(saved)
    (folder / "model.tflite").write_bytes(converted)


def _write_stub(folder: Path, fixed_steps: float, row_steps: float) -> None:
    import tensorflow as tf

    module = tf.Module()
    module.turn = tf.Variable(tf.linalg.qr(tf.random.normal([SIDE, SIDE]))[0])

    def serve(payload: Any) -> dict[str, Any]:  # noqa: ANN401 - untyped library
        rows = tf.cast(tf.shape(payload)[0], tf.float32)
        steps = tf.cast(tf.round(fixed_steps + row_steps * rows), tf.int32)
        _, turned = tf.while_loop(
            lambda step, _: step < steps,
            lambda step, matrix: (step + 1, tf.matmul(matrix, module.turn)),
            (tf.constant(0), tf.eye(SIDE)),
        )
        # The chain must be needed, or the graph optimiser drops it.
        scores = tf.cast(payload[:, :10], tf.float32) + 1e-9 * turned[0, 0]
        return {"scores": scores}

    spec = tf.TensorSpec([None, 1024], tf.uint8, name="payload")
    module.serve = tf.function(serve, input_signature=[spec])
    tf.saved_model.save(module, str(folder), {"serving_default": module.serve})


def _milliseconds(folder: Path, rows: int) -> float:
    import tensorflow as tf

    model = tf.saved_model.load(str(folder))
    serve = model.signatures["serving_default"]
    payload = tf.zeros([rows, 1024], tf.uint8)
    taken = []
    for _ in range(REPEATS):
        started = time.perf_counter()
        serve(payload=payload)["scores"].numpy()
        taken.append((time.perf_counter() - started) * 1000)
    # The least: whatever else runs on the machine only ever adds.
    return min(taken)


if __name__ == "__main__":
    print(json.dumps(write_repository(Path(sys.argv[1]))))
