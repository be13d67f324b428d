"""One build from its file to a bundle's folder: read, learn, convert, run, choose, promise."""

from __future__ import annotations

import shutil
import zlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from builder.adapters import datasets, measuring, models, packing, report, workspace
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
from builder.core.splits import Part, Split, split
from builder.core.steps import step_key
from builder.settings import BuildFile
from cascade.evaluation import Costs, at_threshold
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
class _Held:
    """The data set, its parts, and what the cloud says of those held out."""

    data: Labelled
    parts: Split
    cloud: Mapping[Part, Answers] | None
    cloud_output: draft.CloudOutput | None

    @property
    def rows(self) -> NDArray[np.int64]:
        """Every held-out row, part after part."""
        return _held_rows(self.parts)

    def cloud_on(self, part: Part) -> Answers | None:
        """The cloud's answers to one part."""
        return None if self.cloud is None else self.cloud[part]


@dataclass(frozen=True, slots=True, eq=False)
class _Ran:
    """One candidate, made and run over the held-out examples."""

    candidate: Candidate
    file: Path
    run: measuring.Run
    answers: Mapping[Part, Answers]
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
        held = self._ask_cloud(maker, data, parts)
        ran, failed = self._run_all(maker, held)
        choice = choose(
            [each.considered for each in ran],
            Constraints(**self._options.keep.model_dump()),
        )
        shown = next(
            (each for each in ran if each.candidate.name == choice.chosen),
            min(ran, key=lambda each: each.considered.cost),
        )
        promise = self._promise(shown, held, accept_nearest=accept_nearest)
        self._progress.begin("writing the report")
        document = self._document(held, ran, shown, choice, promise)
        document["failed"] = failed
        reports = self._write_reports(document, held)
        # One of an earlier run would be taken for this one's.
        shutil.rmtree(self._out / BUNDLE, ignore_errors=True)
        bundle = None
        if choice.chosen is not None and isinstance(promise, Calibrated):
            bundle = self._write_bundle(held, shown, promise, reports)
        return Built(bundle, reports[0], choice, promise, document)

    def _read(self) -> Labelled:
        said = self._options.data
        self._progress.begin(f"reading {said.source}")
        of_the_build = {"max_corrupt", "shares", "choose_share"}
        how = datasets.Reading(**said.model_dump(exclude=of_the_build))
        data = datasets.read(how, self._root, self._progress.advance)
        check_skipped(data, said.max_corrupt)
        check_classes(data)
        if data.skipped:
            self._progress.note(
                f"{len(data.skipped)} examples cannot be read and are skipped: "
                + ", ".join(data.skipped[:10])
            )
        return data

    def _split(self, data: Labelled) -> Split:
        self._progress.begin("splitting, and looking for leaks")
        said = self._options
        trains = said.edge is None and said.student.epochs > 0
        parts = split(
            data,
            said.seed,
            said.data.shares,
            choose_share=said.data.choose_share,
            trains=trains,
        )
        for part in HELD:
            check_classes(
                data, parts.rows(part), f"{part} part", least=LEAST_OF_A_CLASS
            )
        if parts.left_out:
            self._progress.note(
                f"{parts.left_out} examples of train are copies of held-out ones, and "
                "are left out"
            )
        return parts

    def _ask_cloud(self, maker: Maker, data: Labelled, parts: Split) -> _Held:
        outputs = maker.cloud_outputs(_held_rows(parts))
        if outputs is None:
            return _Held(data, parts, None, None)
        _check_width("the cloud model", outputs, data)
        answers = _answers(outputs, data, parts)
        name, activation = maker.cloud_reading(outputs)
        fitted = answers["choose"].temperature
        read = draft.CloudOutput(
            name, activation, 1.0 if activation == "probabilities" else fitted
        )
        return _Held(data, parts, answers, read)

    def _run_all(self, maker: Maker, held: _Held) -> tuple[list[_Ran], dict[str, str]]:
        """Make and run every candidate; what cannot be made is told of and passed over.

        Raises:
            BuildRefused: none can be made.
        """
        ran: list[_Ran] = []
        failed: dict[str, str] = {}
        for candidate in maker.candidates():
            try:
                ran.append(self._run(candidate, maker, held))
            except BuildRefused as error:
                self._progress.note(f"{candidate.name} cannot be made: {error}")
                failed[candidate.name] = str(error)
        if not ran:
            raise BuildRefused(
                f"no candidate can be made: {'; '.join(dict.fromkeys(failed.values()))}"
            )
        return ran, failed

    def _run(self, candidate: Candidate, maker: Maker, held: _Held) -> _Ran:
        data = held.data
        file = maker.file(candidate)
        self._progress.begin(f"measuring {candidate.name}")
        run = self._measured(file, candidate.name, held)
        _check_width(candidate.name, run.outputs, data)
        answers = _answers(run.outputs, data, held.parts)
        classes = len(data.names)
        chosen_on = quality(answers["choose"], held.cloud_on("choose"), classes=classes)
        told_on = quality(
            answers["test"],
            held.cloud_on("test"),
            classes=classes,
            rng=np.random.default_rng(self._options.seed),
        )
        spill, cost = spill_and_cost(
            chosen_on.curve,
            chosen_on.accuracy,
            self._target,
            len(held.parts.calibrate),
        )
        considered = Considered(
            candidate.name,
            file.stat().st_size,
            run.p50_ms,
            chosen_on.accuracy,
            chosen_on.cloud_accuracy,
            spill,
            cost,
        )
        return _Ran(candidate, file, run, answers, chosen_on, told_on, considered)

    def _measured(self, file: Path, name: str, held: _Held) -> measuring.Run:
        key = step_key(
            "run",
            {},
            models.file_digest(file),
            digest(held.data),
            workspace.array_digest(held.rows),
        )

        def make() -> dict[str, NDArray[Any]]:
            run = measuring.run_tflite(file, held.data.model_inputs(held.rows))
            took = np.array([run.p50_ms, run.p99_ms, run.peak_memory_kb])
            return {"outputs": run.outputs, "took": took}

        made = self._work.arrays(f"run-{name}", key, make)
        p50_ms, p99_ms, peak_kb = made["took"].tolist()
        return measuring.Run(made["outputs"], p50_ms, p99_ms, int(peak_kb))

    def _promise(
        self, shown: _Ran, held: _Held, *, accept_nearest: bool
    ) -> Calibrated | Unsupported:
        self._progress.begin("calibrating")
        edge, cloud = shown.answers["calibrate"], held.cloud_on("calibrate")
        most = self._options.keep.max_spill
        found = calibrate(edge, cloud, self._target, most)
        if isinstance(found, Unsupported) and accept_nearest and found.nearest:
            self._progress.note(found.describe())
            return calibrate(edge, cloud, found.nearest, most)
        return found

    def _document(
        self,
        held: _Held,
        ran: Sequence[_Ran],
        shown: _Ran,
        choice: Choice,
        promise: Calibrated | Unsupported,
    ) -> dict[str, Any]:
        """What the report says, as JSON holds it."""
        test, cloud = shown.answers["test"], held.cloud_on("test")
        confused: list[gallery.Confused] = []
        result = None
        threshold = promise.threshold if isinstance(promise, Calibrated) else -np.inf
        if cloud is not None:
            confused = gallery.confused(test, cloud, threshold)
        if isinstance(promise, Calibrated):
            behind = test if cloud is None else cloud
            found = at_threshold(
                test.confidence,
                test.right,
                behind.right,
                promise.threshold,
                Costs(payload_bytes=int(held.data.inputs[0].nbytes)),
            )
            result = told.at_threshold(found, with_cloud=cloud is not None)
        return {
            **told.build(self._options.name, self._options.version, self._target),
            "data": told.data(
                held.data, held.parts, self._options.seed, digest(held.data)
            ),
            "candidates": [_told_of(each, held.data.names) for each in ran],
            "choice": told.choice(choice),
            "shown": shown.candidate.name,
            "promise": told.promise(promise),
            "reliability": told.reliability_of(test),
            "test": result,
            "bounds": None if cloud is None else told.bounds(test, cloud),
            "confused": [told.confused(each) for each in confused],
        }

    def _write_reports(self, document: dict[str, Any], held: _Held) -> list[Path]:
        rows = [each["row"] for each in document["confused"]]
        examples = held.data.inputs[held.parts.test[np.array(rows, np.int64)]]
        self._out.mkdir(parents=True, exist_ok=True)
        page, figures = self._out / REPORT_HTML, self._out / REPORT_JSON
        page.write_text(report.html(document, list(examples)), encoding="utf-8")
        workspace.write_json(figures, document)
        return [page, figures]

    def _write_bundle(
        self, held: _Held, shown: _Ran, promise: Calibrated, reports: Sequence[Path]
    ) -> Path:
        folder = self._out / BUNDLE
        chosen = packing.Chosen(
            shown.file,
            self._options.name,
            self._options.version,
            self._options.limits,
            draft.CalibratedOn(
                promise,
                shown.answers["calibrate"],
                held.cloud_on("calibrate"),
                held.cloud_output,
            ),
            shown.answers["test"],
            held.parts.test,
        )
        packing.write_bundle(folder, held.data, chosen, reports)
        return folder


def _held_rows(parts: Split) -> NDArray[np.int64]:
    return np.concatenate([parts.rows(part) for part in HELD])


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


def _check_width(what: str, outputs: NDArray[np.float32], data: Labelled) -> None:
    if outputs.shape[1] != len(data.names):
        raise BuildRefused(
            f"labels do not match: {what} answers {outputs.shape[1]} classes, and the "
            f"data set has {len(data.names)}"
        )


def _told_of(ran: _Ran, names: Sequence[str]) -> dict[str, Any]:
    more = {
        "deflated_bytes": len(zlib.compress(ran.file.read_bytes(), 9)),
        "p99_ms": ran.run.p99_ms,
        "peak_memory_kb": ran.run.peak_memory_kb,
        "pruned": ran.candidate.pruned,
    }
    return told.candidate(ran.considered, ran.chosen_on, ran.told_on, names, more)
