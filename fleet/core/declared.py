"""What operators declare: the fields of `fleet.yaml`, and of `rollout start` as well.

One reading for both, so that what can be typed can be written down. A declared rollout
becomes terms in `fleet.core.ordering`.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Annotated, Any, Final, Literal, Self

from pydantic import (
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Discriminator,
    Field,
    Tag,
    WithJsonSchema,
    field_validator,
    model_validator,
)

from broker.messages import Id, ModelVersion, Window
from fleet.core.amounts import read_bytes, read_seconds, read_share, read_window
from fleet.core.cohorts import read_waves
from fleet.core.gates import GateKind
from fleet.core.labelling import read_labelling
from fleet.core.labels import read_query
from fleet.core.rollouts import (
    DEFAULT_LEASE_S,
    DEFAULT_MAX_PARALLEL,
    DEFAULT_PATIENCE_S,
    OnFailure,
    Wave,
)

# So many at once are no wave: there is nothing to stage.
FEW_AGENTS: Final = 20
STAGED: Final = "1%, 10%, 50%"
ALL: Final = "all"
AUTO: Final = "auto"


def _read(read: Callable[[str], object]) -> BeforeValidator:
    return BeforeValidator(
        lambda value: read(value) if isinstance(value, str) else value
    )


def _words(example: str) -> WithJsonSchema:
    return WithJsonSchema({"type": ["string", "number"], "examples": [example]})


Seconds = Annotated[
    float, Field(ge=0, le=366 * 86_400), _read(read_seconds), _words("10m")
]
Share = Annotated[float, Field(ge=0, le=1), _read(read_share), _words("5%")]
Bytes = Annotated[int, Field(ge=1), _read(read_bytes), _words("100kB")]
Span = Annotated[
    Window,
    _read(read_window),
    WithJsonSchema({"type": "string", "examples": ["Mon-Fri 02:00-05:00"]}),
]


class Part(BaseModel):
    """A part of the file; a field that is not known is a mistake."""

    model_config = ConfigDict(extra="forbid", frozen=True)


class DeclaredWave(Part):
    """How far the version may be spread before the gates are asked."""

    to: Annotated[
        str,
        _words("5%"),
        Field(
            description="agents in all, those of earlier waves included: 10, 5% or all"
        ),
    ]
    soak: Annotated[
        Seconds | None,
        Field(description="how long to watch after its last agent has settled"),
    ] = None
    approve: Annotated[
        bool | None, Field(description="whether a person must agree to go on after it")
    ] = None


class DeclaredGate(Part):
    """What differs from a gate's defaults; `docs/rollouts.md` has them in a table."""

    limit: Annotated[
        Share | None, Field(description="the harm that fails it when it is proven")
    ] = None
    enough: Annotated[
        Share | None,
        Field(description="the harm that must be proven absent for it to pass"),
    ] = None
    min_sample: Annotated[
        int | None, Field(ge=1, description="of fewer it says nothing")
    ] = None
    unsure: Annotated[
        Literal["ask", "go_on"] | None,
        Field(description="what it does when it can say nothing"),
    ] = None
    false_alarm: Annotated[
        Share | None, Field(description="the chance that it fails wrongly")
    ] = None


OneGate = Annotated[
    Annotated[Literal["off"], Tag("text"), _words("5%")]
    | Annotated[DeclaredGate, Tag("each")],
    Discriminator(lambda value: "text" if isinstance(value, str) else "each"),
]


class DeclaredPolicy(Part):
    """How agents carry the update out."""

    probation: Annotated[
        Seconds,
        Field(description="how long the new version may still return by itself"),
    ] = 30.0
    probation_requests: Annotated[
        int, Field(ge=0, description="and at least until it has served so many")
    ] = 0
    max_error_share: Annotated[
        Share, Field(description="an agent returns above this share of errors")
    ] = 0.02
    max_agreement_drop: Annotated[
        Share,
        Field(description="and when it agrees with the cloud by so much less often"),
    ] = 0.05
    max_slowdown: Annotated[
        float, Field(ge=1, description="and when its median is so many times slower")
    ] = 3.0
    rate: Annotated[
        Bytes | None, Field(description="bytes a second that an agent may pull")
    ] = None
    budget: Annotated[
        Bytes | None, Field(description="bytes a day that an agent may pull")
    ] = None
    shared: Annotated[
        bool, Field(description="agents of a wave listen to one transfer together")
    ] = False


