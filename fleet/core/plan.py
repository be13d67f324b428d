"""Who a rollout would reach, how many bytes that moves, and how long it takes.

The same choice that the rollout itself makes: what is planned is what happens, unless
the fleet changes in between.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Final

from broker.messages import SlotReport
from fleet.core.cohorts import cut, in_order, is_last, wave_of
from fleet.core.devices import Device
from fleet.core.following import Now
from fleet.core.labels import Query, read_query, sees
from fleet.core.rollouts import Rollout
from fleet.core.windows import utc_offset_min, work_ends_ms

# A bundle is there packed and unpacked while it is installed.
SPACE_FACTOR: Final = 3
MB: Final = 1_000_000
MAX_PLANNED_WAVES: Final = 100


@dataclass(frozen=True, slots=True)
class Needs:
    """What a version asks of a device (`bundle.manifest.Requires`) and its size."""

    machines: frozenset[str] = frozenset()
    boards: frozenset[str] = frozenset()
    runtimes: frozenset[str] = frozenset()
    memory_mb: int = 0
    size_bytes: int = 0


@dataclass(frozen=True, slots=True)
class Costs:
    """What pulling and installing cost.

    Attributes:
        delta_bytes: by the version that an agent serves, how much it has to pull; of
            those that are not in it, the whole.
        bytes_per_s: what one agent pulls, unless its policy is slower.
        install_s: how long an agent needs besides: trial, swap, reports.
    """

    delta_bytes: Mapping[str, int] = field(default_factory=dict)
    bytes_per_s: float = 1_000_000.0
    install_s: float = 30.0


@dataclass(frozen=True, slots=True)
class Chosen:
    """Who may be told, in the rollout's order, and why others may not.

    `excluded` has agents that are among the targets but could not take the version;
    `crowded` are those of them that only lack room on their disk, which may come.
    """

    eligible: tuple[str, ...]
    excluded: Mapping[str, str] = field(default_factory=dict)
    crowded: frozenset[str] = frozenset()

    @property
    def anybody(self) -> bool:
        """Whether it is for any agent that is known."""
        return bool(self.eligible or self.excluded)


@dataclass(frozen=True, slots=True)
class PlannedWave:
    """One wave: how many agents it adds, how many bytes, how long it takes.

    `waits_s` is how much of that is for maintenance windows to open.
    """

    index: int
    agents: int
    bytes: int
    lasts_s: float
    waits_s: float = 0.0
    shadow: bool = False
    approve: bool = False


@dataclass(frozen=True, slots=True)
class Plan:
    """What a rollout would do if it began now.

    `timeless` are those with a maintenance window that do not say what their own time
    is: it counts as open for them.
    """

    rollout: Rollout
    chosen: Chosen
    already: tuple[str, ...]
    away: tuple[str, ...]
    timeless: tuple[str, ...]
    waves: tuple[PlannedWave, ...]

    @property
    def bytes(self) -> int:
        """Over all waves."""
        return sum(each.bytes for each in self.waves)

    @property
    def lasts_s(self) -> float:
        """Over all waves, without the time that people take to approve."""
        return sum(each.lasts_s for each in self.waves)

    @property
    def waits_s(self) -> float:
        """How much of that is for maintenance windows, over all waves."""
        return sum(each.waits_s for each in self.waves)


def choose(
    rollout: Rollout,
    devices: Mapping[str, Device],
    labels: Mapping[str, Mapping[str, str]],
    needs: Needs,
) -> Chosen:
    """Who may be told.

    Raises:
        BadQuery: the rollout's query cannot be read.
    """
    query = None if rollout.query is None else read_query(rollout.query)
    eligible, excluded, crowded = [], {}, set()
    named = devices if rollout.targets is None else rollout.targets & devices.keys()
    for agent in sorted(named):
        device = devices[agent]
        if not _matches(query, device, labels):
            continue
        unfit = _why_not(rollout, device, needs)
        reason = unfit or _why_no_room(rollout, device, needs)
        if reason is None:
            eligible.append(agent)
            continue
        excluded[agent] = reason
        if unfit is None:
            crowded.add(agent)
    return Chosen(tuple(in_order(rollout, eligible)), excluded, frozenset(crowded))


def plan(
    rollout: Rollout,
    devices: Mapping[str, Device],
    labels: Mapping[str, Mapping[str, str]],
    needs: Needs,
    now: Now,
    costs: Costs | None = None,
) -> Plan:
    """What the rollout would do if it began now.

    Args:
        rollout: as it would be ordered.
        devices: every known agent, by name.
        labels: operators' labels, by agent.
        needs: of the version.
        now: tells who is away.
        costs: what pulling and installing cost.

    Raises:
        BadQuery: the rollout's query cannot be read.
    """
    chosen = choose(rollout, devices, labels, needs)
    costs = costs or Costs()
    pulls = {
        agent: _pulls(rollout, devices[agent], needs, costs.delta_bytes)
        for agent in chosen.eligible
    }
    offsets = {agent: utc_offset_min(devices[agent].facts) for agent in chosen.eligible}
    windowed = rollout.policy.window is not None
    return Plan(
        rollout,
        chosen,
        timeless=tuple(
            agent for agent in chosen.eligible if windowed and offsets[agent] is None
        ),
        already=tuple(each for each in chosen.eligible if pulls[each] is None),
        away=tuple(each for each in chosen.eligible if not now.heard(devices[each])),
        waves=tuple(_waves(rollout, pulls, offsets, costs, now.now_ms)),
    )


def _waves(
    rollout: Rollout,
    pulls: Mapping[str, int | None],
    offsets: Mapping[str, int | None],
    costs: Costs,
    begins_ms: int,
) -> Iterable[PlannedWave]:
    """One after the other; `pulls` and `offsets` are of the eligible, in order."""
    rate = min(costs.bytes_per_s, rollout.policy.bytes_per_s or math.inf)
    eligible = list(pulls)
    done = pulled = 0
    for index in range(MAX_PLANNED_WAVES):
        wave = wave_of(rollout, index)
        upto = max(done, cut(rollout, index, len(eligible)))
        some = eligible[done:upto]
        # A shadow has pulled it already when it is to serve.
        bytes_each = [pulls[agent] or 0 for agent in eligible[max(done, pulled) : upto]]
        each_s = max(bytes_each, default=0) / rate + costs.install_s
        works_s = _rounds(rollout, len(some)) * each_s
        waits_s = _ends_s(rollout, some, offsets, each_s, begins_ms) - works_s
        lasts_s = (
            works_s
            + waits_s
            + (rollout.policy.probation_s if some and not wave.shadow else 0)
            + wave.soak_s
        )
        yield PlannedWave(
            index,
            len(some),
            sum(bytes_each),
            lasts_s,
            waits_s,
            shadow=wave.shadow,
            approve=wave.approve,
        )
        begins_ms += round(lasts_s * 1000)
        pulled = max(pulled, upto)
        if not wave.shadow:
            done = upto
        if is_last(rollout, index, len(eligible)):
            return


def _rounds(rollout: Rollout, agents: int) -> int:
    return math.ceil(agents / max(1, rollout.max_parallel))


def _ends_s(
    rollout: Rollout,
    agents: Sequence[str],
    offsets: Mapping[str, int | None],
    each_s: float,
    begins_ms: int,
) -> float:
    """After how long the last of these agents has it, in windows of their own time."""
    ends_s = _rounds(rollout, len(agents)) * each_s
    if rollout.policy.window is None:
        return ends_s
    for offset, some in Counter(offsets[agent] for agent in agents).items():
        works_s = _rounds(rollout, some) * each_s
        work_ms = round(works_s * 1000)
        done_ms = work_ends_ms(rollout.policy.window, offset, begins_ms, work_ms)
        waits_ms = done_ms - begins_ms - work_ms
        ends_s = max(ends_s, works_s + waits_ms / 1000)
    return ends_s


def _matches(
    query: Query | None,
    device: Device,
    labels: Mapping[str, Mapping[str, str]],
) -> bool:
    if query is None:
        return True
    return query.matches(sees(labels.get(device.agent, {}), device.facts))


def _why_not(rollout: Rollout, device: Device, needs: Needs) -> str | None:
    """Why the device could not take the version, or None. What it does not say, passes."""
    facts = device.facts
    for name, wanted in (
        ("machine", needs.machines),
        ("board", needs.boards),
        ("runtime", needs.runtimes),
    ):
        has = facts.get(name)
        if wanted and has is not None and has not in wanted:
            return f"its {name} is {has}; the bundle is for {', '.join(sorted(wanted))}"
    memory_mb = _number(facts.get("memory_mb"))
    if memory_mb is not None and memory_mb < needs.memory_mb:
        return f"it has {memory_mb:g} MB of memory; the bundle needs {needs.memory_mb}"
    slot = device.slot(rollout.model)
    if slot is not None and slot.floor > rollout.epoch:
        return (
            f"it takes no epoch under {slot.floor}; this version is of {rollout.epoch}: "
            "publish it under a new version"
        )
    return None


def _why_no_room(rollout: Rollout, device: Device, needs: Needs) -> str | None:
    """Why there is no room for it on the disk now, or None."""
    slot = device.slot(rollout.model)
    if slot is not None and _holds(rollout, slot):
        return None
    free_mb = _number(device.facts.get("free_disk_mb"))
    needed_mb = SPACE_FACTOR * needs.size_bytes / MB
    if free_mb is not None and free_mb < needed_mb:
        return f"its disk has {free_mb:g} MB free; the bundle needs {needed_mb:.0f}"
    return None


def _holds(rollout: Rollout, slot: SlotReport) -> bool:
    """Whether the version is on its disk, so that it asks for no more room."""
    shadow = slot.state == "shadow" and slot.staged == rollout.version
    return shadow or slot.active == rollout.version


def _number(text: str | None) -> float | None:
    try:
        number = float(text or "")
    except ValueError:
        return None
    return number if math.isfinite(number) else None


def _pulls(
    rollout: Rollout, device: Device, needs: Needs, deltas: Mapping[str, int]
) -> int | None:
    """How many bytes it has to pull; None when it serves the version already."""
    slot = device.slot(rollout.model)
    if slot is not None and slot.active == rollout.version:
        return None
    if slot is not None and slot.previous == rollout.version:
        return 0
    base = None if slot is None else slot.active
    return min(needs.size_bytes, deltas.get(base or "", needs.size_bytes))
