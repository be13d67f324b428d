"""What a model says of itself to the programs that serve it. Data only, no model is loaded."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from examples.fashion import data

if TYPE_CHECKING:
    from collections.abc import Mapping

    from examples.fashion.architectures import EdgeSize

HERE: Final = Path(__file__).resolve().parent
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


def bundle_folder(size: EdgeSize) -> Path:
    """Return the bundle source folder of an edge model."""
    return HERE / "edge" / size


def write(path: Path, content: Mapping[str, Any]) -> None:
    """Write ``content`` to ``path`` as readable JSON."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")
