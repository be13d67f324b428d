"""Find the models to serve in a folder `{name}/{version}/`.

A version folder holds one SavedModel (`saved_model.pb`) or one `.keras`, `.h5`,
`.tflite` or `.onnx` file, and may hold `model.json`. Beside the versions may lie
`policy.json`, which says which of them answer. What cannot be served is reported with
its reason and never hides what can.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from itertools import groupby
from pathlib import Path
from typing import Annotated, Final

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from broker.codec import explain
from broker.messages import MAX_RANK, MAX_TENSORS, VERSION_PATTERN
from broker.topics import BadId, check_id
from bundle.manifest import Decision, ImageRecipe
from cloud_worker.adapters.frames import Format, ModelSource
from cloud_worker.core.padding import check_padding
from cloud_worker.core.policy import LATEST, Policy
from cloud_worker.core.spec import ModelSpec, Padding, ServedModel

SIDECAR: Final = "model.json"
POLICY: Final = "policy.json"
SUFFIXES: Final[Mapping[Format, str]] = {
    "keras": ".keras",
    "keras_h5": ".h5",
    "tflite": ".tflite",
    "onnx": ".onnx",
}
MAX_LABEL_CHARS: Final = 1024
MAX_SIDECAR_BYTES: Final = 4 * 1024 * 1024
_VERSION: Final = re.compile(VERSION_PATTERN.removesuffix("$") + r"\Z")


class NoRepository(Exception):
    """There is no folder to find models in, or no model in it."""


class Unservable(Exception):
    """This version cannot be served; says why."""


Length = Annotated[int, Field(ge=1, le=65536)]


class Pad(BaseModel):
    """Which free axis of the inputs is padded to which lengths, and with what."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    axis: int = Field(ge=1, le=MAX_RANK - 1)
    sizes: list[Length] = Field(min_length=1, max_length=64)
    value: float = Field(default=0.0, allow_inf_nan=False)

    def padding(self) -> Padding:
        """As the worker pads."""
        return Padding(self.axis, tuple(sorted(set(self.sizes))), self.value)


class Sidecar(BaseModel):
    """What `model.json` beside a model says of it; unknown fields are ignored."""

    model_config = ConfigDict(frozen=True, extra="ignore")

    preprocess: ImageRecipe | None = None
    labels: list[str] = Field(default_factory=list)
    max_batch: int | None = Field(default=None, ge=1, le=4096)
    max_request: int | None = Field(default=None, ge=1, le=65536)
    decision: Decision | None = None
    pad: Pad | None = None


@dataclass(frozen=True, slots=True)
class Candidate:
    """A version that looks as if it could be served."""

    source: ModelSource
    sidecar: Sidecar
    folder: Path

    def served(self, spec: ModelSpec) -> ServedModel:
        """The model, once its signature is known.

        Raises:
            Unservable: `model.json` names an input or output that it does not have,
                or its results could not travel.
        """
        self._check_names(spec)
        self._check_results(spec)
        return ServedModel(
            name=self.source.name,
            version=self.source.version,
            spec=spec,
            max_batch=self.source.max_batch,
            preprocess=self.sidecar.preprocess,
            decision=self.sidecar.decision,
            labels=tuple(self.sidecar.labels),
            max_request=self.sidecar.max_request,
            padding=self._padding(spec),
        )

    def _check_results(self, spec: ModelSpec) -> None:
        if len(spec.outputs) > MAX_TENSORS:
            raise Unservable(
                f"it gives {len(spec.outputs)} outputs, a result carries {MAX_TENSORS}"
            )
        for each in spec.outputs:
            if each.shape is not None and len(each.shape) > MAX_RANK:
                raise Unservable(
                    f"output {each.name!r} has rank {len(each.shape)}, a result "
                    f"carries {MAX_RANK}"
                )
        longest = max(map(len, self.sidecar.labels), default=0)
        if longest > MAX_LABEL_CHARS:
            raise Unservable(
                f"{SIDECAR} has a label of {longest} characters, a result carries "
                f"{MAX_LABEL_CHARS}"
            )

    def _padding(self, spec: ModelSpec) -> Padding | None:
        if self.sidecar.pad is None:
            return None
        padding = self.sidecar.pad.padding()
        unfit = check_padding(padding, spec)
        if unfit is not None:
            raise Unservable(f"{SIDECAR} asks for padding, but {unfit.reason}")
        return padding

    def _check_names(self, spec: ModelSpec) -> None:
        inputs = [each.name for each in spec.inputs]
        outputs = [each.name for each in spec.outputs]
        recipe, decision = self.sidecar.preprocess, self.sidecar.decision
        if recipe is not None and inputs != [recipe.input]:
            raise Unservable(
                f"{SIDECAR} makes the input {recipe.input!r}, the model takes {inputs}"
            )
        if decision is None:
            return
        for name in (decision.output, decision.confidence_output):
            if name is not None and name not in outputs:
                raise Unservable(
                    f"{SIDECAR} decides by output {name!r}, the model gives {outputs}"
                )


@dataclass(frozen=True, slots=True)
class Refused:
    """A folder that was passed over, and why."""

    path: Path
    reason: str


