"""What a build file says: every knob of a build in one place, each with its unit."""

from __future__ import annotations

import tomllib
from pathlib import Path
from typing import Annotated, Any, Final, Self

from pydantic import (
    BaseModel,
    ConfigDict,
    Field,
    ValidationError,
    field_validator,
    model_validator,
)

from builder.core.candidates import Quantization
from builder.core.refusal import BuildRefused
from builder.core.splits import CHOOSE_SHARE, SHARES
from bundle.manifest import Limits, Name, Version
from cascade.targets import MaxSpill, parse_target

MAX_BYTES: Final = 1024 * 1024
Share = Annotated[float, Field(ge=0, lt=1)]


class _Part(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class DataSource(_Part):
    """Where examples come from; see `adapters.datasets.Reading`."""

    source: str
    label: str = "label"
    part: str = "part"
    width: Annotated[int, Field(ge=1)] | None = None
    height: Annotated[int, Field(ge=1)] | None = None
    channels: Annotated[int, Field(ge=1, le=3)] = 3
    scale: float = 1.0
    offset: float = 0.0
    names: tuple[str, ...] | None = None
    max_corrupt: Share = 0.01
    shares: tuple[float, float, float, float] = SHARES
    choose_share: Annotated[float, Field(gt=0, lt=1)] = CHOOSE_SHARE


class CloudSource(_Part):
    """The cloud model: a SavedModel's folder, `.keras` or `.h5`."""

    model: Path
    output: str | None = None


class Student(_Part):
    """How the student is made; `epochs = 0` makes none."""

    model: str | None = None
    epochs: Annotated[int, Field(ge=0)] = 6
    batch: Annotated[int, Field(ge=1)] = 128
    peak_rate: Annotated[float, Field(gt=0)] = 3e-3
    soft_share: Annotated[float, Field(ge=0, le=1)] = 0.8
    temperature: Annotated[float, Field(gt=0)] = 4.0
    mirror: bool = False


class Tried(_Part):
    """Which candidates are made."""

    quantizations: tuple[Quantization, ...] = ("float16", "dynamic", "int8")
    pruned: tuple[Share, ...] = ()
    pruning_epochs: Annotated[int, Field(ge=1)] = 2
    cloud_itself: bool = False
    representative: Annotated[int, Field(ge=1)] = 500


class Keeping(_Part):
    """The constraints of the choice."""

    max_kb: Annotated[float, Field(gt=0)] | None = None
    max_ms: Annotated[float, Field(gt=0)] | None = None
    max_spill: Share | None = None
    max_accuracy_drop: Share | None = None


class BuildFile(_Part):
    """One build. Relative paths are relative to the file's folder."""

    name: Name
    version: Version
    target: str = "at most 2 points worse than the cloud, with 95% confidence"
    seed: int = 1
    data: DataSource
    cloud: CloudSource | None = None
    edge: Path | None = None
    student: Student = Student()
    candidates: Tried = Tried()
    keep: Keeping = Keeping()
    input: str | None = None
    limits: Limits = Limits()

    @field_validator("target")
    @classmethod
    def _target_reads(cls, said: str) -> str:
        parse_target(said)
        return said

    @model_validator(mode="after")
    def _makes_something(self) -> Self:
        trains = self.edge is None and self.student.epochs > 0
        if self.edge is None and not trains and not self.candidates.cloud_itself:
            raise ValueError(
                "nothing to make: name an edge .tflite, a student with epochs, or "
                "candidates.cloud_itself"
            )
        if self.cloud is None:
            self._goes_without_cloud()
        return self

    def _goes_without_cloud(self) -> None:
        if self.candidates.cloud_itself:
            raise ValueError("candidates.cloud_itself needs a cloud model")
        if not isinstance(parse_target(self.target), MaxSpill):
            raise ValueError(  # noqa: TRY004 - pydantic reads this one
                f"the target {self.target!r} is about the cloud's answers, and there "
                "is no cloud model: name one, or state how much may be spilled"
            )


def read_build_file(path: Path | None, said: dict[str, Any] | None = None) -> BuildFile:
    """Read a build file, TOML.

    Args:
        path: the file, or a folder with a `build.toml`; None where the command line
            says everything.
        said: what stands above it, from the command line; nested as the file.

    Raises:
        BuildRefused: it is missing, no TOML, or a field is wrong.
    """
    if path is None:
        return _checked({}, said or {}, "the command line")
    file = path / "build.toml" if path.is_dir() else path
    try:
        if file.stat().st_size > MAX_BYTES:
            raise BuildRefused(f"{file} is over {MAX_BYTES} bytes")
        content = tomllib.loads(file.read_text(encoding="utf-8"))
    except OSError as error:
        raise BuildRefused(
            f"cannot read {file}: {error.strerror}; a build file says what to build "
            "(see examples/fashion/build.toml)"
        ) from error
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise BuildRefused(f"{file} is no TOML: {error}") from error
    return _checked(content, said or {}, str(file))


def _checked(content: dict[str, Any], said: dict[str, Any], source: str) -> BuildFile:
    try:
        return BuildFile.model_validate(_over(content, said))
    except ValidationError as error:
        fault = error.errors(include_url=False, include_input=False)[0]
        where = ".".join(str(part) for part in fault["loc"]) or "the build"
        raise BuildRefused(f"{source}: {where}: {fault['msg']}") from error


def _over(content: dict[str, Any], said: dict[str, Any]) -> dict[str, Any]:
    merged = dict(content)
    for name, value in said.items():
        if isinstance(value, dict):
            merged[name] = _over(merged.get(name, {}), value)
        elif value is not None:
            merged[name] = value
    return merged
