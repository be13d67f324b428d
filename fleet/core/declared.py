"""What operators declare: the fields of `fleet.yaml`, and of `rollout start` as well.

One reading for both, so that what can be typed can be written down. A declared rollout
becomes an order (`ordered`) for so many agents as there are.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Annotated, Any, Final, Literal, Self

from pydantic import (
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    WithJsonSchema,
    field_validator,
    model_validator,
)

from broker.messages import Id, ModelVersion, UpdatePolicy, Window
from fleet.core.amounts import read_bytes, read_seconds, read_share, read_window
from fleet.core.cohorts import read_waves
from fleet.core.gates import DEFAULT_GATES, Gate, GateKind, Unsure
from fleet.core.labels import check_label, read_query
from fleet.core.rollouts import (
    DEFAULT_LEASE_S,
    DEFAULT_MAX_PARALLEL,
    DEFAULT_PATIENCE_S,
    OnFailure,
    Rollout,
    Wave,
)

# So many at once are no wave: there is nothing to stage.
FEW_AGENTS: Final = 20
STAGED: Final = "1%, 10%, 50%"
ALL: Final = "all"
AUTO: Final = "auto"
STAGED_SOAK_S: Final = 300.0


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
Limit = Annotated[str, WithJsonSchema({"type": ["string", "number"]})]


class Part(BaseModel):
    """A part of the file; a field that is not known is a mistake."""

    model_config = ConfigDict(extra="forbid", frozen=True)


class DeclaredWave(Part):
    """How far the version may be spread before the gates are asked."""

    to: Annotated[
        str,
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
        str | tuple[DeclaredWave, ...],
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
        Literal["default", "off"] | dict[GateKind, Literal["off"] | DeclaredGate],
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
            read_waves(_in_one_line(waves))
        return waves

    @field_validator("shadow")
    @classmethod
    def _shadow_can_be_read(cls, shadow: str | None) -> str | None:
        if shadow is not None:
            _shadow_wave(shadow, 0)
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
    def agents_and_query(self) -> tuple[frozenset[str] | None, str | None]:
        """Whom it is for; there can be one rollout of a model for the same."""
        return self.agents, self.where

    def ordered(self, population: int) -> Rollout:
        """The order for so many agents; generation, epoch and way back are not known yet.

        Args:
            population: how many agents it would reach now; `auto` waves depend on it.
        """
        waves = self.waves
        if waves == AUTO:
            waves = ALL if population <= FEW_AGENTS else STAGED
        staged = waves != ALL
        soak_s = self.soak
        if soak_s is None:
            soak_s = STAGED_SOAK_S if staged or self.shadow else 0.0
        read, rate = read_waves(_in_one_line(waves), soak_s=soak_s)
        each = self.approve == "each"
        if rate is not None:
            rate = replace(rate, approve=each)
        read = tuple(
            replace(wave, approve=each or (index == 0 and self.approve == "first"))
            for index, wave in enumerate(_own_words(waves, read))
        )
        if self.shadow is not None:
            shadow = _shadow_wave(self.shadow, soak_s)
            read = (replace(shadow, approve=self.approve != "never"), *read)
        return Rollout(
            generation=0,
            model=self.model,
            version=self.version,
            started_at_ms=0,
            targets=self.agents,
            query=self.where,
            waves=read,
            rate=rate,
            gates=self._gates(staged=staged or self.shadow is not None),
            policy=self._policy(),
            max_parallel=self.max_parallel,
            lease_s=self.lease,
            patience_s=self.patience,
            on_failure=self.on_failure,
        )

    def _gates(self, *, staged: bool) -> tuple[Gate, ...]:
        if self.gates == "off":
            return ()
        if self.gates == "default":
            return DEFAULT_GATES if staged else ()
        gates = []
        for default in DEFAULT_GATES:
            said = self.gates.get(default.kind)
            if said != "off":
                gates.append(_changed(default, said))
        return tuple(gates)

    def _policy(self) -> UpdatePolicy:
        said = self.policy
        return UpdatePolicy(
            probation_s=said.probation,
            probation_requests=said.probation_requests,
            max_error_share=said.max_error_share,
            max_agreement_drop=said.max_agreement_drop,
            max_slowdown=said.max_slowdown,
            window=self.window,
            bytes_per_s=said.rate,
            bytes_per_day=said.budget,
            shared=said.shared,
        )


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
                    check_label(key, "-" if value is None else value)
                except ValueError as error:
                    raise ValueError(f"{agent}: {error}") from error
        return labels

    @model_validator(mode="after")
    def _one_rollout_for_the_same(self) -> Self:
        seen: dict[object, int] = {}
        for index, each in enumerate(self.rollouts):
            whom = (each.model, each.agents_and_query)
            if whom in seen:
                raise ValueError(
                    f"rollouts {seen[whom] + 1} and {index + 1} are both of "
                    f"{each.model} for the same agents: keep one, or give each its "
                    "own `where` or `agents`"
                )
            seen[whom] = index
        return self


def gate_text(text: str) -> tuple[str, Any]:
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


def _changed(default: Gate, said: DeclaredGate | None) -> Gate:
    if said is None:
        return default
    gate = default
    if said.limit is not None:
        # What must be proven absent moves along with what fails it.
        factor = None if default.enough is None else default.enough / default.limit
        enough = None if factor is None else min(1.0, said.limit * factor)
        gate = replace(gate, limit=said.limit, enough=enough)
    changes = said.model_dump(exclude_none=True, exclude={"limit", "unsure"})
    if said.unsure is not None:
        changes["unsure"] = Unsure(said.unsure)
    return replace(gate, **changes)


def _in_one_line(waves: str | tuple[DeclaredWave, ...]) -> str:
    return waves if isinstance(waves, str) else ", ".join(each.to for each in waves)


def _own_words(
    declared: str | tuple[DeclaredWave, ...], waves: tuple[Wave, ...]
) -> tuple[Wave, ...]:
    """What single waves say of themselves, above what is said of all."""
    if isinstance(declared, str):
        return waves
    said = [*declared, *[None] * (len(waves) - len(declared))]
    return tuple(
        wave
        if own is None
        else replace(
            wave,
            soak_s=wave.soak_s if own.soak is None else own.soak,
            approve=wave.approve if own.approve is None else own.approve,
        )
        for wave, own in zip(waves, said, strict=True)
    )


def _shadow_wave(text: str, soak_s: float) -> Wave:
    waves, rate = read_waves(text, soak_s=soak_s)
    if rate is not None or "," in text:
        raise ValueError(f"shadow {text!r}: one wave is 10, 5% or all")
    return replace(waves[0], shadow=True)
