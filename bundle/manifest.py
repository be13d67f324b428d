"""What a bundle says of itself. Pure: parsed bytes in, validated values out."""

from __future__ import annotations

from typing import Annotated, Final, Literal, Self

from pydantic import (
    BaseModel,
    ConfigDict,
    Field,
    StringConstraints,
    ValidationError,
    model_validator,
)

from bundle.calibration import Calibration

MANIFEST_FILE: Final = "manifest.json"
MAX_MANIFEST_BYTES: Final = 4 * 1024 * 1024

Name = Annotated[str, StringConstraints(pattern=r"^[a-z0-9][a-z0-9_-]{0,63}$")]
Version = Annotated[str, StringConstraints(pattern=r"^[a-z0-9][a-z0-9._-]{0,63}$")]
FileName = Annotated[
    str, StringConstraints(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]{0,127}$")
]
Digest = Annotated[str, StringConstraints(pattern=r"^[0-9a-f]{64}$")]


Threshold = Annotated[float, Field(allow_inf_nan=False)]


class ManifestError(ValueError):
    """The manifest cannot be used; says which field and why."""


class Part(BaseModel):
    """A frozen part of a manifest; unknown fields are ignored."""

    model_config = ConfigDict(frozen=True, extra="ignore")


class ImageRecipe(Part):
    """How an encoded image becomes the tensor `input`.

    Decoded, converted to `channels` (1 grey, 3 RGB), resized (bilinear) to
    `height` × `width`, then `pixel * scale + offset` as float32 of shape
    [1, height, width, channels].
    """

    kind: Literal["image"] = "image"
    input: str
    width: Annotated[int, Field(ge=1, le=8192)]
    height: Annotated[int, Field(ge=1, le=8192)]
    channels: Literal[1, 3]
    scale: float = 1.0
    offset: float = 0.0


class Decision(Part):
    """How an answer and its confidence are read from one output.

    `score` over the output, higher is surer: `max_softmax`, `margin`, `entropy` (1 −
    normalised entropy), `pnorm` and `expected_misses` (of a detector's scores) in 0..1;
    `energy` any finite number; `value` takes the output's first item as the
    confidence itself. With `confidence_output`, that output's first item is the
    confidence, in 0..1, and `output` gives the answer. An answer under `threshold` is
    hard, and so is an empty detection unless `empty` is `sure`. An answer of a class in
    `class_thresholds` (by its label) is hard under that one instead.
    """

    output: str
    confidence_output: str | None = None
    activation: Literal["logits", "probabilities"] = "logits"
    score: Literal[
        "max_softmax",
        "margin",
        "entropy",
        "energy",
        "pnorm",
        "expected_misses",
        "value",
    ] = "max_softmax"
    temperature: Annotated[float, Field(gt=0)] = 1.0
    norm: Annotated[float, Field(ge=1, le=64)] = 4.0
    threshold: Threshold = 0.0
    class_thresholds: dict[str, Threshold] = Field(default_factory=dict)
    empty: Literal["unsure", "sure"] = "unsure"

    @model_validator(mode="after")
    def _fields_agree(self) -> Self:
        unbounded = self.score == "energy" and self.confidence_output is None
        for threshold in (self.threshold, *self.class_thresholds.values()):
            if not unbounded and not 0 <= threshold <= 1:
                raise ValueError(
                    f"a threshold on {self.confidence_output or self.score!r} is in "
                    f"0..1, got {threshold}"
                )
        if self.score in ("energy", "pnorm") and self.activation != "logits":
            raise ValueError(f"the score {self.score!r} needs logits")
        return self


class Limits(Part):
    """Above these a request is oversized for the edge model."""

    max_payload_bytes: Annotated[int, Field(ge=1)] = 1024 * 1024
    max_pixels: Annotated[int, Field(ge=1)] = 4_000_000


class Golden(Part):
    """Inputs and outputs a bundle must reproduce before it may serve.

    The `.npz` holds `in_{input}` and `out_{output}` arrays with the examples along
    the first axis; each is run one at a time.
    """

    file: FileName
    tolerance: Annotated[float, Field(ge=0)] = 0.05


