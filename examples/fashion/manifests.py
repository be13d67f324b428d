"""What a model says of itself to the programs that serve it. Data only, no model is loaded."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from examples.fashion import data

if TYPE_CHECKING:
    from collections.abc import Mapping

    from examples.fashion.architectures import EdgeSize

NAME: Final = "fashion"
EDGE_VERSIONS: Final[dict[EdgeSize, str]] = {"tiny": "1", "small": "2"}
MODEL_FILE: Final = "model.tflite"
GOLDEN_FILE: Final = "golden.npz"
GOLDEN_TOLERANCE: Final = 0.05
CLOUD_MAX_BATCH: Final = 64
PREPROCESS: Final = {
    "kind": "image",
    "input": "image",
    "width": data.SIDE,
    "height": data.SIDE,
    "channels": 1,
    "scale": data.SCALE,
    "offset": 0.0,
}
DECISION: Final = {"output": "logits", "activation": "logits"}


def cloud_model() -> dict[str, Any]:
    """Return the content of ``model.json`` beside the cloud's SavedModel."""
    return {
        "preprocess": PREPROCESS,
        "labels": list(data.LABELS),
        "max_batch": CLOUD_MAX_BATCH,
        "decision": DECISION,
    }


def edge_bundle(size: EdgeSize, temperature: float, threshold: float) -> dict[str, Any]:
    """Return the manifest of an edge bundle.

    Args:
        size: which of the two edge models.
        temperature: what logits are divided by before the softmax.
        threshold: a request whose largest softmax is below this spills as ``hard``.
    """
    return {
        "format": 1,
        "name": NAME,
        "version": EDGE_VERSIONS[size],
        "model_file": MODEL_FILE,
        "task": "classify",
        "preprocess": PREPROCESS,
        "labels": list(data.LABELS),
        "decision": {
            **DECISION,
            "score": "max_softmax",
            "temperature": temperature,
            "threshold": threshold,
        },
        "limits": {"max_payload_bytes": 65_536, "max_pixels": 1_000_000},
        "golden": {"file": GOLDEN_FILE, "tolerance": GOLDEN_TOLERANCE},
    }


def write(path: Path, content: Mapping[str, Any]) -> None:
    """Write ``content`` to ``path`` as readable JSON."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")
