"""Installs that are killed: `python -m tests.kills FOLDER each|synced|full STEP|often COUNT`.

Children are forked from this process, which has one thread and everything imported,
so that one try costs some ten milliseconds. Prints a line of JSON.
"""

from __future__ import annotations

import asyncio
import functools
import json
import os
import random
import shutil
import signal
import sys
import time
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import structlog

from bundle import layout
from bundle.delta.offering import offer_delta
from edge_agent.adapters.model_store import ModelStore
from edge_agent.core.slots import Slots, State
from tests.traced import Traced, forked, traced
from tests.updating import MODEL, Agent, Registry, running, want

NOT_SETTLED = 3
# One that would take longer than this is stuck.
PATIENCE_S = 40.0
# How long one lives at most that is killed; longer from try to try, on a busy machine.
SHORT_S = 0.03


@dataclass(frozen=True, slots=True)
class Site:
    """A registry and the folder of the agent."""

    folder: Path

    @property
    def agent(self) -> Path:
        """Where the agent keeps its state."""
        return self.folder / "agent"

    def registry(self) -> Registry:
        """A fresh view of it."""
        return Registry(self.folder / "registry")

    def prepare(self) -> None:
        """Two versions are offered, the first serves, the second is desired."""
        registry = self.registry()
        registry.publish("1", 1, data=b"1" * 3000, labels=["1"])
        registry.publish("2", 2, data=b"2" * 3000, labels=["2"])
        registry.desire(want("1", 1, 1))
        if forked(functools.partial(self.update, "1")) != 0:
            raise SystemExit("the first version was not installed")
        registry.desire(want("2", 2, 2))

    def copy(self, name: str) -> Site:
        """The same beside it, with an agent of its own."""
        other = self.folder / name
        shutil.rmtree(other, ignore_errors=True)
        other.mkdir()
        shutil.copytree(self.agent, other / "agent")
        (other / "registry").symlink_to(self.folder / "registry")
        return Site(other)

    def update(self, version: str) -> int:
        """Run the agent until it serves a version, or waits."""
        return asyncio.run(self._update(version))

    async def _update(self, version: str) -> int:
        agent = Agent(self.agent, self.registry())
        async with running(agent), asyncio.timeout(PATIENCE_S):
            agent.updates.look_now()
            while True:
                slots = agent.slots
                if slots.state is State.SWAPPED and slots.active == version:
                    return 0
                if slots.state is State.WAITING:
                    # What serves is what served before, whatever the disk says.
                    return NOT_SETTLED if agent.serving[MODEL] != version else 4
                if slots.state is State.PROBATION and agent.serving[MODEL] == version:
                    await agent.probation.look(MODEL)
                    if agent.slots.state is State.PROBATION:
                        return NOT_SETTLED
                await asyncio.sleep(0)

    def serves(self) -> Slots:
        """What an agent that starts now would serve; it is whole, and so is its way back.

        Raises:
            AssertionError, BundleRejected: it would not.
        """
        store = ModelStore(self.agent / "models")
        store.prepare()
        slots = store.slots()[MODEL]
        assert slots.active is not None
        served = store.bundle(MODEL, slots.active).manifest
        # Model and labels are of one version: nothing is ever a mixture.
        assert served.version == slots.active
        assert served.labels == [slots.active]
        if slots.state is State.PROBATION:
            assert slots.previous is not None
            store.bundle(MODEL, slots.previous)
            assert slots.floor < slots.epoch
        return slots


def each_call(site: Site) -> dict[str, object]:
    """Kill the update before each call that changes the disk."""
    whole = site.copy("whole")
    calls = traced(functools.partial(whole.update, "2"), whole.folder).calls
    found: Counter[str] = Counter()
    killed = 0
    while True:
        other = site.copy("killed")
        ran = traced(functools.partial(other.update, "2"), other.folder, kill_at=killed)
        if ran.code is not None:
            assert ran.code == 0, ran
            break
        found[_said(other.serves())] += 1
        if forked(functools.partial(other.update, "2")) != 0:
            raise SystemExit(f"no recovery from a kill at call {killed}: {ran.calls}")
        slots = other.serves()
        assert (slots.active, slots.floor) == ("2", 2), (killed, slots)
        killed += 1
    return {"calls": len(calls), "killed": killed, "found": dict(found)}


