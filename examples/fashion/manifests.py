"""What the cloud model says of itself to the workers. Data only, no model is loaded."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from examples.fashion import data

if TYPE_CHECKING:
    from collections.abc import Mapping

CLOUD_MAX_BATCH: Final = 128
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


def write(path: Path, content: Mapping[str, Any]) -> None:
    """Write ``content`` to ``path`` as readable JSON."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")
