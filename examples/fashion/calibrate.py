"""Find an edge model's threshold for a stated target, and write its manifest. Trains nothing.

By the code of `overspill model build`, on the 5,000 validation images: a fifth sets the
temperatures, the rest the threshold. The test images, and with them those that the demo
sends, set nothing.
"""

from __future__ import annotations

import argparse
import functools
from pathlib import Path
from typing import TYPE_CHECKING, Final, get_args

import numpy as np

from builder.adapters import measuring
from builder.core import draft, promise
from builder.core.quality import Answers, temperature_of
from builder.core.splits import split
from bundle.manifest import Limits
from cascade.targets import Unsupported, parse_target
from examples.fashion import (
    architectures,
    cloud_model,
    data,
    labelled,
    manifests,
    reports,
)

if TYPE_CHECKING:
    from collections.abc import Callable

    from numpy.typing import NDArray

    from builder.core.labelled import Labelled
    from builder.core.splits import Split

HERE: Final = Path(__file__).resolve().parent

NAME: Final = "fashion"
VERSIONS: Final[dict[architectures.EdgeSize, str]] = {"tiny": "1", "small": "2"}
TARGETS: Final[dict[architectures.EdgeSize, str]] = {
    "tiny": "at most 20% spilled, with 95% confidence",
    "small": "at most 0.5 points worse than the cloud, with 95% confidence",
}
SIGNATURE: Final = ("image", "logits")
LIMITS: Final = Limits(max_payload_bytes=65_536, max_pixels=1_000_000)


def main() -> None:
    """Write the manifest and what was measured."""
    options = _parser().parse_args()
    size: architectures.EdgeSize = options.size
    try:
        fashion = labelled.load()
    except data.MissingDatasetError as error:
        raise SystemExit(f"calibrate: {error}") from None
    parts = split(fashion, options.seed, trains=False)
    folder = HERE / "edge" / size
    model = folder / draft.MODEL_FILE

    print(f"asking {size} and the cloud model", flush=True)
    edge = answers(
        fashion,
        parts,
        lambda images: measuring.run_tflite(model, data.as_input(images)).outputs,
    )
    cloud = answers(
        fashion,
        parts,
        functools.partial(cloud_model.logits_of, cloud_model.DEFAULT_FOLDER),
    )
    target = parse_target(options.target or TARGETS[size])
    found = promise.calibrate(edge, cloud, target, None)
    if isinstance(found, Unsupported):
        raise SystemExit(f"calibrate: {found.describe()}")
    reading = draft.CloudOutput(SIGNATURE[1], "logits", cloud.temperature)
    manifest = draft.manifest(
        fashion,
        draft.Named(
            NAME,
            VERSIONS[size],
            SIGNATURE,
            LIMITS,
        ),
        draft.CalibratedOn(found, edge, cloud, reading),
    )
    manifests.write(folder / "manifest.json", manifest)
    reports.write(
        reports.FOLDER / f"calibrate_{size}.json",
        {
            "seed": options.seed,
            "target": target.describe(),
            "temperature": edge.temperature,
            "threshold": manifest["decision"]["threshold"],
            **manifest["calibration"]["measured"],
            "distinct_confidences": len(np.unique(edge.confidence)),
        },
    )


def answers(
    fashion: Labelled,
    parts: Split,
    ask: Callable[[NDArray[np.uint8]], NDArray[np.float32]],
) -> Answers:
    """A model's answers to the calibrate part, with the temperature of the choose part.

    Args:
        fashion: the data set.
        parts: which of it serves what.
        ask: gives logits float32 [n, 10] for images uint8 [n, 28, 28].
    """
    chosen, kept = (
        fashion.inputs[rows][..., 0] for rows in (parts.choose, parts.calibrate)
    )
    temperature = temperature_of(ask(chosen), fashion.labels[parts.choose])
    return Answers(ask(kept), fashion.labels[parts.calibrate], temperature)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument(
        "--size", choices=get_args(architectures.EdgeSize), required=True
    )
    parser.add_argument(
        "--seed",
        type=int,
        default=1,
        help="chooses which fifth sets the temperatures, default %(default)s",
    )
    parser.add_argument("--target", help="in words; the default is the example's own")
    return parser


if __name__ == "__main__":
    main()
