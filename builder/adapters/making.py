"""Make the candidates, each step kept as a file."""

from __future__ import annotations

import functools
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from builder.adapters import (
    conversion,
    measuring,
    models,
    requantizing,
    students,
    training,
)
from builder.adapters.workspace import Workspace, array_digest
from builder.core.candidates import Base, Candidate, candidates
from builder.core.labelled import Labelled, digest
from builder.core.progress import Progress
from builder.core.soft_targets import activation_of, as_logits
from builder.core.splits import Split
from builder.core.steps import step_key
from builder.settings import BuildFile
from cascade.scores import Activation

if TYPE_CHECKING:
    from tensorflow import keras

INPUT: str = "input"
PICTURE_INPUT: str = "image"


class Maker:
    """Makes what a build file asks for, of one data set."""

    def __init__(
        self,
        options: BuildFile,
        root: Path,
        work: Workspace,
        progress: Progress,
        data: Labelled,
        parts: Split,
    ) -> None:
        self._options = options
        self._root = root
        self._work = work
        self._progress = progress
        self._data = data
        self._parts = parts
        self._data_digest = digest(data)
        self._cloud: models.Network | None = None
        self._cloud_name = ""
        self._cloud_stripped = False

    def candidates(self) -> tuple[Candidate, ...]:
        """What is to be made."""
        said = self._options
        bases: list[Base] = []
        if said.edge is None and said.student.epochs:
            bases.append("student")
        if said.candidates.cloud_itself:
            bases.append("cloud")
        made = candidates(bases, said.candidates.quantizations, said.candidates.pruned)
        return (*self._given_candidates(), *made)

    def _given_candidates(self) -> tuple[Candidate, ...]:
        """The `.tflite` file given: as it is, and smaller where it is float."""
        if self._options.edge is None:
            return ()
        whole = Candidate("given", "as_given")
        model = self._root / self._options.edge
        models.file_digest(model)
        wanted = [
            each
            for each in requantizing.REQUANTIZED
            if each in self._options.candidates.quantizations
        ]
        measuring.signature_of(model)
        if not wanted or not requantizing.is_float(model):
            return (whole,)
        if not requantizing.installed():
            self._progress.note(
                f"{model.name} is float and could be smaller: "
                "`pip install ai-edge-quantizer` to have it quantised"
            )
            return (whole,)
        return (whole, *candidates(["given"], wanted))

    def cloud_outputs(
        self, rows: NDArray[np.int64], *, mirrored: bool = False
    ) -> NDArray[np.float32] | None:
        """What the cloud model says of some rows: float32 [rows, classes].

        Args:
            rows: of the data set.
            mirrored: from left to right.

        Returns:
            None without a cloud model.

        Raises:
            BuildRefused: it cannot be used.
        """
        said = self._options.cloud
        if said is None:
            return None
        key = step_key(
            "cloud",
            {"output": said.output, "mirrored": mirrored},
            models.file_digest(self._root / said.model),
            self._data_digest,
            array_digest(rows),
        )

        def make() -> dict[str, NDArray[Any]]:
            self._progress.begin(f"asking the cloud model about {len(rows)} examples")

            def batch_of(part: slice) -> NDArray[Any]:
                batch = self._data.model_inputs(rows[part])
                return batch[:, :, ::-1] if mirrored else batch

            network = self._opened_cloud()
            made = models.outputs_of(
                network, batch_of, len(rows), self._progress.advance
            )
            return {
                "outputs": made,
                "name": np.array(network.output),
                "stripped": np.array(network.stripped),
            }

        made = self._work.arrays("cloud", key, make)
        self._cloud_name = str(made["name"])
        self._cloud_stripped = bool(made["stripped"])
        outputs: NDArray[np.float32] = made["outputs"]
        return outputs

    def cloud_reading(self, outputs: NDArray[np.float32]) -> tuple[str, Activation]:
        """The name of the cloud model's output, and what a worker gives there.

        Args:
            outputs: some of it, as `cloud_outputs` gave it.
        """
        activation = "probabilities" if self._cloud_stripped else activation_of(outputs)
        return self._cloud_name, activation

    def file(self, candidate: Candidate) -> Path:
        """The `.tflite` file of a candidate.

        Raises:
            BuildRefused: it cannot be made.
        """
        said = self._options
        if candidate.base == "given" and said.edge is not None:
            return self._given_file(candidate, self._root / said.edge)
        made_of = (
            self._student_file(candidate.pruned)
            if candidate.base == "student"
            else self._root / said.cloud.model  # type: ignore[union-attr]  # the settings saw to it
        )
        key = step_key(
            "convert",
            {"format": candidate.quantization, "n": said.candidates.representative},
            models.file_digest(made_of),
            self._data_digest,
            array_digest(self._representative()),
        )

        def make(path: Path) -> None:
            self._progress.begin(f"converting {candidate.name}")
            network = (
                models.open_model(made_of)
                if candidate.base == "student"
                else self._opened_cloud()
            )
            path.write_bytes(
                conversion.to_tflite(
                    network,
                    self._data.model_inputs(self._representative()),
                    candidate.quantization,
                    self._input_name(),
                )
            )

        return self._work.file(candidate.name, ".tflite", key, make)[0]

    def _given_file(self, candidate: Candidate, given: Path) -> Path:
        if candidate.quantization == "as_given":
            return given
        key = step_key(
            "requantize",
            {"format": candidate.quantization},
            models.file_digest(given),
            self._data_digest,
            array_digest(self._representative()),
        )

        def make(path: Path) -> None:
            self._progress.begin(f"quantising {candidate.name}")
            examples = self._data.model_inputs(self._representative())
            name, _ = measuring.signature_of(given)
            path.write_bytes(
                requantizing.requantized(given, candidate.quantization, examples, name)
            )

        return self._work.file(candidate.name, ".tflite", key, make)[0]

    def _input_name(self) -> str:
        default = PICTURE_INPUT if self._data.is_picture else INPUT
        return self._options.input or default

    def _representative(self) -> NDArray[np.int64]:
        rng = np.random.default_rng(self._options.seed)
        # A data set for calibrating alone may have no train part.
        rows = self._parts.train if len(self._parts.train) else self._parts.choose
        many = min(self._options.candidates.representative, len(rows))
        return rng.choice(rows, many, replace=False)

    def _opened_cloud(self) -> models.Network:
        said = self._options.cloud
        if self._cloud is None and said is not None:
            self._cloud = models.open_model(self._root / said.model, said.output)
        if self._cloud is None:
            raise AssertionError("asked for a cloud model where there is none")
        return self._cloud

    def _student_file(self, pruned: float) -> Path:
        """The trained student, with so many of its weights zero."""
        said = self._options
        whole = None if pruned == 0 else self._student_file(0.0)
        options = {
            **said.student.model_dump(),
            "source": (
                None
                if said.student.model is None
                else models.source_digest(said.student.model)
            ),
            "seed": said.seed,
            "pruned": pruned,
            "pruning_epochs": said.candidates.pruning_epochs if pruned else 0,
            "max_kb": said.keep.max_kb if said.student.model is None else None,
        }
        key = step_key(
            "student",
            options,
            self._data_digest,
            array_digest(self._parts.train),
            "" if whole is None else models.file_digest(whole),
            ""
            if said.cloud is None
            else models.file_digest(self._root / said.cloud.model),
        )
        name = f"student-pruned{round(100 * pruned)}" if pruned else "student"
        make = functools.partial(self._make_student, whole, pruned, name)
        return self._work.file(name, ".keras", key, make)[0]

    def _make_student(
        self, whole: Path | None, pruned: float, name: str, path: Path
    ) -> None:
        from tensorflow import keras

        said = self._options
        recipe = training.Recipe(**said.student.model_dump(exclude={"model"}))
        learnt, recipe = self._lessons(recipe)
        keras.utils.set_random_seed(said.seed)
        model: keras.Model
        if whole is None:
            model = students.student(
                said.student.model,
                self._data.shape,
                len(self._data.names),
                said.keep.max_kb,
            )
        else:
            model = keras.models.load_model(whole, compile=False)
            recipe = training.for_pruning(recipe, said.candidates.pruning_epochs)
        self._progress.begin(f"training {name} ({model.count_params():,} parameters)")
        training.train(
            model,
            learnt,
            recipe,
            said.seed,
            lambda done, of, _loss: self._progress.advance(done, of),
            pruned=pruned,
        )
        # Keras goes by the suffix, and the step's half file keeps it.
        model.save(path)

    def _lessons(
        self, recipe: training.Recipe
    ) -> tuple[training.Lessons, training.Recipe]:
        rows = self._parts.train
        mirrors = recipe.mirror and self._data.is_picture
        outputs: list[NDArray[np.float32]] = []
        for mirrored in (False, True) if mirrors else (False,):
            # Who learns from labels alone need not ask.
            part = (
                self.cloud_outputs(rows, mirrored=mirrored)
                if recipe.soft_share
                else None
            )
            if part is not None:
                outputs.append(as_logits(part))
        cloud = np.concatenate(outputs) if outputs else None
        times = 2 if mirrors else 1
        learnt = training.lessons(
            functools.partial(self._batch, rows),
            np.tile(self._data.labels[rows], times),
            len(self._data.names),
            cloud,
            recipe,
        )
        return learnt, recipe if cloud is not None else training.without_cloud(recipe)

    def _batch(self, rows: NDArray[np.int64], which: NDArray[np.int64]) -> NDArray[Any]:
        """Inputs of train examples; the second half of the indexes are mirror images."""
        batch = self._data.model_inputs(rows[which % len(rows)])
        flip = which >= len(rows)
        if flip.any():
            batch[flip] = batch[flip][:, :, ::-1]
        return batch
