"""One build from its file to a bundle's folder: read, learn, convert, run, choose, promise."""

from __future__ import annotations

import shutil
import zlib
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from builder.adapters import datasets, measuring, models, report, workspace
from builder.adapters.making import Maker
from builder.adapters.workspace import Workspace
from builder.core import draft, gallery, told
from builder.core.candidates import Candidate
from builder.core.choice import Choice, Considered, Constraints, choose, spill_and_cost
from builder.core.labelled import Labelled, check_classes, check_skipped, digest
from builder.core.progress import Progress
from builder.core.promise import calibrate
from builder.core.quality import Answers, Quality, quality, temperature_of
from builder.core.refusal import BuildRefused
from builder.core.soft_targets import activation_of
from builder.core.splits import Part, Split, split
from builder.core.steps import step_key
from builder.settings import BuildFile
from bundle.manifest import MANIFEST_FILE, parse_manifest
from cascade.evaluation import at_threshold
from cascade.targets import Calibrated, Target, Unsupported, parse_target

HELD: Final[tuple[Part, ...]] = ("choose", "calibrate", "test")
REPORT_JSON: Final = "report.json"
REPORT_HTML: Final = "report.html"
STEPS: Final = "steps"
BUNDLE: Final = "bundle"
# Each held-out part needs this many of each class: the rarest decides what is known.
LEAST_OF_A_CLASS: Final = 4


@dataclass(frozen=True, slots=True)
class Built:
    """What a build came to.

    Attributes:
        bundle: the folder that `overspill model publish` takes; None when nothing can
            be promised, or every candidate breaks a constraint.
        report: the HTML file, which there always is.
        choice: which candidate, and why.
        promise: the threshold, or why there is none.
        document: what the report's JSON holds.
    """

    bundle: Path | None
    report: Path
    choice: Choice
    promise: Calibrated | Unsupported
    document: dict[str, Any]


@dataclass(frozen=True, slots=True, eq=False)
class _Ran:
    """One candidate, made and run over the held-out examples."""

    candidate: Candidate
    file: Path
    run: measuring.Run
    answers: dict[Part, Answers]
    chosen_on: Quality
    told_on: Quality
    considered: Considered


