"""Explain one answer of a bundle's model, with the model itself."""

from __future__ import annotations

from dataclasses import dataclass
from html import escape
from pathlib import Path
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from builder.adapters import datasets, measuring, pictures
from builder.adapters.report import STYLE
from builder.core.gallery import occlusion_map
from builder.core.refusal import BuildRefused
from bundle.manifest import (
    MANIFEST_FILE,
    MAX_MANIFEST_BYTES,
    Decision,
    ImageRecipe,
    Manifest,
    ManifestError,
    parse_manifest,
)
from cascade.policy import Rule, judge
from cascade.scores import softmax

LIKELIEST: Final = 3
MAX_BYTES: Final = 64 * 1024 * 1024


@dataclass(frozen=True, slots=True, eq=False)
class Explained:
    """Why one input is answered as it is.

    Attributes:
        label: the answer.
        score: which one confidence is.
        confidence: of the answer.
        threshold: below which it is spilled.
        hard: whether it is.
        why: it is, for people; None when it is not.
        likeliest: the classes with the greatest probabilities.
        heat: how far the probability of the answer falls with each part covered.
        where: the part that it hangs on most, for people.
        fall: of the probability, there.
        shown: the input, for the picture.
    """

    label: str
    score: str
    confidence: float
    threshold: float
    hard: bool
    why: str | None
    likeliest: tuple[tuple[str, float], ...]
    heat: NDArray[np.float64]
    where: str
    fall: float
    shown: NDArray[Any]

    def as_json(self) -> dict[str, Any]:
        """What JSON can hold of it."""
        return {
            "label": self.label,
            "score": self.score,
            "confidence": self.confidence,
            "threshold": self.threshold,
            "hard": self.hard,
            "why": self.why,
            "likeliest": [list(each) for each in self.likeliest],
            "where": self.where,
            "fall": self.fall,
            "heat": self.heat.round(6).tolist(),
        }


def explain(file: Path, bundle: Path) -> Explained:
    """Explain what a bundle's model makes of a file.

    Args:
        file: a picture, or an array of one example as `.npy`.
        bundle: its folder.

    Raises:
        BuildRefused: the bundle cannot be used, does not classify, or does not take
            such a file.
    """
    manifest = _manifest(bundle)
    decision = manifest.decision
    if decision is None or manifest.task != "classify":
        raise BuildRefused(f"{bundle} does not classify: there is no answer to explain")
    shown, example, fill = _example(file, manifest.preprocess)
    model = bundle / manifest.model_file
    run = _Predict(model, decision)
    outputs = run.outputs(example[np.newaxis])
    verdict = judge(
        outputs[0],
        Rule(
            decision.score,
            decision.activation,
            decision.temperature,
            decision.threshold,
            manifest.task,
            decision.norm,
            decision.empty == "sure",
        ),
    )
    chances = run(example[np.newaxis])[0]
    label = int(chances.argmax())
    heat = occlusion_map(
        run,
        example,
        label,
        patch=max(2, min(example.shape[:-1] or (2,)) // 6),
        fill=fill,
    )
    at = np.unravel_index(int(heat.argmax()), heat.shape)
    return Explained(
        _name(manifest, label),
        decision.score,
        verdict.confidence,
        decision.threshold,
        verdict.hard,
        verdict.why,
        tuple(
            (_name(manifest, int(each)), float(chances[each]))
            for each in np.argsort(-chances)[:LIKELIEST]
        ),
        heat,
        _where(tuple(int(each) for each in at), heat.ndim),
        float(heat.max()),
        shown,
    )


def page(found: Explained) -> str:
    """One HTML file with the occlusion map."""
    verdict = "spilled as hard" if found.hard else "answered on the edge"
    why = f": {escape(found.why)}" if found.why else ""
    classes = "".join(
        f"<tr><td>{escape(name)}</td><td>{share:.2%}</td></tr>"
        for name, share in found.likeliest
    )
    return (
        '<!doctype html><html lang="en"><meta charset="utf-8">'
        f"<title>{escape(found.label)}</title><style>{STYLE}</style><body>"
        f"<h1>{escape(found.label)}</h1>"
        f'<p class="{"refused" if found.hard else "kept"}"><b>{verdict}</b>{why}. '
        f"{escape(found.score)} {found.confidence:.4f}, threshold "
        f"{found.threshold:.4f}.</p><table>{classes}</table>"
        f"<p>It hangs most on {escape(found.where)}: without it the answer's "
        f"probability falls by {100 * found.fall:.2f} points. Red: covering it makes the "
        "answer less likely; blue: more.</p>"
        f"{pictures.heat_svg(found.shown, found.heat)}</body></html>\n"
    )


class _Predict:
    """Probabilities by a bundle's model, one example at a time."""

    def __init__(self, model: Path, decision: Decision) -> None:
        self._model = model
        self._decision = decision
        taken, given = measuring.signature_of(model)
        if given != decision.output:
            raise BuildRefused(
                f"the manifest decides by {decision.output!r}, and {model.name} gives "
                f"{given!r}"
            )
        self._runner = measuring.runner_of(model, taken, given)

    def __call__(self, batch: NDArray[Any]) -> NDArray[np.float64]:
        outputs = self.outputs(batch)
        if self._decision.activation == "probabilities":
            return outputs.astype(np.float64)
        return softmax(outputs, self._decision.temperature)

    def outputs(self, batch: NDArray[Any]) -> NDArray[np.float32]:
        return np.stack([self._runner(one) for one in batch])


def _manifest(bundle: Path) -> Manifest:
    path = bundle / MANIFEST_FILE
    try:
        with path.open("rb") as file:
            return parse_manifest(file.read(MAX_MANIFEST_BYTES + 1))
    except OSError as error:
        raise BuildRefused(f"cannot read {path}: {error.strerror}") from error
    except ManifestError as error:
        raise BuildRefused(f"{path}: {error}") from error


def _example(
    file: Path, recipe: ImageRecipe | None
) -> tuple[NDArray[Any], NDArray[Any], float]:
    """The input as shown, as the model takes it, and what it is covered with."""
    if not file.is_file() or file.stat().st_size > MAX_BYTES:
        raise BuildRefused(f"{file} is no file of at most {MAX_BYTES} bytes")
    if recipe is not None and file.suffix != ".npy":
        shape = (recipe.height, recipe.width, recipe.channels)
        shown = datasets.decode_picture(file, shape)
        scale, offset = np.float32(recipe.scale), np.float32(recipe.offset)
        example = shown.astype(np.float32) * scale + offset
        return shown, example, float(example.mean())
    try:
        example = np.load(file, allow_pickle=False)
    except (OSError, ValueError) as error:
        raise BuildRefused(f"{file} is no array: {error}") from error
    numbers = example.astype(np.float32)
    return numbers, numbers, float(numbers.mean())


def _name(manifest: Manifest, label: int) -> str:
    return manifest.labels[label] if label < len(manifest.labels) else str(label)


def _where(at: tuple[int, ...], rank: int) -> str:
    if rank == 2:
        return f"what is about row {at[0]}, column {at[1]}"
    return f"item {at[0]}"
