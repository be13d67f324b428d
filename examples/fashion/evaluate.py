"""Measure the committed models on the test images and write measured.json. Trains nothing."""

from __future__ import annotations

import argparse
import json
import platform
from pathlib import Path
from typing import TYPE_CHECKING, Any, get_args

import numpy as np

from builder.adapters import measuring
from cascade.scores import confidences
from examples.fashion import (
    architectures,
    cloud_model,
    data,
    reports,
    training,
)

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
            **_accuracies("accuracy", cloud, test.labels),
        },
        "edge": {},
    }
    for size in get_args(architectures.EdgeSize):
        print(f"{size}: 10,000 images, one at a time", flush=True)
        measured["edge"][size] = _edge(size, test, cloud)
    reports.write(options.out, measured)
    print(table(measured))


def table(measured: Mapping[str, Any]) -> str:
    """Return the Markdown table of README.md."""
    lines = [
        "| model | parameters | bytes | alone | spilled | cascade |",
        "| --- | --- | --- | --- | --- | --- |",
        "| cloud | {parameters:,} | {bytes:,} | {accuracy:.2%} | | |".format_map(
            measured["cloud"]
        ),
    ]
    lines += [
        f"| {size} | {edge['parameters']:,} | {edge['bytes']:,} | "
        f"{edge['accuracy']:.2%} | {edge['spill']:.2%} | "
        f"{edge['cascade_accuracy']:.2%} |"
        for size, edge in measured["edge"].items()
    ]
    return "\n".join(lines)


def _edge(
    size: architectures.EdgeSize, test: data.Split, cloud: NDArray[np.float32]
) -> dict[str, Any]:
    folder = HERE / "edge" / size
    model_file = folder / "model.tflite"
    manifest = json.loads((folder / "manifest.json").read_text(encoding="utf-8"))
    decision = manifest["decision"]
    run = measuring.run_tflite(model_file, data.as_input(test.images))
    edge = run.outputs
    confident = confidences(edge, temperature=decision["temperature"])
    spilled = confident < decision["threshold"]
    together = np.where(spilled[:, np.newaxis], cloud, edge)
    return {
        "version": manifest["version"],
        "parameters": architectures.build_edge(size).count_params(),
        "bytes": model_file.stat().st_size,
        "invoke_p50_ms": round(run.p50_ms, 4),
        **_accuracies("accuracy", edge, test.labels),
        "temperature": decision["temperature"],
        "threshold": decision["threshold"],
        "target": manifest["calibration"]["target"]["text"],
        "calibrated_on": manifest["calibration"]["measured"]["examples"],
        "spill": float(np.mean(spilled)),
        "spill_first_1000": float(np.mean(spilled[:FIRST])),
        **_accuracies("cascade_accuracy", together, test.labels),
        "golden_largest_difference": _golden_difference(folder),
    }


def _accuracies(
    name: str, logits: NDArray[np.float32], labels: NDArray[np.uint8]
) -> dict[str, float]:
    return {
        name: training.accuracy(logits, labels),
        f"{name}_first_1000": training.accuracy(logits[:FIRST], labels[:FIRST]),
    }


def _golden_difference(folder: Path) -> float:
    with np.load(folder / "golden.npz") as golden:
        inputs, wanted = golden["in_image"], golden["out_logits"]
    logits = measuring.run_tflite(folder / "model.tflite", inputs).outputs
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