class Build:
    """One build; `run` it once."""

    def __init__(
        self, options: BuildFile, root: Path, out: Path, progress: Progress
    ) -> None:
        """Give it what it needs.

        Args:
            options: what to build.
            root: what relative paths in `options` are relative to.
            out: where steps, the report and the bundle go.
            progress: hears of each step.
        """
        self._options = options
        self._root = root
        self._out = out
        self._progress = progress
        self._work = Workspace(out / STEPS)
        self._target: Target = parse_target(options.target)

    def run(self, *, accept_nearest: bool = False) -> Built:
        """Build.

        Args:
            accept_nearest: where the data cannot support the target, promise the
                nearest that they can.

        Raises:
            BuildRefused: the data or the models cannot be used.
        """
        data = self._read()
        parts = self._split(data)
        maker = Maker(
            self._options, self._root, self._work, self._progress, data, parts
        )
        cloud = self._cloud(maker, data, parts)
        ran = [
            self._run(each, maker, data, parts, cloud) for each in maker.candidates()
        ]
        choice = choose(
            [each.considered for each in ran],
            Constraints(**self._options.keep.model_dump()),
        )
        shown = next(
            (each for each in ran if each.candidate.name == choice.chosen),
            min(ran, key=lambda each: each.considered.cost),
        )
        promise = self._promise(shown, cloud, accept_nearest=accept_nearest)
        return self._write(data, parts, ran, shown, choice, promise, cloud)

    def _read(self) -> Labelled:
        said = self._options.data
        self._progress.begin(f"reading {said.source}")
        how = datasets.Reading(**said.model_dump(exclude={"max_corrupt", "shares"}))
        data = datasets.read(how, self._root, self._progress.advance)
        check_skipped(data, said.max_corrupt)
        check_classes(data, least=1)
        if data.skipped:
            self._progress.note(
                f"{len(data.skipped)} examples cannot be read and are skipped: "
                + ", ".join(data.skipped[:10])
            )
        return data

    def _split(self, data: Labelled) -> Split:
        self._progress.begin("splitting, and looking for leaks")
        parts = split(
            data,
            self._options.seed,
            self._options.data.shares,
            trains=self._options.edge is None,
        )
        for part in HELD:
            counts = np.bincount(
                data.labels[parts.rows(part)], minlength=len(data.names)
            )
            few = [
                f"{name} ({n})"
                for name, n in zip(data.names, counts, strict=True)
                if n < LEAST_OF_A_CLASS
            ]
            if few:
                raise BuildRefused(
                    f"the {part} part has fewer than {LEAST_OF_A_CLASS} examples of "
                    f"{', '.join(few)}: add examples, or change data.shares"
                )
        if parts.left_out:
            self._progress.note(
                f"{parts.left_out} examples of train are copies of held-out ones, and "
                "are left out"
            )
        return parts

    def _cloud(
        self, maker: Maker, data: Labelled, parts: Split
    ) -> dict[Part, Answers] | None:
        outputs = maker.cloud_outputs(_held(parts))
        if outputs is None:
            return None
        if outputs.shape[1] != len(data.names):
            raise BuildRefused(
                f"labels do not match: the cloud model answers {outputs.shape[1]} "
                f"classes, and the data set has {len(data.names)}"
            )
        return _answers(outputs, data, parts)

    def _run(
        self,
        candidate: Candidate,
        maker: Maker,
        data: Labelled,
        parts: Split,
        cloud: dict[Part, Answers] | None,
    ) -> _Ran:
        file = maker.file(candidate)
        self._progress.begin(f"measuring {candidate.name}")
        run = self._measured(file, data, parts)
        if run.outputs.shape[1] != len(data.names):
            raise BuildRefused(
                f"labels do not match: {candidate.name} answers {run.outputs.shape[1]} "
                f"classes, and the data set has {len(data.names)}"
            )
        answers = _answers(run.outputs, data, parts)
        here = {
            part: quality(
                answers[part],
                None if cloud is None else cloud[part],
                classes=len(data.names),
            )
            for part in ("choose", "test")
        }
        on = here["choose"]
        spill, cost = spill_and_cost(on.curve, on.accuracy, self._target)
        considered = Considered(
            candidate.name,
            file.stat().st_size,
            run.p50_ms,
            on.accuracy,
            on.cloud_accuracy,
            spill,
            cost,
        )
        return _Ran(candidate, file, run, answers, on, here["test"], considered)

    def _measured(self, file: Path, data: Labelled, parts: Split) -> measuring.Run:
        key = step_key(
            "run", {}, models.file_digest(file), digest(data), _held_digest(parts)
        )

        def make() -> dict[str, NDArray[Any]]:
            run = measuring.run_tflite(file, data.model_inputs(_held(parts)))
            took = np.array([run.p50_ms, run.p99_ms, run.peak_memory_kb])
            return {"outputs": run.outputs, "took": took}

        made = self._work.arrays(f"run-{file.stem.rpartition('-')[0]}", key, make)
        p50_ms, p99_ms, peak_kb = made["took"].tolist()
        return measuring.Run(made["outputs"], p50_ms, p99_ms, int(peak_kb))

    def _promise(
        self,
        shown: _Ran,
        cloud: dict[Part, Answers] | None,
        *,
        accept_nearest: bool,
    ) -> Calibrated | Unsupported:
        self._progress.begin("calibrating")
        edge = shown.answers["calibrate"]
        behind = None if cloud is None else cloud["calibrate"]
        most = self._options.keep.max_spill
        found = calibrate(edge, behind, self._target, most)
        if isinstance(found, Unsupported) and accept_nearest and found.nearest:
            self._progress.note(found.describe())
            return calibrate(edge, behind, found.nearest, most)
        return found

    def _write(  # noqa: PLR0913, PLR0917 - everything that was found out
        self,
        data: Labelled,
        parts: Split,
        ran: Sequence[_Ran],
        shown: _Ran,
        choice: Choice,
        promise: Calibrated | Unsupported,
        cloud: dict[Part, Answers] | None,
    ) -> Built:
        self._progress.begin("writing the report")
        threshold = promise.threshold if isinstance(promise, Calibrated) else -np.inf
        test = shown.answers["test"]
        confused = (
            [] if cloud is None else gallery.confused(test, cloud["test"], threshold)
        )
        document = {
            **told.build(self._options.name, self._options.version, self._target),
            "data": told.data(data, parts, self._options.seed, digest(data)),
            "candidates": [
                told.candidate(
                    each.considered,
                    each.chosen_on,
                    each.told_on,
                    data.names,
                    {
                        "deflated_bytes": len(zlib.compress(each.file.read_bytes(), 9)),
                        "p99_ms": each.run.p99_ms,
                        "peak_memory_kb": each.run.peak_memory_kb,
                        "pruned": each.candidate.pruned,
                    },
                )
                for each in ran
            ],
            "choice": told.choice(choice),
            "shown": shown.candidate.name,
            "promise": told.promise(promise),
            "reliability": told.reliability_of(test),
            "test": self._on_test(test, cloud, promise),
            "confused": [told.confused(each) for each in confused],
        }
        rows = parts.test[np.array([each.row for each in confused], np.int64)]
        self._out.mkdir(parents=True, exist_ok=True)
        page = self._out / REPORT_HTML
        page.write_text(
            report.html(document, [data.inputs[row] for row in rows]), encoding="utf-8"
        )
        workspace.write_json(self._out / REPORT_JSON, document)
        folder = None
        if choice.chosen is not None and isinstance(promise, Calibrated):
            folder = self._bundle(data, parts, shown, promise, cloud)
        return Built(folder, page, choice, promise, document)

    def _on_test(
        self,
        edge: Answers,
        cloud: dict[Part, Answers] | None,
        promise: Calibrated | Unsupported,
    ) -> dict[str, Any] | None:
        if isinstance(promise, Unsupported):
            return None
        behind = edge if cloud is None else cloud["test"]
        found = at_threshold(
            edge.confidence, edge.right, behind.right, promise.threshold
        )
        return told.at_threshold(found, with_cloud=cloud is not None)

    def _bundle(
        self,
        data: Labelled,
        parts: Split,
        shown: _Ran,
        promise: Calibrated,
        cloud: dict[Part, Answers] | None,
    ) -> Path:
        folder = self._out / BUNDLE
        half = self._out / f"half-{BUNDLE}"
        shutil.rmtree(half, ignore_errors=True)
        half.mkdir(parents=True)
        shutil.copyfile(shown.file, half / draft.MODEL_FILE)
        signature = measuring.signature_of(shown.file)
        self._golden(half, signature, data, parts, shown)
        files = {}
        for name in (REPORT_JSON, REPORT_HTML):
            shutil.copyfile(self._out / name, half / name)
            files[name] = {
                "sha256": workspace.sha256(half / name),
                "size_bytes": (half / name).stat().st_size,
            }
        manifest = draft.manifest(
            data,
            draft.Named(
                self._options.name,
                self._options.version,
                signature,
                self._options.limits,
            ),
            draft.CalibratedOn(
                promise,
                shown.answers["calibrate"],
                None if cloud is None else cloud["calibrate"],
                _cloud_output(self._options, cloud),
            ),
        )
        workspace.write_json(half / MANIFEST_FILE, {**manifest, "files": files})
        parse_manifest((half / MANIFEST_FILE).read_bytes())
        shutil.rmtree(folder, ignore_errors=True)
        half.rename(folder)
        return folder

    def _golden(
        self,
        folder: Path,
        signature: tuple[str, str],
        data: Labelled,
        parts: Split,
        shown: _Ran,
    ) -> None:
        test = shown.answers["test"]
        rows = draft.golden_rows(test.outputs, test.labels)
        arrays = {
            f"in_{signature[0]}": data.model_inputs(parts.test[rows]),
            f"out_{signature[1]}": test.outputs[rows],
        }
        with (folder / draft.GOLDEN_FILE).open("wb") as file:
            np.savez_compressed(file, allow_pickle=False, **arrays)


def _held(parts: Split) -> NDArray[np.int64]:
    """Every held-out row, part after part."""
    return np.concatenate([parts.rows(part) for part in HELD])


def _held_digest(parts: Split) -> str:
    return workspace.array_digest(_held(parts))


def _answers(
    outputs: NDArray[np.float32], data: Labelled, parts: Split
) -> dict[Part, Answers]:
    """Outputs by part, all with the temperature that fits the choose part."""
    made: dict[Part, Answers] = {}
    start = 0
    for part in HELD:
        rows = parts.rows(part)
        made[part] = Answers(outputs[start : start + len(rows)], data.labels[rows])
        start += len(rows)
    chosen_on = made["choose"]
    temperature = temperature_of(chosen_on.outputs, chosen_on.labels)
    return {part: replace(each, temperature=temperature) for part, each in made.items()}


def _cloud_output(
    options: BuildFile, cloud: dict[Part, Answers] | None
) -> draft.CloudOutput | None:
    if cloud is None or options.cloud is None:
        return None
    held = cloud["calibrate"]
    return draft.CloudOutput(
        options.cloud.output or draft.CLOUD_OUTPUT,
        activation_of(held.outputs[held.readable]),
        held.temperature,
    )