@dataclass(frozen=True, slots=True)
class Found:
    """What a repository holds: for each model its versions, newest first.

    `policies` lacks a model whose `policy.json` is wrong.
    """

    models: dict[str, tuple[Candidate, ...]]
    policies: dict[str, Policy]
    refused: tuple[Refused, ...]


def find_models(root: Path, *, max_batch: int, only: Collection[str] = ()) -> Found:
    """Look through a repository.

    Args:
        root: the folder of `{name}/{version}/`.
        max_batch: for models whose `model.json` does not say.
        only: the models to look at; none: all of them.

    Raises:
        NoRepository: the folder is missing, unreadable, or holds no model.
    """
    candidates: list[Candidate] = []
    policies: dict[str, Policy] = {}
    refused: list[Refused] = []
    for folder in _folders(root):
        if only and folder.name not in only:
            continue
        try:
            check_id("model name", folder.name)
        except BadId as error:
            refused.append(Refused(folder, str(error)))
            continue
        for version in sorted(
            _folders(folder), key=lambda each: version_age(each.name), reverse=True
        ):
            try:
                candidates.append(_candidate(folder.name, version, max_batch))
            except Unservable as error:
                refused.append(Refused(version, str(error)))
        try:
            policies[folder.name] = _policy(folder)
        except Unservable as error:
            refused.append(Refused(folder / POLICY, str(error)))
    if not candidates:
        raise NoRepository(_nothing_in(root, refused, only))
    models = {
        name: tuple(versions)
        for name, versions in groupby(candidates, lambda each: each.source.name)
    }
    return Found(models, policies, tuple(refused))


def _nothing_in(root: Path, refused: list[Refused], only: Collection[str]) -> str:
    of_those = f" named {' or '.join(sorted(only))}" if only else ""
    why = "".join(f"; {each.path}: {each.reason}" for each in refused[:3])
    return (
        f"{root} holds no model{of_those} to serve{why}. Put a SavedModel, .keras, .h5, "
        f".tflite or .onnx into {root}/NAME/VERSION/"
    )


def _folders(root: Path) -> list[Path]:
    try:
        return sorted(
            each
            for each in root.iterdir()
            # A leading dot marks what is hidden or still being copied.
            if each.is_dir() and not each.name.startswith(".")
        )
    except OSError as error:
        raise NoRepository(
            f"model repository {root}: {error.strerror or error}. "
            "Point --models at a folder of NAME/VERSION/"
        ) from error


def version_age(version: str) -> tuple[tuple[int, int, str], ...]:
    """Order versions as people do: 10 after 9, and numbers after words."""
    pieces = re.findall(r"\d+|\D+", version)
    return tuple(
        (1, int(piece), "") if piece.isdigit() else (0, 0, piece) for piece in pieces
    )


def _candidate(name: str, folder: Path, max_batch: int) -> Candidate:
    if _VERSION.match(folder.name) is None:
        raise Unservable(
            f"version {folder.name!r} is not valid: use 1 to 64 of a-z, 0-9, '.', '_' "
            "and '-', starting with a letter or digit"
        )
    try:
        format_, path = _model_file(folder)
        sidecar = _sidecar(folder)
    except OSError as error:
        raise Unservable(f"unreadable: {error}") from error
    source = ModelSource(
        name=name,
        version=folder.name,
        format=format_,
        path=path.resolve(),
        max_batch=sidecar.max_batch or max_batch,
        padding=None if sidecar.pad is None else sidecar.pad.padding(),
    )
    return Candidate(source, sidecar, folder)


def _model_file(folder: Path) -> tuple[Format, Path]:
    found: list[tuple[Format, Path]] = []
    if (folder / "saved_model.pb").is_file():
        found.append(("saved_model", folder))
    for format_, suffix in SUFFIXES.items():
        found.extend((format_, path) for path in sorted(folder.glob(f"*{suffix}")))
    match found:
        case [one]:
            return one
        case []:
            raise Unservable(
                f"no saved_model.pb, {', '.join(SUFFIXES.values())} in it: half "
                "copied, perhaps"
            )
        case several:
            names = ", ".join(path.name for _, path in several)
            raise Unservable(f"several models in it ({names}): keep one a version")


def _policy(model: Path) -> Policy:
    data = _small_file(model / POLICY)
    if data is None:
        return LATEST
    try:
        return Policy.model_validate_json(data)
    except ValidationError as error:
        raise Unservable(f"{POLICY}: {explain(error)}") from error


def _sidecar(folder: Path) -> Sidecar:
    data = _small_file(folder / SIDECAR)
    if data is None:
        return Sidecar()
    try:
        return Sidecar.model_validate_json(data)
    except ValidationError as error:
        raise Unservable(f"{SIDECAR}: {explain(error)}") from error


def _small_file(path: Path) -> bytes | None:
    """What a person has written into it; None when it is not there."""
    try:
        with path.open("rb") as file:
            data = file.read(MAX_SIDECAR_BYTES + 1)
    except FileNotFoundError:
        return None
    except OSError as error:
        raise Unservable(f"{path.name}: {error.strerror or error}") from error
    if len(data) > MAX_SIDECAR_BYTES:
        raise Unservable(f"{path.name} is over {MAX_SIDECAR_BYTES} bytes")
    return data
