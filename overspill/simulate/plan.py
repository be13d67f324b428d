"""What a simulation is: how many agents, which fault befalls whom, how good a version is.

The same plan and seed give the same fleet, whatever the number of processes. Pure.
"""

from __future__ import annotations

import hashlib
import tomllib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from enum import StrEnum
from random import Random
from typing import Annotated, Any, Final, Self

from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

MAX_PLAN_BYTES: Final = 64 * 1024
MOST_AGENTS: Final = 10_000
MODEL: Final = "simulated"
NAME_PREFIX: Final = "sim-"
BEFORE: Final = "1"
AFTER: Final = "2"

Share = Annotated[float, Field(ge=0, le=1)]
Words = Annotated[str, Field(max_length=100)]
Seconds = Annotated[float, Field(ge=0, le=3600)]


class BadPlan(ValueError):
    """A plan that cannot be used; says which field and why."""


class Fault(StrEnum):
    """What can be wrong with a simulated device."""

    SLOW = "slow"
    OFFLINE = "offline"
    FULL_DISK = "full_disk"
    WRONG_CLOCK = "wrong_clock"
    BAD_FLASH = "bad_flash"
    CRASH_LOOP = "crash_loop"


class _Part(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class Trouble(_Part):
    """How one fault shows, and on how many agents.

    Attributes:
        share: of all agents, rounded to whole ones.
        agents: how many, instead of a share.
        bytes_per_s: slow: what the line carries.
        after_share: offline: how much of the bundle was pulled when the line fails.
        for_s: offline, full_disk: for so long; 0: for good.
        free_bytes: full_disk: what is free meanwhile.
        ahead_s: wrong_clock: how far the clock is ahead; behind when negative.
        times: bad_flash: so many chunks are damaged as they are written; 0: each.
            crash_loop: the new version ends the process so many times; 0: each time.
    """

    share: Share = 0.0
    agents: Annotated[int, Field(ge=0, le=MOST_AGENTS)] | None = None
    bytes_per_s: Annotated[int, Field(ge=1024)] = 64 * 1024
    after_share: Share = 0.3
    for_s: Seconds = 10.0
    free_bytes: Annotated[int, Field(ge=0)] = 100_000
    ahead_s: float = -10 * 365 * 86_400.0
    times: Annotated[int, Field(ge=0, le=1000)] = 1

    def count(self, agents: int) -> int:
        """On how many of `agents` it is."""
        return round(self.share * agents) if self.agents is None else self.agents


# What of a `Trouble` each fault reads; anything else beside it is a slip of the pen.
READS: Final[Mapping[Fault, frozenset[str]]] = {
    Fault.SLOW: frozenset({"bytes_per_s"}),
    Fault.OFFLINE: frozenset({"after_share", "for_s"}),
    Fault.FULL_DISK: frozenset({"for_s", "free_bytes"}),
    Fault.WRONG_CLOCK: frozenset({"ahead_s"}),
    Fault.BAD_FLASH: frozenset({"times"}),
    Fault.CRASH_LOOP: frozenset({"times"}),
}


class Quality(_Part):
    """What a version does on every device, on average.

    Attributes:
        agreement: share of its answers that are the cloud's too.
        errors: share of its runs that fail.
        latency_ms: of a run, in the middle; devices differ by half of it.
        spill: share of requests that it is unsure of.
    """

    agreement: Share = 0.93
    errors: Share = 0.0005
    latency_ms: Annotated[float, Field(gt=0)] = 2.0
    spill: Share = 0.10


class Rolling(_Part):
    """How the version is rolled out; the words of `overspill rollout start`.

    Attributes:
        waves: as `--waves`.
        soak: as `--soak`; only where there are several waves.
        probation: as `--probation`.
        max_parallel: as `--max-parallel`.
        lease: as `--lease`.
        gates: whether gates are asked.
        shared: as `--shared`.
    """

    waves: Words = "all"
    soak: Words = "5s"
    probation: Words = "3s"
    max_parallel: Annotated[int, Field(ge=1)] = 100
    lease: Words = "60s"
    gates: bool = True
    shared: bool = False

    def words(self) -> list[str]:
        """The options of the command."""
        return [
            *("--waves", self.waves, "--probation", self.probation),
            *("--max-parallel", str(self.max_parallel), "--lease", self.lease),
            *(() if self.waves == "all" else ("--soak", self.soak)),
            *(() if self.gates else ("--no-gates",)),
            *(("--shared",) if self.shared else ()),
        ]


class Plan(_Part):
    """All of a simulation. Written as TOML.

    Attributes:
        agents: how many.
        seed: of everything that is drawn.
        model_bytes: size of the model file of each version.
        moved_share: of the weights, how many differ between the versions.
        connect_over_s: they connect spread over so long.
        outage_s: once a third has converged the broker is killed and away for so long,
            and all agents come back together; 0: it is not.
        reconnect_s: without a broker, agents try again after so long at most, and
            look for updates within a third of it once it is back.
        requests_per_s: what each device is asked, in pretence.
        audit_share: of what it is sure of, what the cloud is asked too.
        before: of the version that all agents have.
        after: of the version that is rolled out.
        rollout: how it is rolled out.
        faults: by name.
    """

    agents: Annotated[int, Field(ge=1, le=MOST_AGENTS)] = 100
    seed: Annotated[int, Field(ge=0)] = 1
    model_bytes: Annotated[int, Field(ge=1024, le=64 * 1024**2)] = 750_000
    moved_share: Share = 0.3
    connect_over_s: Seconds = 4.0
    outage_s: Seconds = 0.0
    reconnect_s: Annotated[float, Field(ge=1, le=600)] = 15.0
    requests_per_s: Annotated[float, Field(gt=0, le=1000)] = 5.0
    audit_share: Share = 0.05
    before: Quality = Quality()
    after: Quality = Quality(agreement=0.94)
    rollout: Rolling = Rolling()
    faults: dict[Fault, Trouble] = Field(default_factory=dict)

    @model_validator(mode="after")
    def _faults_make_sense(self) -> Self:
        for fault, trouble in self.faults.items():
            strange = trouble.model_fields_set - READS[fault] - {"share", "agents"}
            if strange:
                raise ValueError(
                    f"faults.{fault.value} has no {min(strange)}: it reads "
                    f"{', '.join(sorted(READS[fault]))}"
                )
        struck = sum(each.count(self.agents) for each in self.faults.values())
        if struck > self.agents:
            raise ValueError(
                f"faults on {struck} agents are planned, and there are {self.agents}: "
                "an agent has one fault at most"
            )
        return self


USUAL_FAULTS: Final[Mapping[Fault, Trouble]] = {
    Fault.SLOW: Trouble(share=0.05),
    Fault.OFFLINE: Trouble(share=0.05),
    Fault.FULL_DISK: Trouble(share=0.02, for_s=15.0),
    Fault.WRONG_CLOCK: Trouble(share=0.02),
    Fault.BAD_FLASH: Trouble(share=0.02),
    Fault.CRASH_LOOP: Trouble(share=0.01, times=0),
}


@dataclass(frozen=True, slots=True)
class Persona:
    """One simulated agent.

    Attributes:
        agent: its name.
        index: its number, from 0.
        fault: what is wrong with it; None for most.
        slowness: its runs take so many times the version's latency.
        facts: what it says of itself.
    """

    agent: str
    index: int
    fault: Fault | None
    slowness: float
    facts: Mapping[str, str]


MACHINES: Final = (("aarch64", "rpi4"), ("aarch64", "jetson"), ("x86_64", "nuc"))


def read_plan(text: bytes, **instead: object) -> Plan:
    """Read a plan.

    Args:
        text: TOML.
        instead: fields that replace those of the text, unless None.

    Raises:
        BadPlan: it is not TOML, or a field is unknown or out of bounds.
    """
    if len(text) > MAX_PLAN_BYTES:
        raise BadPlan(f"a plan of {len(text)} bytes is over {MAX_PLAN_BYTES}")
    try:
        stated: dict[str, Any] = tomllib.loads(text.decode())
    except ValueError as error:
        raise BadPlan(f"the plan is not TOML: {error}") from error
    stated |= {name: value for name, value in instead.items() if value is not None}
    try:
        return Plan.model_validate(stated)
    except ValidationError as error:
        fault = error.errors(include_url=False, include_input=False)[0]
        where = ".".join(map(str, fault["loc"]))
        raise BadPlan(
            f"{where + ': ' if where else ''}{fault['msg'].removeprefix('Value error, ')}"
        ) from error


def usual_plan(**stated: object) -> Plan:
    """A plan with every fault in a few of the agents.

    Raises:
        BadPlan: a field is out of bounds.
    """
    plan = read_plan(b"", **stated)
    return plan.model_copy(update={"faults": dict(USUAL_FAULTS)})


def name_of(index: int) -> str:
    """What a simulated agent is called."""
    return f"{NAME_PREFIX}{index:05d}"


def cast(plan: Plan, names: Sequence[str] = ()) -> tuple[Persona, ...]:
    """Every agent of the plan, by number; with their own names where they have some."""
    # By a hash, so that who has a fault is spread over the processes and the waves.
    order = sorted(range(plan.agents), key=lambda index: _hash(plan.seed, index))
    struck: dict[int, Fault] = {}
    begin = 0
    for fault in Fault:
        trouble = plan.faults.get(fault)
        if trouble is None:
            continue
        end = begin + trouble.count(plan.agents)
        struck |= dict.fromkeys(order[begin:end], fault)
        begin = end
    return tuple(
        _persona(plan, index, struck.get(index), *names[index : index + 1])
        for index in range(plan.agents)
    )


def _persona(
    plan: Plan, index: int, fault: Fault | None, name: str | None = None
) -> Persona:
    rng = random_of(plan, index, "persona")
    machine, board = rng.choice(MACHINES)
    return Persona(
        agent=name or name_of(index),
        index=index,
        fault=fault,
        slowness=rng.uniform(0.5, 1.5),
        facts={
            "machine": machine,
            "board": board,
            "os": "linux",
            "runtime": "simulated",
            "runtime_version": "1",
            "memory_mb": str(rng.choice((512, 1024, 4096))),
            "utc_offset_min": str(60 * rng.randint(-8, 10)),
        },
    )


def random_of(plan: Plan, index: int, purpose: str) -> Random:
    """Draws of one agent for one purpose, the same in every run."""
    return Random(f"{plan.seed}/{index}/{purpose}")  # noqa: S311 - not for secrets


def _hash(seed: int, index: int) -> bytes:
    return hashlib.sha256(f"{seed}/{index}".encode()).digest()
