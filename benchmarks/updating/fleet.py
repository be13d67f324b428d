"""A thousand simulated agents take a version of 0.75 MB each, over a real broker.

`overspill.simulate` with nothing wrong with any agent: every one has a connection and
a user of its own, believes signed metadata, pulls and verifies six chunks, goes through
a short probation and reports; the fleet tells a hundred at a time.
"""

from __future__ import annotations

import asyncio
import sys
import tempfile
from pathlib import Path
from typing import Final

from benchmarks.limits import Limit, progress, report
from overspill.simulate.plan import Plan, Rolling
from overspill.simulate.run import Options, Outcome, Simulation
from overspill.simulate.tally import Became
from overspill.tasks import alongside

AGENTS: Final = 1000
MODEL_BYTES: Final = 750_000
MOST_S: Final = 60.0
MOST_BROKER_MB: Final = 700.0
# Beyond the limit it is still told by how much.
WITHIN_S: Final = 150.0
SAY_EVERY_S: Final = 5.0
PLAN: Final = Plan(
    agents=AGENTS,
    seed=2026,
    model_bytes=MODEL_BYTES,
    # Nothing of a version is left in the next: no delta, each pulls all of it.
    moved_share=1.0,
    rollout=Rolling(waves="all", probation="1s", max_parallel=100),
)


def measure() -> tuple[dict[str, object], list[Limit]]:
    """Figures, and the limits that hold of them."""
    with tempfile.TemporaryDirectory(prefix="ovs-") as name:
        done = asyncio.run(_simulated(Path(name)))
    converged = done.tally.counts()[Became.CONVERGED]
    figures: dict[str, object] = {
        "agents": AGENTS,
        "bytes each": round(done.heard_bytes / AGENTS),
        "rollout start, s": round(done.told_s, 2),
        "connected in, s": round(done.connect_s, 1),
        "broker at rest, MB": round(done.broker_rest_mb),
        "broker with all connected, MB": round(done.broker_connected_mb),
        "agents in all, MB": round(done.agents_mb),
        # Two cores have a hundred and twenty of them in a minute.
        "processor in all, s": round(sum(done.processor_s.values()), 1),
        "processor by part, s": {
            name: round(spent, 1) for name, spent in done.processor_s.items()
        },
        "rollout": "unknown" if done.standing is None else done.standing.state,
    }
    return figures, [
        Limit("agents converged", converged, AGENTS, at_least=True),
        Limit("bytes each, at least", done.heard_bytes / AGENTS, MODEL_BYTES, True),
        Limit("last agent converged after, s", done.last_s, MOST_S),
        Limit("broker at most, MB", done.broker_peak_mb, MOST_BROKER_MB),
        Limit("of whom the fleet knows something else", len(done.disagreements), 0),
    ]


async def _simulated(folder: Path) -> Outcome:
    simulation = Simulation(PLAN, Options(within_s=WITHIN_S), folder)
    return await alongside(simulation.run(), _say(simulation))


async def _say(simulation: Simulation) -> None:
    while True:
        scene = simulation.scene
        counts = scene.tally.counts()
        states = ", ".join(f"{n} {each}" for each, n in counts.items() if n)
        progress(f"{scene.headline}: {states}; broker {scene.broker_mb:.0f} MB")
        await asyncio.sleep(SAY_EVERY_S)


if __name__ == "__main__":
    sys.exit(report(*measure(), as_json="--json" in sys.argv))
