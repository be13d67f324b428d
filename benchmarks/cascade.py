"""What the example's cascade is worth on Fashion-MNIST, and whether its promises hold.

The student of seed 1 is the committed one; `--train` has `overspill model build` make those of
seeds 2 and 3 too (about six minutes each, kept in `--work` for the next time). The
cloud model is the committed one throughout: training it takes a quarter of an hour.

A promise is tried a hundred times: the 15,000 images that no model learned from are
split by chance into 10,000 to calibrate on and 5,000 fresh ones. A spill budget is exact:
promised with 95 %, it holds in 95 of a hundred trials only about every second time, as
chance has it. The limit is on one that is promised with 98 %; the other is shown.
"""

from __future__ import annotations

import argparse
import shutil
import sys
import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray
from typing_extensions import override

from benchmarks.limits import Limit, median, progress, report
from builder.adapters import measuring, models
from builder.app import Build
from builder.core.labelled import Labelled
from builder.core.progress import Silent
from builder.core.quality import Answers, temperature_of
from builder.settings import read_build_file
from cascade.budget import threshold_for_spill
from cascade.curves import threshold_curve
from cascade.policy import Rule, judge
from cascade.risk import threshold_for_risk
from cascade.targets import Calibrated, Examples, MaxExcess, MaxSpill
from examples.fashion import labelled

EXAMPLE: Final = Path(labelled.__file__).parent
COMMITTED: Final = EXAMPLE / "edge" / "small" / "model.tflite"
CLOUD: Final = EXAMPLE / "cloud" / "fashion" / "1"
TRAINED_SEEDS: Final = (2, 3)
MAX_KB: Final = 120
TRIALS: Final = 100
FRESH: Final = 5_000
TRIAL_SEED: Final = 7
# Half a point is 25 of 5,000: it is shown, and no limit is set for it.
TARGETS: Final[Mapping[str, MaxExcess | MaxSpill]] = {
    "2 points worse": MaxExcess(0.02),
    "1 point worse": MaxExcess(0.01),
    "0.5 points worse": MaxExcess(0.005),
    "10 % spilled": MaxSpill(0.10),
    "10 % spilled, 98 %": MaxSpill(0.10, 0.98),
}
LIMITED: Final = ("2 points worse", "1 point worse", "10 % spilled, 98 %")
JUDGED: Final = 20_000


@dataclass(frozen=True, slots=True, eq=False)
class Pool:
    """Held-out images, calibrate part before test part, and what the cloud says."""

    labels: NDArray[np.int64]
    inputs: NDArray[np.float32]
    cloud: NDArray[np.float32]
    test: slice


@dataclass(frozen=True, slots=True)
class Trials:
    """How a promise fared.

    Attributes:
        held: of `TRIALS`.
        refused: of `TRIALS`; neither held nor broken.
        spilled: the mean share.
        above: the mean distance to the smallest share that would have held.
    """

    held: int
    refused: int
    spilled: float
    above: float


def main() -> int:
    """Measure, print, and fail when a limit does not hold."""
    options = _parser().parse_args()
    data = labelled.load()
    pool = _pool(data)
    students = {"seed 1 (committed)": COMMITTED}
    if options.train:
        students |= _train(options.work)
    figures: dict[str, Any] = {"trained here": len(students) - 1}
    limits: list[Limit] = []
    for name, file in students.items():
        progress(f"{name}: {len(pool.labels):,} images, one at a time")
        of_one, kept = _student(name, file, pool)
        figures |= of_one
        limits += kept
    figures["judge_us"] = _judge_us()
    limits.append(Limit("score and decision, µs", figures["judge_us"], 20))
    return report(figures, limits, as_json=options.json)


def _student(name: str, file: Path, pool: Pool) -> tuple[dict[str, Any], list[Limit]]:
    run = measuring.run_tflite(file, pool.inputs)
    held_out = slice(0, pool.test.start)
    temperature = temperature_of(run.outputs[held_out], pool.labels[held_out])
    edge = Answers(run.outputs, pool.labels, temperature)
    cloud = Answers(pool.cloud, pool.labels)
    sure, right, cloud_right = edge.confidence, edge.right, cloud.right
    test = pool.test
    curve = threshold_curve(sure[test], right[test], cloud_right[test])
    alone, behind = float(right[test].mean()), float(cloud_right[test].mean())
    # Spilling less is allowed: the best at up to so much.
    behind_at = {
        share: 100 * (behind - float(curve.accuracy[curve.spilled <= share].max()))
        for share in (0.10, 0.20)
    }
    kb = file.stat().st_size / 1000
    distinct = len(np.unique(sure[test]))
    figures: dict[str, Any] = {
        f"{name}: KB": round(kb, 1),
        f"{name}: p50 ms": round(run.p50_ms, 4),
    }
    limits = [
        Limit(f"{name}: KB", kb, MAX_KB),
        Limit(f"{name}: edge alone, %", 100 * alone, 92, at_least=True),
        Limit(f"{name}: cloud alone, %", 100 * behind, 93, at_least=True),
        Limit(f"{name}: points behind at 10 %", behind_at[0.10], 0.3),
        Limit(f"{name}: points behind at 20 %", behind_at[0.20], 0.1),
        Limit(f"{name}: distinct scores", distinct, 1_000, at_least=True),
    ]
    examples = Examples(sure, right, cloud_right)
    for said, target in TARGETS.items():
        progress(f"{name}: {said}, {TRIALS} splits")
        found = _trials(examples, target)
        figures[f"{name}: {said}"] = (
            f"held {found.held}, refused {found.refused}, spilled {found.spilled:.1%}, "
            f"{100 * found.above:+.1f} points above the least"
        )
        if said in LIMITED:
            limits += [
                Limit(f"{name}: {said}, held", found.held, 95, at_least=True),
                Limit(f"{name}: {said}, above", 100 * found.above, 5),
            ]
    return figures, limits


