"""What an edge model says by itself, without a daemon, a broker or a cloud.

A process of its own, `python -m overspill.demo.edge_alone`: the runtime writes to
standard error as it likes, which must not land in the middle of a live view.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from bundle.manifest import MANIFEST_FILE, ManifestError, parse_manifest
from bundle.recipe import decode_image
from cascade.scores import confidence, top_label
from edge_agent.adapters.litert import LiteRtModel
from overspill.demo.images import LabelledImages


@dataclass(frozen=True, slots=True, eq=False)
class EdgeAlone:
    """One version's answers to `n` images.

    Attributes:
        version: of the bundle.
        threshold: under which the bundle calls an answer hard.
        label: the index of each answer's class, [n].
        confidence: of each answer, 0..1, [n].
    """

    version: str
    threshold: float
    label: NDArray[np.int64]
    confidence: NDArray[np.float64]

    def right(self, truth: NDArray[np.integer[Any]]) -> NDArray[np.bool_]:
        """Whether each answer is right, [n]."""
        result: NDArray[np.bool_] = self.label == truth
        return result

    def of(self, indices: Sequence[int]) -> EdgeAlone:
        """The answers to some of the images."""
        chosen = list(indices)
        return replace(
            self, label=self.label[chosen], confidence=self.confidence[chosen]
        )


def ask_alone(bundle: Path, images: Sequence[bytes]) -> EdgeAlone:
    """Let a bundle's model answer encoded images. Blocks.

    Raises:
        ManifestError: the bundle does not classify images.
        ModelUnsupported: this machine cannot run it.
    """
    manifest = parse_manifest((bundle / MANIFEST_FILE).read_bytes())
    recipe, decision = manifest.preprocess, manifest.decision
    if recipe is None or decision is None:
        raise ManifestError(f"{bundle} does not say how it classifies images")
    model = LiteRtModel.load(bundle / manifest.model_file)
    labels, sure = [], []
    for image in images:
        pixels = decode_image(image, recipe, max_pixels=manifest.limits.max_pixels)
        output = model.run({recipe.input: pixels})[decision.output]
        labels.append(top_label(output))
        sure.append(
            confidence(
                output,
                score=decision.score,
                activation=decision.activation,
                temperature=decision.temperature,
            )
        )
    return EdgeAlone(
        manifest.version,
        decision.threshold,
        np.asarray(labels, np.int64),
        np.asarray(sure, np.float64),
    )


def write(path: Path, answers: Sequence[EdgeAlone]) -> None:
    """Write the answers of several versions into one `.npz`."""
    np.savez(
        path,
        version=np.array([each.version for each in answers]),
        threshold=np.array([each.threshold for each in answers]),
        label=np.stack([each.label for each in answers]),
        confidence=np.stack([each.confidence for each in answers]),
    )


def read(path: Path) -> list[EdgeAlone]:
    """Read what `write` has written, in the same order."""
    with np.load(path, allow_pickle=False) as file:
        rows = zip(
            file["version"],
            file["threshold"],
            file["label"],
            file["confidence"],
            strict=True,
        )
        return [
            EdgeAlone(str(version), float(threshold), label, confidence)
            for version, threshold, label, confidence in rows
        ]


def main() -> None:
    """Ask every bundle on the command line."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--images", type=Path, required=True, help="an .npz file")
    parser.add_argument("--count", type=int, required=True, help="the first so many")
    parser.add_argument("--out", type=Path, required=True, help="written")
    parser.add_argument("bundles", type=Path, nargs="+", help="their folders")
    options = parser.parse_args()
    images = LabelledImages.load(options.images, options.count)
    encoded = [images.png(index) for index in range(len(images))]
    write(options.out, [ask_alone(bundle, encoded) for bundle in options.bundles])


if __name__ == "__main__":
    main()
