"""The gates over a simulated fleet: a few of the rollouts that the benchmark tries."""

from __future__ import annotations

import pytest

from benchmarks.updating.gates import CRASHING, SHUFFLED, Version, roll_out
from fleet.core.rollouts import RolloutState


@pytest.mark.parametrize("seed", [1, 2, 3])
@pytest.mark.parametrize("version", [SHUFFLED, CRASHING])
def test_a_bad_version_is_stopped_in_its_first_wave_and_taken_back(
    version: Version, seed: int
) -> None:
    came = roll_out(version, seed)
    assert came.state is RolloutState.ROLLED_BACK
    assert came.exposed <= 10
    assert came.left == 0