def _trials(examples: Examples, target: MaxExcess | MaxSpill) -> Trials:
    rng = np.random.default_rng(TRIAL_SEED)
    held = refused = 0
    spilled: list[float] = []
    above: list[float] = []
    for _ in range(TRIALS):
        order = rng.permutation(len(examples))
        fresh, known = _rows(examples, order[:FRESH]), _rows(examples, order[FRESH:])
        if isinstance(target, MaxSpill):
            found = threshold_for_spill(known.confidence, target, FRESH)
        else:
            found = threshold_for_risk(known, target, fresh=FRESH)
        if not isinstance(found, Calibrated):
            refused += 1
            continue
        share, keeps, least = _on_fresh(fresh, found.threshold, target)
        held += keeps
        spilled.append(share)
        above.append(share - least)
    return Trials(
        held,
        refused,
        float(np.mean(spilled)) if spilled else 0.0,
        float(np.mean(above)) if above else 0.0,
    )


def _on_fresh(
    fresh: Examples, threshold: float, target: MaxExcess | MaxSpill
) -> tuple[float, bool, float]:
    """The share spilled, whether the target is kept, and the least share that keeps it."""
    under = fresh.confidence < threshold
    share = float(under.mean())
    if isinstance(target, MaxSpill):
        return share, share <= target.share, target.share
    curve = threshold_curve(fresh.confidence, fresh.edge_right, fresh.cloud_right)
    need = float(fresh.cloud_right.mean()) - target.excess - 1e-12
    right = float(np.where(under, fresh.cloud_right, fresh.edge_right).mean())
    least = float(curve.spilled[curve.accuracy >= need].min())
    return share, right >= need, least


def _rows(examples: Examples, rows: NDArray[np.int64]) -> Examples:
    return Examples(
        examples.confidence[rows], examples.edge_right[rows], examples.cloud_right[rows]
    )


def _pool(data: Labelled) -> Pool:
    if data.parts is None:
        raise AssertionError("the example states its parts")
    calibrate, test = np.flatnonzero(data.parts == 2), np.flatnonzero(data.parts == 3)
    rows = np.concatenate([calibrate, test])
    inputs = data.model_inputs(rows)
    progress(f"the cloud model: {len(rows):,} images")
    cloud = models.outputs_of(
        models.open_model(CLOUD), lambda part: inputs[part], len(rows)
    )
    return Pool(data.labels[rows], inputs, cloud, slice(len(calibrate), len(rows)))


def _train(work: Path) -> dict[str, Path]:
    """Students of other seeds; steps that an earlier run finished are not done again."""
    made: dict[str, Path] = {}
    for seed in TRAINED_SEEDS:
        progress(f"building the student of seed {seed}")
        said = {"seed": seed, "candidates": {"quantizations": ["int8"]}}
        options = read_build_file(EXAMPLE / "build.toml", said)
        # One folder for all seeds: what the cloud says of the images is the same.
        built = Build(options, EXAMPLE, work, _Told()).run(accept_nearest=True)
        if built.bundle is None:
            raise SystemExit(f"seed {seed}: {built.choice.why}")
        kept = work / f"seed{seed}.tflite"
        shutil.copyfile(built.bundle / "model.tflite", kept)
        made[f"seed {seed}"] = kept
    return made


class _Told(Silent):
    @override
    def begin(self, what: str) -> None:
        progress(f"  {what}")


def _judge_us() -> float:
    """Median microseconds for the score and the decision of one answer."""
    rows = np.random.default_rng(0).normal(size=(JUDGED, 1, 10)).astype(np.float32)
    rule = Rule(temperature=1.2, threshold=0.7)
    spent = []
    for row in rows:
        began = time.perf_counter_ns()
        judge(row, rule)
        spent.append(time.perf_counter_ns() - began)
    return round(median(spent) / 1000, 2)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--json", action="store_true", help="print figures as JSON")
    parser.add_argument(
        "--train", action="store_true", help="also build the students of seeds 2 and 3"
    )
    parser.add_argument(
        "--work",
        type=Path,
        default=Path("built") / "benchmark",
        help="where trained students are kept, default %(default)s",
    )
    return parser


if __name__ == "__main__":
    sys.exit(main())
