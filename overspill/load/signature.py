"""Print what a model takes, as `[[name, dtype, shape], …]`; free lengths are 1.

A process of its own, `python -m overspill.load.signature PATH`.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path

from cloud_worker.adapters.litert import LiteRtRunner
from cloud_worker.adapters.runtime import CannotServe, Runner
from cloud_worker.adapters.tensorflow import open_keras, open_saved_model


def _open(path: Path) -> Runner:
    if path.suffix == ".tflite":
        return LiteRtRunner(path, threads=1)
    if path.suffix == ".keras":
        return open_keras(path, intra_threads=1, inter_threads=1)
    return open_saved_model(path, intra_threads=1, inter_threads=1)


def main() -> None:
    """Load the model that is named and print its inputs."""
    try:
        inputs = _open(Path(sys.argv[1])).spec.inputs
    except CannotServe as error:
        sys.stderr.write(f"{error}\n")
        sys.exit(1)
    shapes = [
        [each.name, each.dtype, [max(side, 1) for side in each.shape or (1,)]]
        for each in inputs
    ]
    sys.stdout.write(json.dumps(shapes) + "\n")


if __name__ == "__main__":
    main()