def synced(site: Site) -> dict[str, object]:
    """Find what an update names before it is on the disk, and would miss after a cut."""
    whole = site.copy("whole")
    ran = traced(functools.partial(whole.update, "2"), whole.folder)
    models = whole.agent / "models"
    unwritten: set[Path] = set()
    unnamed: set[Path] = set()
    late: list[str] = []
    slots = 0
    for call, paths in zip(ran.calls, ran.paths, strict=True):
        if not paths or not paths[0].is_relative_to(models):
            continue
        if call in ("fsync", "fdatasync"):
            unwritten.discard(paths[0])
            unnamed.discard(paths[0])
        elif call.startswith("rename"):
            was, now = paths
            late += [f"{each} is named {now}" for each in unwritten if _in(each, was)]
            late += [f"{each} is named {now}" for each in unnamed if _in(each, was)]
            if now.name == "slots.json":
                slots += 1
                late += [f"{each} is answered by {now}" for each in unnamed]
            unnamed |= {was.parent, now.parent}
        elif call not in ("openat", "mkdir", "mkdirat", "unlink", "unlinkat", "rmdir"):
            unwritten.add(paths[0])
    late += [f"{each} at the end" for each in unnamed]
    return {"code": ran.code, "slots": slots, "late": late}


def _in(path: Path, folder: Path) -> bool:
    return path.is_relative_to(folder)


def full_disk(site: Site, stride: int) -> dict[str, object]:
    """Let the disk be full from every so-manieth such call on, and then have room."""
    codes: Counter[int | None] = Counter()
    step = 0
    while True:
        other = site.copy("full")
        work = functools.partial(other.update, "2")
        ran: Traced = traced(work, other.folder, full_from=step)
        codes[ran.code] += 1
        if ran.code not in (0, NOT_SETTLED):
            raise SystemExit(f"with a full disk from call {step}: {ran}")
        slots = other.serves()
        if forked(work) != 0:
            raise SystemExit(f"no recovery from a full disk at call {step}: {slots}")
        assert other.serves().active == "2"
        if len(ran.calls) <= step:
            break
        step += stride
    return {
        "steps": sum(codes.values()),
        "waited": codes[NOT_SETTLED],
        "done": codes[0],
    }


def often(site: Site, count: int) -> dict[str, object]:
    """Kill the agent at random moments, again and again, on one and the same disk."""
    rng = random.Random(count)
    registry = site.registry()
    # Of three versions two are on the disk: each update has something to pull.
    seals = {
        version: registry.publish(
            version, data=version.encode() * 3000, labels=[version]
        )
        for version in "123"
    }
    # Two of them come as a difference, and in no other way.
    for old, new in (("1", "2"), ("2", "3")):
        offer_delta(registry.tree, seals[old].sha256, seals[new].sha256)
    for new in "23":
        registry.tree.delete(layout.blob(seals[new].sha256))
    found: Counter[str] = Counter()
    done = killed = 0
    longest_s = SHORT_S
    while killed < count:
        slots = site.serves()
        found[_said(slots)] += 1
        version = {"1": "2", "2": "3", "3": "1"}[slots.active or ""]
        # The agent may have taken a wish that it was killed over.
        epoch, generation = slots.floor + 1 + killed, slots.generation + 1
        for seal in seals.values():
            registry.sign(seal.model_copy(update={"epoch": epoch}))
        registry.desire(want(version, generation, epoch))
        work = functools.partial(site.update, version)
        if _was_killed(work, rng.uniform(0.0, longest_s)):
            killed += 1
            longest_s *= 1.05
        else:
            done += 1
            longest_s = SHORT_S
    site.serves()
    return {"kills": killed, "done": done, "found": dict(found)}


def _said(slots: Slots) -> str:
    return f"{slots.active} {slots.state}"


def _was_killed(work: Callable[[], int], after_s: float) -> bool:
    """Whether it was killed before it was done."""
    pid = os.fork()
    if pid == 0:
        code = 97
        try:
            code = work()
        finally:
            os._exit(code)
    time.sleep(after_s)  # The fault itself: at any moment of its life.
    os.kill(pid, signal.SIGKILL)
    _, status = os.waitpid(pid, 0)
    return os.WIFSIGNALED(status)


def main() -> None:
    """Prepare the site and do what was asked."""
    structlog.configure(wrapper_class=structlog.make_filtering_bound_logger(50))
    site = Site(Path(sys.argv[1]))
    site.prepare()
    match sys.argv[2:]:
        case ["each"]:
            found = each_call(site)
        case ["synced"]:
            found = synced(site)
        case ["full", stride]:
            found = full_disk(site, int(stride))
        case ["often", count]:
            found = often(site, int(count))
        case _:
            raise SystemExit(__doc__)
    sys.stdout.write(json.dumps(found) + "\n")


if __name__ == "__main__":
    main()