class DeclaredRollout(Part):
    """A version that agents should serve, and how it gets there."""

    model: Annotated[Id, Field(description="a published model")]
    version: Annotated[ModelVersion, Field(description="one of its versions")]
    where: Annotated[
        str | None,
        Field(
            description="only agents that this query matches",
            examples=["site=lyon and memory_mb >= 512"],
        ),
    ] = None
    agents: Annotated[frozenset[Id] | None, Field(description="only these agents")] = (
        None
    )
    waves: Annotated[
        Annotated[str, Tag("text")] | Annotated[tuple[DeclaredWave, ...], Tag("list")],
        Discriminator(lambda value: "text" if isinstance(value, str) else "list"),
        Field(
            description=f"auto: {STAGED}, or all at once up to {FEW_AGENTS} agents; "
            "all; 1%,10%,50%; 10,100; 10x2 (ten, then twice as many more each time)"
        ),
    ] = AUTO
    soak: Annotated[
        Seconds | None,
        Field(description="how long to watch each wave; 5m when there are several"),
    ] = None
    approve: Annotated[
        Literal["never", "first", "each"],
        Field(description="after which waves a person must agree"),
    ] = "never"
    shadow: Annotated[
        str | None,
        Field(
            description="first only run beside the active version, on so many agents: "
            "10, 5% or all"
        ),
    ] = None
    gates: Annotated[
        Annotated[Literal["default", "off"], Tag("text")]
        | Annotated[dict[GateKind, OneGate], Tag("each")],
        Discriminator(lambda value: "text" if isinstance(value, str) else "each"),
        Field(description="what each wave is judged by"),
    ] = "default"
    window: Annotated[
        Span | None,
        Field(description="when agents may change, in their own time"),
    ] = None
    max_parallel: Annotated[
        int, Field(ge=1, description="how many agents may pull at once")
    ] = DEFAULT_MAX_PARALLEL
    lease: Annotated[
        Seconds, Field(gt=0, description="how long an agent may stand still")
    ] = DEFAULT_LEASE_S
    patience: Annotated[
        Seconds,
        Field(description="how long gates may be unsure before a person is asked"),
    ] = DEFAULT_PATIENCE_S
    on_failure: Annotated[OnFailure, Field(description="what a failed gate does")] = (
        OnFailure.ROLL_BACK
    )
    policy: Annotated[
        DeclaredPolicy, Field(description="how agents carry the update out")
    ] = DeclaredPolicy()

    @field_validator("where")
    @classmethod
    def _where_can_be_asked(cls, where: str | None) -> str | None:
        if where is not None:
            read_query(where)
        return where

    @field_validator("agents")
    @classmethod
    def _somebody_is_named(cls, agents: frozenset[str] | None) -> frozenset[str] | None:
        if agents is not None and not agents:
            raise ValueError("no agent is named: leave it out for all")
        return agents

    @field_validator("waves")
    @classmethod
    def _waves_can_be_read(
        cls, waves: str | tuple[DeclaredWave, ...]
    ) -> str | tuple[DeclaredWave, ...]:
        if waves != AUTO:
            read_waves(in_one_line(waves))
        return waves

    @field_validator("shadow")
    @classmethod
    def _shadow_can_be_read(cls, shadow: str | None) -> str | None:
        if shadow is not None:
            shadow_wave(shadow, 0)
        return shadow

    @field_validator("gates", mode="before")
    @classmethod
    def _a_share_is_a_limit(cls, gates: object) -> object:
        if not isinstance(gates, dict):
            return gates
        return {
            kind: gate
            if isinstance(gate, (dict, DeclaredGate)) or gate == "off"
            else {"limit": gate}
            for kind, gate in gates.items()
        }

    @property
    def whom(self) -> tuple[str, frozenset[str] | None, str | None]:
        """What it is of and for whom: there is one declared rollout a such."""
        return self.model, self.agents, self.where


class DeclaredFleet(Part):
    """A whole `fleet.yaml`."""

    labels: Annotated[
        dict[Id, dict[str, str | None]],
        Field(
            description="labels by agent; those that are not named here stay as they "
            "are, and an empty value takes one away"
        ),
    ] = Field(default_factory=dict)
    rollouts: Annotated[
        tuple[DeclaredRollout, ...], Field(description="one a model and query")
    ] = ()

    @field_validator("labels")
    @classmethod
    def _labels_can_be_asked_for(
        cls, labels: dict[str, dict[str, str | None]]
    ) -> dict[str, dict[str, str | None]]:
        for agent, of_agent in labels.items():
            for key, value in of_agent.items():
                try:
                    read_labelling([f"{key}-" if value is None else f"{key}={value}"])
                except ValueError as error:
                    raise ValueError(f"{agent}: {error}") from error
        return labels

    @model_validator(mode="after")
    def _one_rollout_for_the_same(self) -> Self:
        seen: dict[object, int] = {}
        for index, each in enumerate(self.rollouts):
            if each.whom in seen:
                raise ValueError(
                    f"rollouts {seen[each.whom] + 1} and {index + 1} are both of "
                    f"{each.model} for the same agents: keep one, or give each its "
                    "own `where` or `agents`"
                )
            seen[each.whom] = index
        return self


def read_gate(text: str) -> tuple[str, Any]:
    """A gate as the command line has it: `agreement=5%`, `spill=off`.

    Raises:
        ValueError: it is none.
    """
    kind, equals, value = (part.strip() for part in text.partition("="))
    kinds = [each.value for each in GateKind]
    if kind not in kinds or not equals or not value:
        raise ValueError(
            f"{text!r} is no gate: write KIND=LIMIT or KIND=off, with one of "
            f"{', '.join(kinds)}"
        )
    return kind, value


def in_one_line(waves: str | tuple[DeclaredWave, ...]) -> str:
    """Declared waves as `read_waves` reads them."""
    return waves if isinstance(waves, str) else ", ".join(each.to for each in waves)


def shadow_wave(text: str, soak_s: float) -> Wave:
    """The wave in which the candidate only runs beside.

    Raises:
        ValueError: it cannot be read, or is more than one.
    """
    waves, rate = read_waves(text, soak_s=soak_s)
    if rate is not None or "," in text:
        raise ValueError(f"shadow {text!r}: one wave is 10, 5% or all")
    return replace(waves[0], shadow=True)