class Requires(Part):
    """What a device needs for this bundle; an empty list asks for nothing.

    `machines` as `platform.machine()` says it (`x86_64`, `aarch64`, `armv7l`), `boards`
    as the agent is configured, `runtimes` by name (`litert`, `tflite`); the runtime's
    operators are tried, not declared, by the golden inputs.
    """

    machines: Annotated[list[Name], Field(max_length=64)] = Field(default_factory=list)
    boards: Annotated[list[Name], Field(max_length=256)] = Field(default_factory=list)
    runtimes: Annotated[list[Name], Field(max_length=16)] = Field(default_factory=list)
    memory_mb: Annotated[int, Field(ge=0)] = 0


class FileEntry(Part):
    """One file of the bundle, as packed."""

    sha256: Digest
    size_bytes: Annotated[int, Field(ge=0)]


class Manifest(Part):
    """A model version: what it is, how to feed it, how to read it, when to doubt it.

    `columns`: what each number of a row is called, for people.
    `answers`: `wait` holds a spilled request until the cloud's answer or the deadline;
    `provisional` gives the device the edge's answer at once, and a final one later.
    `capture` False: the pool may keep nothing that is asked of it as an example.
    """

    format: Literal[1]
    name: Name
    version: Version
    model_file: FileName
    task: Literal["classify", "detect", "other"] = "other"
    preprocess: ImageRecipe | None = None
    labels: list[str] = Field(default_factory=list)
    columns: list[str] = Field(default_factory=list)
    decision: Decision | None = None
    calibration: Calibration | None = None
    answers: Literal["wait", "provisional"] = "wait"
    capture: bool = True
    limits: Limits = Field(default_factory=Limits)
    golden: Golden | None = None
    requires: Requires = Field(default_factory=Requires)
    files: dict[FileName, FileEntry] = Field(default_factory=dict)

    @model_validator(mode="after")
    def _names_are_files(self) -> Self:
        if self.model_file == MANIFEST_FILE:
            raise ValueError("model_file cannot be the manifest")
        return self

    @model_validator(mode="after")
    def _calibration_is_of_the_decision(self) -> Self:
        if self.calibration is None:
            return self
        if self.decision is None:
            raise ValueError("a calibration needs the decision that it is of")
        rungs = self.calibration.rungs
        if rungs and rungs[-1] != self.decision.threshold:
            raise ValueError(
                f"the last rung is the decision's threshold {self.decision.threshold}, "
                f"got {rungs[-1]}"
            )
        for label, of_class in self.calibration.class_rungs.items():
            own = self.decision.class_thresholds.get(label)
            if own is None or (of_class and of_class[-1] != own):
                raise ValueError(
                    f"the last rung of class {label!r} is its threshold, {own}"
                )
        return self

    @model_validator(mode="after")
    def _classes_are_labels(self) -> Self:
        if self.decision is None:
            return self
        strange = sorted(set(self.decision.class_thresholds) - set(self.labels))
        if strange:
            # A slip of the pen would leave the class without its limit.
            raise ValueError(f"class_thresholds name {strange[0]!r}, which is no label")
        return self

    @property
    def class_thresholds(self) -> dict[int, float]:
        """The decision's, by the index of the label."""
        if self.decision is None:
            return {}
        return {
            self.labels.index(label): threshold
            for label, threshold in self.decision.class_thresholds.items()
        }


def parse_manifest(data: bytes) -> Manifest:
    """Read a manifest.

    Raises:
        ManifestError: too long, not JSON, or a field is missing or wrong.
    """
    if len(data) > MAX_MANIFEST_BYTES:
        raise ManifestError(
            f"manifest of {len(data)} bytes is over {MAX_MANIFEST_BYTES}"
        )
    try:
        return Manifest.model_validate_json(data)
    except ValidationError as error:
        fault = error.errors(include_url=False, include_input=False)[0]
        where = ".".join(str(part) for part in fault["loc"]) or "manifest"
        raise ManifestError(f"{where}: {fault['msg']}") from error
