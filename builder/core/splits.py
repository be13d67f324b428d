"""Which example serves what. Equal examples never serve two ends.

Four parts, because what is chosen on some examples cannot be promised by the same:
models learn from `train`, the candidate and its temperature are chosen on `choose`, the
threshold on `calibrate`, and nothing at all on `test`, which only tells.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Final, Literal, TypeAlias

import numpy as np
from numpy.typing import NDArray

from builder.core.labelled import Labelled, digests
from builder.core.refusal import BuildRefused

Part: TypeAlias = Literal["train", "choose", "calibrate", "test"]
PARTS: Final[tuple[Part, ...]] = ("train", "choose", "calibrate", "test")
SHARES: Final = (0.6, 0.1, 0.15, 0.15)
# Of what a data set gives as held out without saying what for.
# A fifth tells candidates apart, and what is promised hangs on how much is left.
CHOOSE_SHARE: Final = 0.2

Rows: TypeAlias = NDArray[np.int64]


@dataclass(frozen=True, slots=True, eq=False)
class Split:
    """Rows of each part, sorted.

    Attributes:
        train: int64 [n], as are the others.
        left_out: copies of held-out examples that were taken out of `train`.
    """

    train: Rows
    choose: Rows
    calibrate: Rows
    test: Rows
    left_out: int = 0

    def rows(self, part: Part) -> Rows:
        """The rows of one part."""
        return {
            "train": self.train,
            "choose": self.choose,
            "calibrate": self.calibrate,
            "test": self.test,
        }[part]


def split(
    data: Labelled,
    seed: int,
    shares: Sequence[float] = SHARES,
    *,
    choose_share: float = CHOOSE_SHARE,
    trains: bool = True,
) -> Split:
    """Split by the data set's own parts, or by the seed where it has none.

    Args:
        data: with or without parts. Without, equal examples go to the same part.
        seed: where the chances come from.
        shares: of each of `PARTS`, summing to 1; for a data set without parts.
        choose_share: of the calibrate part, for a data set with parts and no choose.
        trains: whether the train part is needed.

    Raises:
        BuildRefused: an example is in two parts that must not share any, or a part
            has no example.
    """
    same = _groups(data)
    parts = _by_seed(data, same, seed, shares) if data.parts is None else data.parts
    if data.parts is not None and not (parts == PARTS.index("choose")).any():
        parts = _with_choose(parts, same, seed, choose_share)
    train, chosen, calibrate, test = (
        np.flatnonzero(parts == index).astype(np.int64) for index in range(len(PARTS))
    )
    found = Split(train, chosen, calibrate, test)
    _refuse_leaks(found, same)
    held = np.isin(same[found.train], same[parts > 0])
    found = replace(found, train=found.train[~held], left_out=int(held.sum()))
    for part in PARTS:
        if not len(found.rows(part)) and (trains or part != "train"):
            raise BuildRefused(
                f"the {part} part has no example: there are {len(data)} in all"
            )
    return found


def _groups(data: Labelled) -> Rows:
    """A number for each example, the same for equal ones only: int64 [n]."""
    seen: dict[bytes, int] = {}
    each = [seen.setdefault(digest, len(seen)) for digest in digests(data.inputs)]
    return np.array(each, np.int64)


def _by_seed(data: Labelled, same: Rows, seed: int, shares: Sequence[float]) -> Rows:
    if len(shares) != len(PARTS) or min(shares) < 0 or abs(sum(shares) - 1) > 1e-6:
        raise BuildRefused(
            f"shares are four that sum to 1 ({', '.join(PARTS)}), got {list(shares)}"
        )
    rng = np.random.default_rng(seed)
    parts = np.zeros(int(same.max()) + 1, np.int64)
    # By class, so that each part has about the same of each.
    _, first = np.unique(same, return_index=True)
    for label in range(len(data.names)):
        groups = rng.permutation(np.flatnonzero(data.labels[first] == label))
        ends = np.round(np.cumsum(shares) * len(groups)).astype(np.int64)
        for index, chunk in enumerate(np.split(groups, ends[:-1])):
            parts[chunk] = index
    result: Rows = parts[same]
    return result


def _with_choose(parts: Rows, same: Rows, seed: int, share: float) -> Rows:
    """A share of the calibrate part, equal examples together, becomes choose."""
    calibrate = PARTS.index("calibrate")
    groups = np.unique(same[parts == calibrate])
    rng = np.random.default_rng(seed)
    taken = rng.permutation(groups)[: round(share * len(groups))]
    chosen = (parts == calibrate) & np.isin(same, taken)
    return np.where(chosen, PARTS.index("choose"), parts)


def _refuse_leaks(found: Split, same: Rows) -> None:
    held: tuple[Part, ...] = ("choose", "calibrate", "test")
    for index, one in enumerate(held):
        for other in held[index + 1 :]:
            rows = found.rows(one)
            leaked = rows[np.isin(same[rows], same[found.rows(other)])]
            if len(leaked):
                raise BuildRefused(
                    f"{len(leaked)} examples are in {one} and in {other} (rows "
                    f"{', '.join(map(str, leaked[:5]))}): what is chosen or promised "
                    "on one part cannot be measured on the same examples in another"
                )
