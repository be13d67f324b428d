"""Measure the committed models on the test images and write measured.json. Trains nothing."""

from __future__ import annotations

import argparse
import functools
import json
import platform
from pathlib import Path
from typing import TYPE_CHECKING, Any, get_args

import numpy as np

from cascade.scores import confidences
from examples.fashion import (
    architectures,
    cloud_model,
    data,
    edge_runtime,
    manifests,
    reports,
    training,
)
from examples.fashion.train_edge import weights_path

if TYPE_CHECKING:
    from collections.abc import Mapping

    from numpy.typing import NDArray

HERE = Path(__file__).resolve().parent

FIRST = 1_000


def main() -> None:
    """Measure every model, alone and in cascade, and write the figures."""
    options = _parser().parse_args()
    try:
        test = data.load(options.data).test
    except data.MissingDatasetError as error:
        raise SystemExit(f"evaluate: {error}") from None

    print("cloud: 10,000 images", flush=True)
    cloud = cloud_model.logits_of(cloud_model.DEFAULT_FOLDER, test.images)
    measured: dict[str, Any] = {
        "test_images": len(test.labels),
        "seeds": {
            path.stem: reports.read(path)["seed"]
            for path in sorted(reports.FOLDER.glob("*.json"))
        }
        | {"split": data.SPLIT_SEED},
        "machine": f"{platform.system()} {platform.machine()}",
        "cloud": {
            "parameters": architectures.build_cloud().count_params(),
            "bytes": _bytes_below(cloud_model.DEFAULT_FOLDER),
            **_accuracies("float", cloud, test.labels),
        },
        "edge": {},
    }
    for size in get_args(architectures.EdgeSize):
        print(f"{size}: 10,000 images, one at a time", flush=True)
        measured["edge"][size] = _edge(size, test, cloud, options.runs)
    reports.write(options.out, measured)
    print(table(measured))


def table(measured: Mapping[str, Any]) -> str:
    """Return the Markdown table of README.md."""
    lines = [
        "| model | parameters | bytes | float32 | int8 | spilled | cascade |",
        "| --- | --- | --- | --- | --- | --- | --- |",
        "| cloud | {parameters:,} | {bytes:,} | {float_accuracy:.2%} | | | |".format_map(
            measured["cloud"]
        ),
    ]
    lines += [
        f"| {size} | {edge['parameters']:,} | {edge['bytes']:,} | "
        f"{edge['float_accuracy']:.2%} | {edge['int8_accuracy']:.2%} | "
        f"{edge['spill']:.2%} | {edge['cascade_accuracy']:.2%} |"
        for size, edge in measured["edge"].items()
    ]
    return "\n".join(lines)


def _edge(
    size: architectures.EdgeSize,
    test: data.Split,
    cloud: NDArray[np.float32],
    runs: int,
) -> dict[str, Any]:
    folder = manifests.bundle_folder(size)
    model_file = folder / manifests.MODEL_FILE
    manifest = json.loads((folder / "manifest.json").read_text(encoding="utf-8"))
    decision = manifest["decision"]
    model = architectures.build_edge(size)
    model.load_weights(weights_path(size))
    floats = training.logits_of(functools.partial(model, training=False), test.images)

    inputs = data.as_input(test.images)
    edge = edge_runtime.logits_of(model_file, inputs)
    confident = confidences(edge, temperature=decision["temperature"])
    spilled = confident < decision["threshold"]
    together = np.where(spilled[:, np.newaxis], cloud, edge)
    return {
        "version": manifest["version"],
        "parameters": model.count_params(),
        "bytes": model_file.stat().st_size,
        "invoke_p50_ms": round(
            edge_runtime.invoke_p50_ms(model_file, inputs[0], runs), 4
        ),
        **_accuracies("float", floats, test.labels),
        **_accuracies("int8", edge, test.labels),
        "temperature": decision["temperature"],
        "threshold": decision["threshold"],
        "target": manifest["calibration"]["target"]["text"],
        "calibrated_on": manifest["calibration"]["measured"]["examples"],
        "spill": float(np.mean(spilled)),
        "spill_first_1000": float(np.mean(spilled[:FIRST])),
        **_accuracies("cascade", together, test.labels),
        "golden_largest_difference": _golden_difference(folder),
    }


def _accuracies(
    name: str, logits: NDArray[np.float32], labels: NDArray[np.uint8]
) -> dict[str, float]:
    return {
        f"{name}_accuracy": training.accuracy(logits, labels),
        f"{name}_accuracy_first_1000": training.accuracy(
            logits[:FIRST], labels[:FIRST]
        ),
    }


def _golden_difference(folder: Path) -> float:
    with np.load(folder / manifests.GOLDEN_FILE) as golden:
        inputs, wanted = golden["in_image"], golden["out_logits"]
    logits = edge_runtime.logits_of(folder / manifests.MODEL_FILE, inputs)
    return float(np.max(np.abs(logits - wanted)))


def _bytes_below(folder: Path) -> int:
    return sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument(
        "--seed",
        type=int,
        default=1,
        help="accepted like everywhere here; measuring uses no chance",
    )
    parser.add_argument(
        "--runs",
        type=int,
        default=5_000,
        help="calls timed for the median, default %(default)s",
    )
    parser.add_argument(
        "--data", type=Path, default=data.DEFAULT_FOLDER, help="default %(default)s"
    )
    parser.add_argument(
        "--out",
        type=Path,
        default=HERE / "measured.json",
        help="default measured.json beside this script",
    )
    return parser


if __name__ == "__main__":
    main()
