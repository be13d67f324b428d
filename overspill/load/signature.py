"""Print what a model takes, as `[[name, dtype, shape], …]`; free lengths are 1.

A process of its own, `python -m overspill.load.signature PATH`.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path

from cloud_worker.adapters.frames import ModelSource
from cloud_worker.adapters.repository import SUFFIXES
from cloud_worker.adapters.runner_child import open_model
from cloud_worker.adapters.runtime import CannotServe, Runner, Tuning


def _open(path: Path) -> Runner:
    formats = [name for name, suffix in SUFFIXES.items() if path.suffix == suffix]
    source = ModelSource(
        name="any",
        version="1",
        format=formats[0] if formats else "saved_model",
        path=path,
        max_batch=1,
    )
    return open_model(source, Tuning(intra_threads=1, inter_threads=1))


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
